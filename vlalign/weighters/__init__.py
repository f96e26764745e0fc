"""How much each loss counts: losses -> weights of the same shape, one paper a module."""
