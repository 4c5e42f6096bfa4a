"""One page for a subject: the answer, the figures, the scan as a map, provenance, and what does not hold."""
