"""What is measured: labelled numbers per prompt and position, and their reductions."""
