"""Objectives of rerankers that tell yes and no apart."""
