"""The answer as lines for a terminal: a table of erased writers, what else was found, and the verdict last."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from repro.scan.expected import Case, recall_line
from repro.scan.twin import Twin, twins_line
from repro.scan.verdict import Eraser, Scan, Writer

WIDTH = 100
MOST_WRITERS, MOST_ERASERS = 6, 4
HEADS = ("writer", "erased share", "decoys", "kind", "presence", "by", "clean", "path", "z", "p adj.", "after ablation")


def answer(
    rest: Scan,
    first: Scan,
    subject: str,
    n_positions: int,
    twins: Sequence[Twin] = (),
    known: Sequence[Case] = (),
) -> list[str]:
    """Return what a scan says, under 100 columns: header, table, what is not claimed, and the verdict last.

    twins: what is claimed in untrained twins; known: expected erasures of this model.
    """
    table = [*_table(shown), ""] if (shown := _shown(rest)) else []
    beside = said_beside(rest, first, twins, known)
    return [f"{subject}: {size(rest, n_positions)}", "", *table, *beside, "", verdict(rest)]


def size(scan: Scan, n_positions: int) -> str:
    """Return what was looked at: prompts, the pairs tested and to whose level they were held, decoys."""
    pairs = scan.pairs
    tested = f"{pairs.n_pairs:,} pairs tested"
    if pairs.family > pairs.n_pairs:
        tested += f", all through {_listed(pairs.components)} (p corrected for all {pairs.family:,})"
    return f"{pairs.n_prompts} prompts x {n_positions:,} tokens, {tested}, {pairs.n_decoys} decoys"


def said_beside(rest: Scan, first: Scan, twins: Sequence[Twin], known: Sequence[Case]) -> list[str]:
    """Return what is said beside the table: what else was found, and how sure it is."""
    return [*_rest(rest, len(_shown(rest)), twins), *_first_token(first), *recall_line(known)]


def _shown(scan: Scan) -> tuple[Writer, ...]:
    """Return the writers of the table."""
    return (scan.erased or scan.writers[:1])[:MOST_WRITERS]


def verdict(scan: Scan) -> str:
    """Return the answer in one sentence."""
    pairs = scan.pairs
    some = pairs.family > pairs.n_pairs
    if not scan.enough_prompts:
        return (
            f"Too few prompts: with {pairs.n_prompts} no pair of {pairs.family:,} can be claimed; "
            f"at least {pairs.least_prompts} are needed."
        )
    erased = scan.erased
    if not erased:
        slight = [w for w in scan.writers if w.words == "slightly"]
        weaker = f" {_count(slight, 'writer')} lose{'s' * (len(slight) == 1)} less than a quarter." if slight else ""
        where = f" to {_listed(pairs.components)}, the only components looked at" if some else ""
        return f"No erasure found: no writer is cleared of a quarter of what it writes{where}.{weaker}"
    mostly = [w for w in erased if w.words == "mostly erased"]
    top = mostly or list(erased)
    erasers = list(dict.fromkeys(e.component for w in top[:3] for e in w.erasers))
    extent = "more than half" if mostly else "a quarter or more"
    return (
        f"Erasure found: {_listed(erasers)} {'take' if len(erasers) > 1 else 'takes'} back {extent} of what "
        f"{_listed([w.label for w in top], 3)} {'write' if len(top) > 1 else 'writes'}."
    )


def _table(writers: Sequence[Writer]) -> list[str]:
    """Return the table: a line for each eraser, the writer's own columns on its first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in HEADS:
        table.add_column(head, justify="right" if head in ("clean", "path", "z") else "left", no_wrap=True)
    for writer in writers:
        own = (
            writer.label,
            f"{writer.erased:.2f} [{writer.interval[0]:.2f}, {writer.interval[1]:.2f}]",
            f"{writer.decoys:.2f}",
            writer.kind,
            f"{writer.before:.2f} -> {writer.after:.2f}",
        )
        strongest = sorted(writer.erasers, key=lambda e: e.specific)
        for i, eraser in enumerate(strongest[:MOST_ERASERS]):
            table.add_row(*(own if i == 0 else ("",) * len(own)), *_eraser(eraser))
        left = strongest[MOST_ERASERS:]
        if left:
            each = sum(e.path for e in left)
            table.add_row("", "", "", "", "", f"+{len(left)} more", "", f"{each:.2f}", "", "", "")
    text = StringIO()
    # Plain text, also in a notebook, where rich would show the table itself, and under FORCE_COLOR, which it sets.
    console = Console(
        file=text, width=WIDTH + 20, no_color=True, highlight=False, force_jupyter=False, force_terminal=False
    )
    console.print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _eraser(e: Eraser) -> tuple[str, ...]:
    p = "<1e-6" if e.p_adjusted < 1e-6 else f"{e.p_adjusted:.1g}"
    # Where little opposes on the prompts of the confirmation, a share of it says nothing.
    told = e.remaining is not None and e.remaining <= 1
    tested = f"{e.outcome}, {max(e.remaining or 0, 0):.0%} left" if told else e.outcome
    return (e.component, f"{e.clean:.2f}", f"{e.path:.2f}", f"{e.z:.0f}", p, tested)


def _rest(scan: Scan, shown: int, twins: Sequence[Twin]) -> list[str]:
    """Return what was found beside the table, and how sure it is."""
    lines = [f"{len(scan.erased) - shown} more writers are erased"] if len(scan.erased) > shown else []
    for words, said in (
        ("slightly", "erased by less than a quarter"),
        ("taken back, not cleared", "taken back, not cleared"),
        ("in few positions", "taken back in a few positions"),
    ):
        if found := [w for w in scan.writers if w.words == words]:
            strongest = max(found, key=lambda w: w.erased)
            lines.append(f"{said}: {_count(found, 'writer')} (most: {strongest.label}, {strongest.erased:.2f})")
    if scan.opposed:
        w, c, k = scan.opposed[0]
        lines.append(
            f"opposed in parallel, not because it was written: {len(scan.opposed)} pairs ({w} by {c}, {k:.2f})"
        )
    if scan.refuted:
        lines.append(f"refuted by intervention: {', '.join(f'{w} by {c}' for w, c in scan.refuted[:4])}")
    claimed = int(scan.pairs.claimed.sum())
    sure = [f"expected false pairs: {scan.pairs.false_pairs:.1f} of {claimed} claimed"]
    if scan.halves is not None:
        sure.append(f"halves: r {scan.halves[0]:.2f}, median difference {scan.halves[1]:.3f}")
    told, control = " · ".join(sure), [twins_line(twins)] if twins else []
    one = " · ".join((told, *control))
    return [*lines, one] if len(one) <= WIDTH else [*lines, told, *control]


def _first_token(scan: Scan) -> list[str]:
    """Return what is seen at position 0, which is one observation where all prompts begin alike."""
    what = "first token (one observation)" if scan.pairs.alone else f"first token ({scan.pairs.n_prompts} prompts)"
    if not scan.enough_prompts:
        return [f"{what}: too few prompts to claim anything"]
    if not scan.writers:
        return [f"{what}: nothing is taken back"]
    top = sorted(scan.writers, key=lambda w: -w.norm2)[:2]
    seen = [
        f"{w.label} ({w.before:.1f} -> {w.after:.1f}) by {_listed([e.component for e in w.erasers], 3)}" for w in top
    ]
    return [f"{what}: {'; '.join(seen)}"]


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) != 1 else ''}"


def _listed(labels: Sequence[str], most: int = 4) -> str:
    """Return labels as a phrase: A, B and C, cut after `most`."""
    labels = list(labels)
    if len(labels) > most:
        return f"{', '.join(labels[:most])} and {len(labels) - most} more"
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
