"""Models: towers, projection heads and the dual encoder, and their weights on disk and on the Hub."""
