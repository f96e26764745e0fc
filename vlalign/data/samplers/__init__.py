"""In which order, and in whose company, rows come: one order an epoch."""
