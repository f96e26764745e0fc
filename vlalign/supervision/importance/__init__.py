"""How much each token of a text matters to a language model."""
