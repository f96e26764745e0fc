"""Specs of dual encoders; all build `vlalign.models.pair.DualEncoder`."""
