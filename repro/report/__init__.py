"""One page for a subject: the answer, every figure, the scan as a map, where the numbers come from, what does not hold."""
