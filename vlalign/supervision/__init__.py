"""What the loss is told: which keys are relevant, which pairs count."""
