"""The order of targets, selectors, objectives and weighters: features and a batch -> a loss."""
