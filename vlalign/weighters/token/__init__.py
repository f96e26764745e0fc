"""How much each token counts: losses -> weights of the same shape, one paper a module."""
