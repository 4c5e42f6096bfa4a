"""`python -m repro.kernels.bench`: needs torch, numpy and, for GPUs, triton."""

import os
import sys

# Before torch is loaded, and as a run has it: threads of OpenMP that spin on after a product of one provider would hold
# a core while the next one is timed.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from repro.kernels.bench.command import main

sys.exit(main())
