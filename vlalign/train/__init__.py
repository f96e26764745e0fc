"""Gradients, steps, checkpoints: one loop for every recipe."""
