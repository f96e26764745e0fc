"""How wrong embeddings are: features -> losses [N], one paper a module."""
