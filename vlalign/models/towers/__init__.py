"""Specs of towers: what one side of a `dual_encoder` is made of."""
