"""`bench --end-to-end`: what the whole paper costs beside the bare forward pass, measured in one process each.

A seeded random model of gelu-4l's shape stands in for the paper's: time and memory do not depend on the weights.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from repro.errors import Exit, ReproError

SHAPE = {"d_model": 512, "n_layers": 4, "d_mlp": 2048, "d_head": 64, "n_heads": 8, "n_ctx": 1024, "d_vocab": 48262}
WORDS = ("the", "church", "is", "on", "top", "bottom", "state", "university")
SUBJECT = """
[subject.shape]
model = "model"
writer = "L0H2"
erasers = ["L2H2", "L2H3", "L2H4", "L2H5", "L2H6", "L2H7"]
examples = [
  { label = "one", text = "the church is on the", answer = "top", other = "bottom", head = "L3H1" },
  { label = "two", text = "the state is the", answer = "university", other = "state", head = "L2H1" },
  { label = "three", text = "the church", answer = "is", other = "on", head = "L3H5" },
  { label = "four", text = "the church is the", answer = "church", other = "top", head = "L2H2" },
]
"""


def parse_sizes(text: str) -> list[int]:
    """Numbers of prompts such as `10,30,100`. Raises ReproError (exit 2)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ReproError(f"--sizes {text}: give numbers of prompts separated by commas, such as 10,30,100,300")
    return [int(part) for part in parts]


def make_subject(root: Path, spec: Path, prompts: int, seed: int = 0) -> Path:
    """A folder with a spec, the shape's random model, and prompts of random tokens; returns the spec's path."""
    import torch
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = root / "model"
    model.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * 0.03 + mean

    D, K, H, M, V = (SHAPE[key] for key in ("d_model", "d_head", "n_heads", "d_mlp", "d_vocab"))
    weights = {"embed.W_E": normal(V, D), "pos_embed.W_pos": normal(SHAPE["n_ctx"], D)}
    weights |= {
        "ln_final.w": normal(D, mean=1),
        "ln_final.b": normal(D),
        "unembed.W_U": normal(D, V),
        "unembed.b_U": normal(V),
    }
    for layer in range(SHAPE["n_layers"]):
        block = {f"attn.W_{x}": normal(H, D, K) for x in "QKV"} | {f"attn.b_{x}": normal(H, K) for x in "QKV"}
        block |= {"attn.W_O": normal(H, K, D), "attn.b_O": normal(D), "mlp.W_in": normal(D, M), "mlp.b_in": normal(M)}
        block |= {"mlp.W_out": normal(M, D), "mlp.b_out": normal(D)}
        block |= {f"{norm}.{part}": normal(D, mean=float(part == "w")) for norm in ("ln1", "ln2") for part in "wb"}
        weights |= {f"blocks.{layer}.{name}": tensor for name, tensor in block.items()}
    save_file(weights, model / "model.safetensors")
    (model / "config.json").write_text(
        json.dumps({**SHAPE, "act_fn": "gelu", "normalization": "LN", "attn_only": False})
    )
    tokens = np.random.default_rng(seed).integers(1, V, (prompts, SHAPE["n_ctx"])).astype(np.int32)
    tokens[:, 0] = 0
    save_arrays({"tokens": tokens}, model / "prompts.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: index + 1 for index, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    path = root / "experiments.toml"
    path.write_text(spec.read_text() + SUBJECT)
    return path


def child(spec: Path, prompts: int) -> dict[str, Any]:
    """One process's measurement: the bare forward before and after the paper's passes, over the same prompts."""
    import torch

    from repro.forward import normed, trace
    from repro.run import Session, execute
    from repro.session import Request, World

    started = time.perf_counter()
    world = World(Request(spec=spec, subject="shape", prompts=prompts), lambda line: None)
    chosen = world.choose(ask=False)
    plan = world.plan(chosen)
    session = Session(chosen, world.settings, 2**31, lambda line: None)
    engine = session.engine
    start_up = time.perf_counter() - started
    weights = _rss()
    model, tokens = engine.model, torch.from_numpy(chosen.tokens[:prompts].astype(np.int64))

    def bare(rows: range) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            for row in rows:
                trace(model, tokens[row : row + 1])
        return time.perf_counter() - begun

    bare(range(1))
    rate = [_matmul_rate()]
    before = bare(range(0, prompts, 2))
    begun = time.perf_counter()
    outcomes = execute(plan, plan.todo, session)
    paper = time.perf_counter() - begun
    after = bare(range(1, prompts, 2))
    rate.append(_matmul_rate())
    if failed := [outcome for outcome in outcomes if outcome.error]:
        raise ReproError(f"{failed[0].name}: {failed[0].error}", Exit.FAILED)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sample = range(min(prompts, 3))
    begun = time.perf_counter()
    with torch.inference_mode():
        for row in sample:
            normed(model, trace(model, tokens[row : row + 1]).final) @ model.W_U + model.b_U
    unembedded = (time.perf_counter() - begun) / len(sample)
    flop = chosen.folder.shape.flop_per_token(SHAPE["n_ctx"]) * SHAPE["n_ctx"] * prompts
    return {
        "prompts": prompts,
        "start_up_s": start_up,
        "bare_s": before + after,
        "with_unembedding_s_per_prompt": unembedded,
        "paper_s": paper,
        "passes_s": session.seconds["passes"],
        "reductions_s": session.seconds["reductions"],
        "ratio": paper / (before + after),
        "bare_flop_per_s": flop / (before + after),
        "matmul_flop_per_s": median(rate),
        "peak_bytes": peak,
        "peak_above_weights_bytes": peak - weights,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _rss() -> int:
    """Resident bytes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _matmul_rate() -> float:
    """FLOP per second of the forward's largest matrix product, float32."""
    import torch

    a, b = torch.randn(1024, 512), torch.randn(512, 2048)
    times = []
    with torch.inference_mode():
        for _ in range(20):
            begun = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - begun)
    return 2 * 1024 * 512 * 2048 / median(times)


def end_to_end(
    spec: Path, store: Path, sizes: Sequence[int], repeats: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measures the paper at several numbers of prompts, each in a process of its own, and keeps the rows.

    spec: the paper's spec; store: the store's root, rows go to `bench/end_to_end.jsonl`; sizes: numbers of prompts;
    repeats: processes per size. Returns all rows. Raises ReproError (exit 1) if a run fails.
    Agreement: tests/test_endtoend.py.
    """
    folder = Path(tempfile.mkdtemp(prefix="end-to-end-"))
    rows = []
    try:
        made = make_subject(folder, spec, max(sizes))
        for size in sizes:
            for repeat in range(repeats):
                shutil.rmtree(folder / "store", ignore_errors=True)
                row = {**_in_child(made, size), "repeat": repeat}
                rows.append(row)
                say(line(row))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for text in growth(rows):
        say(text)
    (store / "bench").mkdir(parents=True, exist_ok=True)
    (store / "bench" / "end_to_end.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    return rows


def _in_child(spec: Path, prompts: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "repro.endtoend", str(spec), str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter and module
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ReproError(f"end-to-end run of {prompts} prompts failed: {last}", Exit.FAILED)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def line(row: dict[str, Any]) -> str:
    """A measurement in one line."""
    share = row["bare_flop_per_s"] / row["matmul_flop_per_s"]
    return (
        f"{row['prompts']:>4} prompts: paper {row['paper_s']:.1f} s (passes {row['passes_s']:.1f}, reductions "
        f"{row['reductions_s']:.1f}), bare forward {row['bare_s']:.1f} s, ratio {row['ratio']:.2f}; forward at "
        f"{row['bare_flop_per_s'] / 1e9:.0f} GFLOP/s, {share:.0%} of the matrix product's "
        f"{row['matmul_flop_per_s'] / 1e9:.0f}; "
        f"start-up {row['start_up_s']:.1f} s; peak {row['peak_bytes'] / 2**20:.0f} MiB, "
        f"{row['peak_above_weights_bytes'] / 2**20:.0f} above the loaded model"
    )


def growth(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How time and memory grow with the number of prompts: slope, intercept, and the largest peak over the smallest."""
    sizes = sorted({row["prompts"] for row in rows})
    if len(sizes) < 2:
        return []
    seconds = [median(row["paper_s"] for row in rows if row["prompts"] == size) for size in sizes]
    peaks = [median(row["peak_bytes"] for row in rows if row["prompts"] == size) for size in sizes]
    slope, intercept = np.polyfit(sizes, seconds, 1)
    return [
        f"time: {slope:.3f} s a prompt + {intercept:.1f} s",
        f"peak memory: {peaks[-1] / peaks[0] - 1:+.1%} from {sizes[0]} to {sizes[-1]} prompts",
    ]


if __name__ == "__main__":
    print(json.dumps(child(Path(sys.argv[1]), int(sys.argv[2]))))
