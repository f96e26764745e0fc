"""Models that write texts about pictures."""
