"""Rows of any origin -> batches: sets, sources, splits, and a loader that is a function of the step."""
