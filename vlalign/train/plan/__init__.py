"""What a step will take of memory, links and time, told before anyone rents a machine; no data is read."""
