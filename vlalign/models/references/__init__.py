"""Who tells how likely captions are without their pictures, one a module."""
