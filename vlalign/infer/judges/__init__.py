"""Who measures how well a candidate answers a query: models, endpoints, words in common."""
