"""How fast the kernels are, said only of kernels that are right: checked in float64, then timed."""
