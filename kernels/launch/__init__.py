"""How Triton kernels are launched: grids, tuning of block sizes, and which precisions exist where."""
