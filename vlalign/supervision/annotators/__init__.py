"""Fields that a frozen encoder gives to every row, once before training."""
