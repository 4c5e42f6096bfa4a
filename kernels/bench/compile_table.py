"""What the compilers make of every kernel, found without a GPU: registers, spills, barriers, instructions, loads.

Every launch is compiled as it is made at every declared shape, and gated. Predicted times are bounds, not measurements.
Compilation runs in processes of its own, because in one that interprets Triton (TRITON_INTERPRET) nothing compiles.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from repro.kernels.bench import assembly, cases, roofline
from repro.kernels.bench.assembly import Code
from repro.kernels.bench.providers import DTYPES
from repro.kernels.launch import tuning
from repro.kernels.launch.launch import ENABLE_FP_FUSION, Launch
from repro.kernels.registry import KERNELS, triton_modules
from repro.kernels.work import Shape, Work

PREDICTED = (
    "compiled ahead of time, not run: the times are PREDICTED from declared rates (the longest of what memory, cache, "
    "matrix units and instruction issue take at least), no kernel can be faster and none was measured"
)
# Waits for all warps of a block in one pass of an inner loop: two for what is loaded ahead, and two where a tile is
# laid out anew. In the attention the largest score of a query and their sum may cross warps, too; Hopper's products of
# three TF32 parts lay out each part of a block of nodes.
MOST_BARRIERS = {"attend_kernel": 10, "sums_kernel": 10}
FEW_BARRIERS = 4
# Times that components may be read, against once.
MOST_READS = 1.3
# Components up to which each head is formed once.
FORMED_ONCE = 64
# fp16 takes the tiles of bf16 and differs in the instruction alone: one shape shows that it compiles.
ONE_SHAPE = {"fp16": "paper"}


@dataclass(frozen=True)
class Entry:
    """One module in one precision for one card; its launches are compiled together."""

    card: str
    dtype: str
    precision: str
    module: str


def entries() -> list[Entry]:
    """Return every pair of module and precision that exists, card by card."""
    return [
        Entry(card.name, dtype, precision, module)
        for card in roofline.CARDS.values()
        for dtype, precision in (("fp32", "ieee"), ("fp32", "tf32x3"), ("bf16", "bf16"), ("fp16", "fp16"))
        if precision in card.rates  # HIP has no TF32x3
        for module in triton_modules()
    ]


@dataclass
class Compiled:
    """One launch in one configuration at one shape, as compiled for one card."""

    launch: str
    kernel: str
    shape: str
    module: str
    dtype: str
    precision: str
    card: str
    arch: str
    configuration: str
    default: bool
    components: int
    registers: int
    """Per thread, accumulation registers included."""
    spills: int
    """Bytes of local memory per thread (NVIDIA) or vector registers spilled (AMD)."""
    shared: int
    """Bytes per block."""
    shared_limit: int
    instructions: int
    """In the whole code."""
    loop: int
    """In its longest inner loop."""
    barriers: int
    """In that loop."""
    matrix: int
    """Matrix instructions in the code (HMMA, HGMMA, MFMA)."""
    wide: int
    """Loads of 128 bits from global memory in the code (LDG.128, LDGSTS.128, TMA, load_dwordx4)."""
    narrow: int
    """Loads of at most 32 bits from global memory in that loop."""
    multiplies: bool
    """Whether it holds a matrix product at all."""
    programs: int
    calls: int
    """Launches in one call of the function."""
    seconds: float
    component_reads: float | None = None
    """Times that each component is loaded."""
    formed: float | None = None
    """Times that each head's output is formed."""
    tile_flop: float | None = None
    """Products of whole tiles, of all launches."""
    loaded: float | None = None
    """Bytes that all launches load, whatever cache has them."""
    flop: float | None = None
    bytes: float | None = None
    predicted_us: float | None = None
    """The longest of the bounds, times the launches, and what the vendor's library does beside them."""
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
        if self.multiplies and not self.wide:
            found.append("no 128-bit loads")
        if self.multiplies and self.narrow:
            found.append(f"{self.narrow} narrow loads in the inner loop")
        if self.multiplies and self.barriers > MOST_BARRIERS.get(self.kernel, FEW_BARRIERS):
            found.append(f"{self.barriers} barriers in the inner loop")
        if (self.component_reads or 0) > MOST_READS:
            found.append(f"components read {self.component_reads:.1f} times")
        if self.components <= FORMED_ONCE and (self.formed or 0) > 1:
            found.append(f"heads formed {self.formed:.1f} times")
        return found


def launches_of(entry: Entry, shape: Shape) -> dict[str, Launch]:
    """Return launch -> the launch that an entry's module makes at a shape, of the kernels that declare that shape."""
    module, card = importlib.import_module(f"repro.kernels.{entry.module}"), roofline.CARDS[entry.card]
    precision = entry.precision if entry.dtype == "fp32" else "ieee"
    made: dict[str, Launch] = module.launches(DTYPES[entry.dtype], shape.sizes(), roofline.vendor(card), precision)
    return {name: launch for name, launch in made.items() if shape.name in KERNELS[name.split(".")[0]].shapes}


def compile_entry(entry: Entry, everything: bool = False) -> Iterator[Compiled]:
    """Compile the launches of an entry in their default configuration, or in every one that tuning may choose."""
    card = roofline.CARDS[entry.card]
    known: dict[str, tuple[Code, int]] = {}
    only = ONE_SHAPE.get(entry.dtype)
    for shape in (shape for shape in cases.SHAPES if only in (None, shape.name)):
        seen: set[str] = set()
        for index in range(100 if everything else 1):
            with tuning.candidate(index):
                made = launches_of(entry, shape)
            new = {name: launch for name, launch in made.items() if f"{name} {_configuration(launch)}" not in seen}
            if not new:
                break
            for name, launch in new.items():
                seen.add(f"{name} {_configuration(launch)}")
                # Without a matrix product one precision of float32 is like another.
                if "PRECISION" in launch.constexprs or entry.precision != "tf32x3":
                    before = time.monotonic()
                    code, shared = compiled(launch, card, known)
                    row = _row(entry, card, shape, name, launch, code, shared)
                    row.seconds, row.default = time.monotonic() - before, index == 0
                    yield row


def _configuration(launch: Launch) -> str:
    blocks = {key: value for key, value in launch.constexprs.items() if re.fullmatch("B[A-Z]", key)}
    sizes = " ".join(f"{key}={value}" for key, value in blocks.items())
    return f"{sizes} warps={launch.constexprs['num_warps']} stages={launch.constexprs['num_stages']}"


def compiled(launch: Launch, card: roofline.Card, known: dict[str, tuple[Code, int]]) -> tuple[Code, int]:
    """Return code and bytes of shared memory; shapes that differ in numbers alone share one compilation."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    spec = launch.compile_spec()
    key = repr((spec.fn.__name__, *spec[1:]))
    if key not in known:
        kernel = triton.compile(
            ASTSource(spec.fn, spec.signature, spec.constexprs, spec.attrs),
            target=GPUTarget(card.backend, card.arch, card.warp),
            options={"num_warps": spec.num_warps, "num_stages": spec.num_stages, "enable_fp_fusion": ENABLE_FP_FUSION},
        )
        cuda = card.backend == "cuda"
        code = assembly.nvidia(kernel.asm["cubin"]) if cuda else assembly.amd(kernel.asm["amdgcn"])
        known[key] = code, kernel.metadata.shared
    return known[key]


def _row(
    entry: Entry, card: roofline.Card, shape: Shape, name: str, launch: Launch, code: Code, shared: int
) -> Compiled:
    loop = assembly.inner_loop(code.text)
    row = Compiled(
        launch=name,
        kernel=launch.fn.__name__,
        shape=shape.name,
        module=entry.module,
        dtype=entry.dtype,
        precision=entry.precision,
        card=card.name,
        arch=f"sm_{card.arch}" if card.backend == "cuda" else str(card.arch),
        configuration=_configuration(launch),
        default=True,
        components=shape.components,
        registers=code.registers,
        spills=code.spills,
        shared=shared,
        shared_limit=card.shared,
        instructions=assembly.count(code.text),
        loop=assembly.count(loop),
        barriers=assembly.barriers(loop),
        matrix=assembly.matrix_instructions(code.text),
        wide=assembly.wide_loads(code.text),
        narrow=assembly.narrow_loads(loop),
        multiplies="PRECISION" in launch.constexprs,
        programs=math.prod(launch.grid),
        calls=launch.tiling.calls if launch.tiling else 1,
        seconds=0.0,
    )
    work = work_of(name, shape, entry.dtype)
    if work is not None:
        row.flop, row.bytes = work.flop, work.bytes
        _predict(row, card, launch, work)
    return row


def work_of(launch: str, shape: Shape, dtype: str) -> Work | None:
    """Return the least FLOP and bytes of all launches of one name; None for one that is not declared."""
    kernel = KERNELS[launch.split(".")[0]]
    declared = kernel.launches(shape, DTYPES[dtype].itemsize)
    if launch == kernel.name and launch not in declared:
        return cases.Case(kernel, shape).least(DTYPES[dtype])
    return declared.get(launch)


def _predict(row: Compiled, card: roofline.Card, launch: Launch, work: Work) -> None:
    """Add what the tiles make of the least work, and the time that they take at least."""
    rate = card.rates[row.precision if row.multiplies else "ieee"]
    tiling = launch.tiling
    if tiling is None:
        seconds, row.bound = roofline.floor(work, rate, card.memory)
        row.predicted_us = 1e6 * seconds
        return
    tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    loaded = sum(tiling.reads.get(name, 1) * value.numel() * value.element_size() for name, value in tensors.items())
    issue = roofline.Issue(
        row.programs, int(launch.constexprs["num_warps"]), row.instructions + tiling.steps * row.loop
    )
    # Heads formed beforehand stay in cache: of the launch's own bytes the call's least is what memory moves.
    least = Work(work.flop / tiling.calls, work.bytes / tiling.calls)
    bounds = roofline.predicted_seconds(card, least, loaded, tiling.flop, rate, issue)
    row.bound = max(bounds, key=lambda name: bounds[name])
    flop, moved = tiling.library
    # The library has no TF32x3: whole float32 is multiplied as it is.
    library = max(flop / card.rates["ieee" if row.dtype == "fp32" else row.precision], moved / card.cache)
    row.predicted_us = 1e6 * (tiling.calls * bounds[row.bound] + library)
    row.loaded, row.tile_flop = tiling.calls * loaded, tiling.calls * tiling.flop + flop
    row.component_reads, row.formed = tiling.reads.get("of_ptr"), tiling.formed or None


def table(
    everything: bool = False, only: Sequence[str] = (), first: int = 0, step: int = 1
) -> Iterator[dict[str, Any]]:
    """Compile every step-th entry from the first on, and yield the rows; one that does not compile says so.

    everything: every configuration that tuning may choose; only: pairs of card and precision (`H100/bf16`), or all.
    """
    chosen = [entry for entry in entries() if not only or f"{entry.card}/{entry.precision}" in only]
    for entry in chosen[first::step]:
        try:
            for row in compile_entry(entry, everything):
                yield {"record": "compile", **asdict(row), "problems": row.problems()}
        except Exception as error:  # one configuration that no compiler takes leaves the others standing
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            failed = {"launch": entry.module, "error": reason, "problems": ["does not compile"]}
            yield {"record": "compile", **asdict(entry), **failed}


if __name__ == "__main__":
    for line in map(json.dumps, table()):
        sys.stdout.write(f"{line}\n")
