"""How relevant a key is to a query, a tile at a time."""
