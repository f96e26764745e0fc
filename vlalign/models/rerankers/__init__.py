"""Models that answer about a pair of a query and a candidate."""
