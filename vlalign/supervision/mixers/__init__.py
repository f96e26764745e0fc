"""Synthetic hard negatives."""
