"""`bench --end-to-end`: what the whole paper costs beside the bare forward pass, and beside the libraries alone.

A seeded random model of gelu-4l's shape stands in for the paper's: time and memory do not depend on the weights. Every
measurement has a process of its own: `child` here, and the one in `repro.bench.baseline`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from repro.bench.end_to_end_report import baseline_line, growth, line, medians
from repro.bench.meter import PAPER, above, age, peak
from repro.errors import Exit, ReproError

if TYPE_CHECKING:
    from repro.request import Workspace

Say = Callable[[str], None]
BASELINE_SIZES = (2, 4)
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
    """Return numbers of prompts such as `10,30,100`. Raises ReproError (exit 2)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ReproError(f"--sizes {text}: give numbers of prompts separated by commas, such as 10,30,100,300")
    return [int(part) for part in parts]


def make_subject(root: Path, spec: Path, prompts: int, seed: int = 0) -> Path:
    """Return a folder with a spec, the shape's random model, and prompts of random tokens; return the spec's path."""
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
    """Measure in one process: half of the bare forward, the paper's passes over the same prompts, the other half."""
    started = time.perf_counter()
    import torch

    from repro.bench.bare_forward import Bare
    from repro.request import Request, Workspace
    from repro.run.execute import execute
    from repro.run.session import Session

    workspace = Workspace(Request(spec=spec, subject="shape", prompts=prompts, only=PAPER), lambda line: None)
    chosen = workspace.choose(ask=False)
    plan = workspace.plan(chosen)
    session = Session(chosen, workspace.settings, 2**31, lambda line: None)
    model = session.engine(workspace.settings.precision).model
    start_up = time.perf_counter() - started
    tokens = torch.from_numpy(chosen.tokens[:prompts].astype(np.int64))
    bare = Bare(model, tokens, session.micro_batch(plan.todo[0].stream))
    bare.over(range(prompts // 2))
    begun = time.perf_counter()
    errors = execute(plan, plan.todo, session)
    paper = time.perf_counter() - begun
    for name, error in errors.items():
        raise ReproError(f"{name}: {error}", Exit.FAILED)
    # Before any logits: they are larger than all that the paper's passes hold.
    highest, above_weights = peak(), above(chosen.folder.weights)
    bare.over(range(prompts // 2, prompts), unembed=True)
    begun = time.perf_counter()
    figures = _draw(workspace)
    return {
        "prompts": prompts,
        "start_up_s": start_up,
        "bare_s": sum(bare.seconds),
        "with_unembedding_s_per_prompt": median(bare.unembedded),
        "paper_s": paper,
        **{f"{stage}_s": _spent(session.seconds, stage) for stage in ("passes", "reductions")},
        "stages_s": dict(session.seconds),
        "rendering_s": time.perf_counter() - begun,
        "figures": figures,
        "ratio": paper / sum(bare.seconds),
        **bare.rates(),
        "peak_bytes": highest,
        "peak_above_weights_bytes": above_weights,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _spent(seconds: Mapping[str, float], stage: str) -> float:
    """Return the seconds of a stage, at whatever precisions."""
    return sum(spent for name, spent in seconds.items() if name.split(" in ")[0] == stage)


def _draw(workspace: Workspace) -> int:
    """Draw every figure of the spec from the store; how many."""
    from repro.figures import draw as figures

    plan = workspace.plan(workspace.choose(ask=False))
    out = workspace.figures_folder(plan.subject.name)
    drawn = figures.draw(
        workspace.loaded,
        workspace.selection[1],
        partial(workspace.source, plan),
        out,
        fresh=True,
    )
    return sum(bool(figure.files) for figure in drawn)


def end_to_end(spec: Path, store: Path, sizes: Sequence[int], repeats: int, say: Say) -> list[dict[str, Any]]:
    """Measure the paper at several numbers of prompts, then beside the baseline, and keep the rows.

    spec: the paper's spec; store: the store's root, rows go to `bench/end_to_end.jsonl`; sizes: numbers of prompts;
    repeats: processes per size, taken in turn so that a busy hour does not fall on one size alone. Each row is written
    as soon as it is measured, to a file beside the last whole one, whose place it takes at the end. Returns all rows,
    whose `record` is "paper" or "baseline". Raises ReproError (exit 1) if a run fails or a row cannot be written.
    Agreement: tests/bench/test_endtoend.py.
    """
    path = store / "bench" / "end_to_end.jsonl"
    unfinished = path.with_name(f"{path.name}.part")
    folder = Path(tempfile.mkdtemp(prefix="end-to-end-"))
    rows: list[dict[str, Any]] = []
    try:
        with _writing(unfinished):
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text("")
        made = make_subject(folder, spec, max(*sizes, *BASELINE_SIZES))
        for row in _measured(made, sizes, repeats):
            rows.append(row)
            with _writing(unfinished), unfinished.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
            say(line(row) if row["record"] == "paper" else baseline_line(row))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for text in (*medians(rows), *growth(rows)):
        say(text)
    with _writing(path):
        unfinished.replace(path)
    return rows


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a write into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ReproError(
            f"cannot write {path}: {reason}; free the disk or choose another --out", Exit.FAILED
        ) from error


def _measured(spec: Path, sizes: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Yield rows as they are measured: the paper at every size, then beside the baseline, in turn over its prompts."""
    for repeat in range(repeats):
        for size in sizes:
            yield {"record": "paper", **_in_child("end_to_end", spec, size), "repeat": repeat}
    for size in BASELINE_SIZES:
        for repeat in range(repeats):
            paper, baseline = (_in_child(module, spec, size) for module in ("end_to_end", "baseline"))
            seconds = baseline["experiment_s"]
            yield {
                "record": "baseline",
                **baseline,
                "paper_s": paper["paper_s"],
                "paper_peak_bytes": paper["peak_bytes"],
                "ratio": baseline["baseline_s"] / paper["paper_s"],
                "experiment_ratio": {name: spent / paper["paper_s"] for name, spent in seconds.items()},
                "repeat": repeat,
            }


def _in_child(module: str, spec: Path, prompts: int) -> dict[str, Any]:
    """Return the row of one process that starts from an empty store."""
    shutil.rmtree(spec.parent / "store", ignore_errors=True)
    command = [sys.executable, "-m", f"repro.bench.{module}", str(spec), str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter and module
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ReproError(f"end-to-end run of {prompts} prompts failed ({module}): {last}", Exit.FAILED)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    before = age()
    measured = child(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(measured | {"start_up_s": measured["start_up_s"] + before}))
