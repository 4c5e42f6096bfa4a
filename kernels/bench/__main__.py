"""`python -m repro.kernels.bench`: needs torch, numpy and, for GPUs, triton."""

import sys

from repro.kernels.bench.command import main

sys.exit(main())
