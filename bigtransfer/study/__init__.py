"""Studies: the same training many times, along a few axes."""
