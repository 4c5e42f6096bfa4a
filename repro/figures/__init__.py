"""Charts drawn from stored results."""
