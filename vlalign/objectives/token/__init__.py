"""Objectives of models that write: a loss for each token."""
