"""What a compiled kernel holds: instructions, barriers and matrix products of its inner loop, and how wide it loads."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_WIDE = re.compile(r"\b(?:LDG\S*\.128|LDGSTS\S*\.128|UTMALDG\S*|(?:buffer|global)_load_dwordx4)\b")
_NARROW = re.compile(r"\b(?:LDG\.E(?!\S*\.(?:64|128))\S*|(?:buffer|global)_load_(?:dword|ushort|short_d16\w*))\b(?!x)")
_MATRIX = re.compile(r"\b(?:HGMMA|HMMA|v_mfma)\w*")
_BARRIER = re.compile(r"\b(?:BAR\.SYNC\S*|s_barrier)\b")
_LABEL = re.compile(r"^\s*(\.L\w+):")
_BRANCH = re.compile(r"\b(?:BRA\S*|s_cbranch_\w+|s_branch)\s.*?(\.L\w+)")
# SASS writes an address before each instruction; AMD's assembly an instruction on a line, begun by a blank.
_INSTRUCTION = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/\s+\S|(?:[sv]_|ds_|buffer_|global_|flat_|scratch_)\w+)")


@dataclass(frozen=True)
class Code:
    """The text of a compiled kernel, with what the compiler says of its registers."""

    text: str
    registers: int
    """Per thread, accumulation registers included."""
    spills: int
    """Bytes of local memory per thread (NVIDIA) or vector registers spilled (AMD)."""


def count(text: str) -> int:
    """Return how many instructions a text holds."""
    return sum(1 for line in text.splitlines() if _INSTRUCTION.match(line))


def wide_loads(text: str) -> int:
    """Return how many loads of 128 bits from global memory a text holds."""
    return len(_WIDE.findall(text))


def narrow_loads(text: str) -> int:
    """Return how many loads of 32 bits or fewer from global memory a text holds."""
    return len(_NARROW.findall(text))


def matrix_instructions(text: str) -> int:
    """Return how many instructions of a text are matrix products."""
    return len(_MATRIX.findall(text))


def barriers(text: str) -> int:
    """Return at how many places a text waits for all warps of its block."""
    return len(_BARRIER.findall(text))


def inner_loop(text: str) -> str:
    """Return the longest loop that holds no other, of those with matrix products if there are any."""
    lines = text.splitlines()
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for at, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = at
        branch = _BRANCH.search(line)
        if branch and branch[1] in labels:
            loops.append((labels[branch[1]], at + 1))
    innermost = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]
    bodies = ["\n".join(lines[first:last]) for first, last in innermost]
    # Behind the last instruction of every NVIDIA kernel is a loop of one, which is never reached.
    bodies = [body for body in bodies if count(body) > 2]
    return max(bodies, key=lambda body: (matrix_instructions(body) > 0, count(body)), default=text)


def nvidia(cubin: bytes) -> Code:
    """Return what Triton's own tools read from a cubin."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", str(file))
        text = _output(knobs.nvidia.nvdisasm.path, "-c", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage said nothing of registers: {usage[:200]!r}")
    registers, stack, local = map(int, found.groups())
    return Code(text, registers, stack + local)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - Triton's own tools


def amd(assembly: str) -> Code:
    """Return what AMD's assembly says of itself.

    Scalar registers are spilled into lanes of vector registers, not into memory, and are not counted.
    """
    counts = {name: int(n) for name, n in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", assembly)}
    return Code(assembly, counts["vgpr_count"], counts["vgpr_spill_count"])
