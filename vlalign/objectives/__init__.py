"""How wrong each row is: rows -> losses [Q], one paper a module."""
