"""Sources of rows, one a module, by name in `vlalign.registry.SOURCES`."""
