"""Evaluators, one a module, called by name from a recipe."""
