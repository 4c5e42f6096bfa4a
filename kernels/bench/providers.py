"""Who computes: every provider as one declared entry, bound to a case; a provider that cannot run here says why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from repro.kernels import fused
from repro.kernels.bench import roofline
from repro.kernels.errors import UnsupportedError
from repro.kernels.registry import KERNELS
from repro.kernels.select import provider as kernels_of
from repro.kernels.work import listed

Results = tuple[Tensor | None, ...]
Function = Callable[..., Any]
# One case as a function without arguments.
Call = Callable[[], Results]

BASELINE = "einsum"
COMPILED = tuple(name for name, entry in KERNELS.items() if entry.compiled)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Provider:
    """A way to compute the kernels; `function` raises a KernelError where it does not exist."""

    name: str
    function: Callable[[str, str], Function]
    """(kernel, device) -> the function, with the signature of the reference's."""
    kernels: tuple[str, ...] | None = None
    """The only kernels that it has; None: all."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it is measured."""
    fp32: str = "ieee"
    """How it multiplies float32: an entry of `roofline.PRECISIONS`."""
    only_fp32: bool = False
    ours: bool = False
    """Whether it is ours to put right: its failing check silences its case, and fails the command."""
    compiles: bool = False
    """Whether its first call takes long, for every shape and dtype anew."""

    def precision(self, dtype: str) -> str:
        """Return the precision in which it is judged, for arguments of a dtype."""
        return self.fp32 if dtype == "fp32" else dtype


def dtypes(device: str) -> tuple[str, ...]:
    """Return the dtypes measured on a kind of device."""
    return ("fp32",) if device == "cpu" else tuple(DTYPES)


def of_kernel(kernel: str, dtype: str, device: str) -> list[Provider]:
    """Return the providers that have a kernel in a dtype and are meant for a device."""
    return [
        entry
        for entry in PROVIDERS
        if (entry.kernels is None or kernel in entry.kernels)
        and (dtype == "fp32" or not entry.only_fp32)
        and device in entry.devices
    ]


def bind(function: Function, inputs: dict[str, Any]) -> Call:
    """Return a call in which torch rounds no float32 product to TF32; a kernel's own precision is its own affair."""

    def call() -> Results:
        with torch.no_grad(), roofline.matmul_precision(tf32=False):
            return listed(function(**inputs))

    return call


def _plain(name: str, kernel: str, device: str) -> Any:
    """Return a function of one of the package's providers."""
    return getattr(kernels_of(name, device), kernel)


def _triton(precision: str, kernel: str, device: str) -> Function:
    """Return the Triton kernels in their default configuration; they refuse a precision that a GPU lacks."""
    if device == "cpu":
        raise UnsupportedError("triton needs a GPU: its interpreter checks kernels and cannot time them")
    return getattr(kernels_of("triton", device, precision), kernel)


def _tuned(precision: str, kernel: str, device: str) -> Function:
    """Return the Triton kernels in whichever configuration is fastest here, found at the first call."""
    from repro.kernels.launch.tuning import tuning

    plain = _triton(precision, kernel, device)

    def call(**inputs: Any) -> Results:
        with tuning():
            return plain(**inputs)

    return call


def _compiled(kernel: str, device: str) -> Function:
    """Return torch.compile of the reference; compiling happens at the first call."""
    plain = _plain("reference", kernel, device)
    # After a few shapes of one function torch.compile quietly stops compiling: every case gets a function of its own.
    own = FunctionType(plain.__code__.replace(), plain.__globals__, kernel, plain.__defaults__, plain.__closure__)
    own.__kwdefaults__ = plain.__kwdefaults__
    compiled = torch.compile(own, dynamic=False)

    def call(**inputs: Any) -> Results:
        with _quiet("torch._dynamo", "torch._inductor"):
            try:
                results: Results = compiled(**inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise UnsupportedError(f"torch.compile: {_first_line(error)}") from error
        return results

    return call


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep libraries from logging warnings onto the table."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """Return the cause in one line: compilers answer in pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("backend=")]
    return lines[0][:200] if lines else type(error).__name__


def _matmul_topk(kernel: str, device: str) -> Function:
    """Return the usual two lines, in the dtype of the arguments: a matrix product and `topk`."""
    del kernel, device

    def call(resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor | None) -> Results:
        logits = resid @ W_U if b_U is None else torch.addmm(b_U, resid, W_U)
        values, ids = logits.topk(2)
        return values, ids, None if chosen is None else logits.gather(1, chosen)

    return call


def _alone(kernel: str, device: str) -> Function:
    """Return the path for CPUs as it is where no C compiler built its loop."""
    if fused.library() is None:
        raise UnsupportedError("no C compiler built the loop here: tiled is torch alone")
    return fused.torch_alone()(_plain("torch", kernel, device))


# In the order of the rows. A further provider is one more entry.
PROVIDERS = (
    Provider(BASELINE, partial(_plain, "reference")),
    Provider("torch.compile", _compiled, compiles=True),
    Provider("matmul+topk", _matmul_topk, kernels=("top2_logits",)),
    Provider("tiled", partial(_plain, "torch"), devices=("cpu",), ours=True),
    Provider("torch alone", _alone, kernels=COMPILED, devices=("cpu",), ours=True),
    Provider("triton", partial(_triton, "ieee"), ours=True),
    *(
        Provider(f"triton {name}", partial(_triton, name), fp32=name, only_fp32=True, devices=("cuda",), ours=True)
        for name in ("tf32x3", "tf32")
    ),
    Provider("triton tuned", partial(_tuned, "ieee"), devices=("cuda",), ours=True),
    *(
        Provider(f"triton {name} tuned", partial(_tuned, name), fp32=name, only_fp32=True, devices=("cuda",), ours=True)
        for name in ("tf32x3", "tf32")
    ),
)
