"""What the compilers make of every kernel, found without a GPU: registers, spills, shared memory, instructions.

Predicted times are rooflines of declared rates, not measurements. Compilation runs in processes of its own, because in
one that interprets Triton (TRITON_INTERPRET) nothing can be compiled.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.kernels.bench import cases, roofline
from repro.kernels.bench.providers import DTYPES
from repro.kernels.registry import KERNELS, triton_modules
from repro.kernels.work import Shape, Work

PREDICTED = (
    "compiled ahead of time, not run: the times are PREDICTED from declared rates (the longer of FLOP / matrix-product "
    "rate and bytes / memory rate), no kernel can be faster and none was measured"
)
SHAPE = "paper"

_WIDE = re.compile(r"\b(?:LDG\S*\.128|LDGSTS\S*\.128|UTMALDG\S*|(?:buffer|global)_load_dwordx4)\b")
_MATRIX = re.compile(r"\b(?:HGMMA|HMMA|v_mfma)\w*")


@dataclass(frozen=True)
class Entry:
    """One module in one precision for one card; its specs are compiled together."""

    card: str
    dtype: str
    precision: str
    module: str


def entries() -> list[Entry]:
    """Return every pair of module and precision that exists, card by card."""
    return [
        Entry(card.name, dtype, precision, module)
        for card in roofline.CARDS
        for dtype, precision in (("fp32", "ieee"), ("fp32", "tf32x3"), ("bf16", "bf16"), ("fp16", "fp16"))
        if roofline.exists(card, precision)
        for module in triton_modules()
    ]


@dataclass
class Compiled:
    """One launch in one configuration, as compiled for one card."""

    launch: str
    module: str
    dtype: str
    precision: str
    card: str
    arch: str
    configuration: str
    default: bool
    registers: int
    """Per thread, accumulation registers included."""
    spills: int
    """Bytes of local memory per thread (NVIDIA) or vector registers spilled (AMD)."""
    shared: int
    """Bytes per block."""
    shared_limit: int
    matrix: int
    """Matrix instructions in the code (HMMA, HGMMA, MFMA)."""
    wide: int
    """Loads of 128 bits from global memory in the code (LDG.128, LDGSTS.128, TMA, load_dwordx4)."""
    multiplies: bool
    """Whether it holds a matrix product at all."""
    seconds: float
    flop: float | None = None
    bytes: float | None = None
    predicted_us: float | None = None
    bound: str | None = None

    def problems(self) -> list[str]:
        """Return what keeps the default configuration of a kernel out of a release; empty if nothing does."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills}")
        if self.shared > self.shared_limit:
            found.append(f"shared memory {self.shared} of {self.shared_limit}")
        # NVIDIA's matrix units do not multiply whole float32; AMD's do.
        if self.multiplies and not self.matrix and (self.precision != "ieee" or self.arch.startswith("gfx")):
            found.append("no matrix instructions")
        if not self.wide:
            found.append("no 128-bit loads")
        return found


def _work(launch: str, dtype: str) -> Work | None:
    """Return the least FLOP and bytes of a launch at the measured shape; None for a launch that is not declared."""
    kernel, shape = KERNELS[launch.split(".")[0]], _shape()
    declared = kernel.launches(shape, DTYPES[dtype].itemsize)
    if launch == kernel.name and launch not in declared:
        return cases.Case(kernel, shape).least(DTYPES[dtype])
    return declared.get(launch)


def _shape() -> Shape:
    return next(shape for shape in cases.SHAPES if shape.name == SHAPE)


def compile_entry(entry: Entry, everything: bool = False) -> Iterator[Compiled]:
    """Compile the launches of an entry in their default configuration, or in every one that tuning may choose."""
    from repro.kernels.launch import tuning

    module = importlib.import_module(f"repro.kernels.{entry.module}")
    card = roofline.card(entry.card)
    precision = entry.precision if entry.dtype == "fp32" else "ieee"
    seen: set[str] = set()
    chosen = tuning.choose
    for index in range(100 if everything else 1):

        def choose(key: Any, candidates: Any, build: Callable[[Any], Any], time: Any = None, at: int = index) -> Any:
            return build(candidates[min(at, len(candidates) - 1)])

        tuning.choose = choose
        try:
            specs = module.compile_specs(DTYPES[entry.dtype], _shape().sizes(), card.backend, precision)
        finally:
            tuning.choose = chosen
        new = {name: spec for name, spec in specs.items() if f"{name} {_configuration(spec)}" not in seen}
        if not new:
            return
        for name, spec in new.items():
            seen.add(f"{name} {_configuration(spec)}")
            # Without a matrix product one precision of float32 is like another.
            if "PRECISION" in spec.constexprs or entry.precision != "tf32x3":
                yield _compiled(entry, card, name, spec, default=index == 0)


def _configuration(spec: Any) -> str:
    blocks = {key: value for key, value in spec.constexprs.items() if re.fullmatch("B[A-Z]", key)}
    return " ".join(f"{k}={v}" for k, v in blocks.items()) + f" warps={spec.num_warps} stages={spec.num_stages}"


def _compiled(entry: Entry, card: roofline.Card, name: str, spec: Any, default: bool) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from repro.kernels.launch.launch import ENABLE_FP_FUSION

    before = time.monotonic()
    kernel = triton.compile(
        ASTSource(spec.fn, spec.signature, spec.constexprs, spec.attrs),
        target=GPUTarget(card.backend, card.arch, card.warp),
        options={"num_warps": spec.num_warps, "num_stages": spec.num_stages, "enable_fp_fusion": ENABLE_FP_FUSION},
    )
    seconds = time.monotonic() - before
    code, registers, spills = _nvidia(kernel.asm["cubin"]) if card.backend == "cuda" else _amd(kernel.asm["amdgcn"])
    row = Compiled(
        launch=name,
        module=entry.module,
        dtype=entry.dtype,
        precision=entry.precision,
        card=card.name,
        arch=f"sm_{card.arch}" if card.backend == "cuda" else str(card.arch),
        configuration=_configuration(spec),
        default=default,
        registers=registers,
        spills=spills,
        shared=kernel.metadata.shared,
        shared_limit=card.shared,
        matrix=matrix_instructions(code),
        wide=wide_loads(code),
        multiplies="PRECISION" in spec.constexprs,
        seconds=seconds,
    )
    work = _work(name, entry.dtype)
    if work is not None:
        rate = card.rates[entry.precision] if row.multiplies else card.rates["ieee"]
        row.flop, row.bytes = work.flop, work.bytes
        row.predicted_us = 1e6 * roofline.floor_seconds(work, rate, card.memory)
        row.bound = roofline.bound(work, rate, card.memory)
    return row


def wide_loads(code: str) -> int:
    """Return how many loads of 128 bits from global memory a program holds."""
    return len(_WIDE.findall(code))


def matrix_instructions(code: str) -> int:
    """Return how many instructions of a program are matrix products."""
    return len(_MATRIX.findall(code))


def _nvidia(cubin: bytes) -> tuple[str, int, int]:
    """Return SASS, registers and bytes of local memory per thread, by the tools that come with Triton."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", str(file))
        code = _output(knobs.nvidia.nvdisasm.path, "-c", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage said nothing of registers: {usage[:200]!r}")
    registers, stack, local = map(int, found.groups())
    return code, registers, stack + local


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - Triton's own tools


def _amd(assembly: str) -> tuple[str, int, int]:
    """Return assembly, vector registers per lane (with accumulation registers) and vector registers spilled.

    Scalar registers are spilled into lanes of vector registers, not into memory, and are not counted.
    """
    counts = {name: int(n) for name, n in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", assembly)}
    return assembly, counts["vgpr_count"], counts["vgpr_spill_count"]


def main(arguments: list[str]) -> int:
    """Compile every n-th entry from the i-th on, given `i/n [--all]`; print one JSON object a line."""
    first, step = map(int, arguments[0].split("/"))
    everything = "--all" in arguments[1:]
    for entry in entries()[first::step]:
        try:
            for row in compile_entry(entry, everything):
                _say({**asdict(row), "problems": row.problems()})
        except Exception as error:  # one configuration that no compiler takes leaves the others standing
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            _say({**asdict(entry), "launch": entry.module, "error": reason, "problems": ["does not compile"]})
    return 0


def _say(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"record": "compile", **record}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
