"""Which pairs count, a tile at a time."""
