"""Passes over data with a model that is already trained."""
