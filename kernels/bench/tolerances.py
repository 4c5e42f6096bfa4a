"""The one table of tolerances: how far a kernel may lie from float64, by precision; shared by tests and `bench`."""

from torch import Tensor

# Root mean square of the difference over that of the float64 result. Sums are float32 everywhere; what is lost is the
# rounding of what lies between two products of one kernel: 2^-24 (ieee), 2^-22 (tf32x3), 2^-11 (fp16), 2^-9 (bf16).
TOLERANCES = {
    "ieee": 4e-6,
    "tf32x3": 1e-5,
    "tf32": 2e-3,
    "fp16": 2e-3,
    "bf16": 1e-2,
}


def error_ratio(got: Tensor, true: Tensor) -> float:
    """Return |got - true| / |true| over all elements, in float64; infinite where it is no number.

    got: any float dtype; true: the same shape, float64. Agreement: tests/bench/test_bench_parts.py.
    """
    difference = (got.double() - true).norm().item()
    size = true.norm().item()
    if difference == 0.0:
        return 0.0
    return difference / size if size > 0.0 and difference == difference else float("inf")
