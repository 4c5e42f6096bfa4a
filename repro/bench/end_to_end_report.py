"""What `bench --end-to-end` says: one line per measurement, medians over repeats, and growth with the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def line(row: Row) -> str:
    """Return a measurement of the paper in one line."""
    rate, products, largest = (row[f"{name}_flop_per_s"] for name in ("bare", "products", "matmul"))
    apart = row["start_up_s"] + row["rendering_s"]
    return (
        f"{row['prompts']:>4} prompts: paper {row['paper_s']:.1f} s (passes {row['passes_s']:.1f}, reductions "
        f"{row['reductions_s']:.1f}), bare forward {row['bare_s']:.1f} s, ratio {row['ratio']:.2f}; a prompt takes "
        f"{row['bare_s'] / row['prompts']:.2f} s, with unembedding {row['with_unembedding_s_per_prompt']:.2f} s; "
        f"forward at {rate / 1e9:.0f} GFLOP/s, {rate / products:.0%} of plain products of its shapes "
        f"({products / 1e9:.0f}), {rate / largest:.0%} of the largest one's {largest / 1e9:.0f}; "
        f"start-up {row['start_up_s']:.1f} s and "
        f"rendering {row['rendering_s']:.1f} s, together {apart:.1f} s; peak {row['peak_bytes'] / 2**20:.0f} MiB, "
        f"{row['peak_above_weights_bytes'] / 2**20:.0f} above the weights"
    )


def baseline_line(row: Row) -> str:
    """Return a measurement of the baseline, beside the paper over the same prompts, in one line."""
    prompts = row["prompts"]
    each = ", ".join(
        f"{name} {seconds / prompts:.2f} s ({row['experiment_ratio'][name]:.2g}x)"
        for name, seconds in row["experiment_s"].items()
    )
    without = f"; no baseline for {', '.join(row['left_out'])}" if row["left_out"] else ""
    return (
        f"{prompts:>4} prompts: baseline {row['baseline_s'] / prompts:.2f} s a prompt, paper "
        f"{row['paper_s'] / prompts:.2f} s, ratio {row['ratio']:.1f}; one figure alone beside the whole paper: {each}; "
        f"peak {row['peak_bytes'] / 2**20:.0f} MiB, the paper's {row['paper_peak_bytes'] / 2**20:.0f}{without}"
    )


def medians(rows: Sequence[Row]) -> list[str]:
    """Return medians over repeats, with the smallest and largest ratio, where there were several."""
    said = []
    for record, name in (("paper", "paper to bare forward"), ("baseline", "baseline to paper")):
        for size in sorted({row["prompts"] for row in rows if row["record"] == record}):
            same = [row for row in rows if row["record"] == record and row["prompts"] == size]
            if len(same) > 1:
                ratios = [row["ratio"] for row in same]
                seconds = median(row[f"{record}_s"] for row in same)
                said.append(
                    f"{size:>4} prompts, median of {len(same)}: {record} {seconds:.1f} s, {name} {median(ratios):.2f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f})"
                )
    return said


def growth(rows: Sequence[Row]) -> list[str]:
    """Return how time and memory grow with prompts: slope, intercept, and the largest peak over the smallest."""
    said = []
    for record in ("paper", "baseline"):
        own = [row for row in rows if row["record"] == record]
        sizes = sorted({row["prompts"] for row in own})
        if len(sizes) < 2:
            continue
        seconds = [median(row[f"{record}_s"] for row in own if row["prompts"] == size) for size in sizes]
        peaks = [median(row["peak_bytes"] for row in own if row["prompts"] == size) for size in sizes]
        slope, intercept = np.polyfit(sizes, seconds, 1)
        said.append(f"{record}, time: {slope:.3f} s a prompt {intercept:+.1f} s")
        more = f"{peaks[-1] / peaks[0] - 1:+.1%} from {sizes[0]} to {sizes[-1]} prompts"
        said.append(f"{record}, peak memory: {more}")
    return said
