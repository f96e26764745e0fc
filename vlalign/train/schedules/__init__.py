"""Learning-rate schedules, one a module."""
