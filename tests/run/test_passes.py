"""How often the model is run: one clean pass serves every experiment, and the unembedding only those that ask."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from repro.bench import end_to_end as endtoend
from repro.kernels import tiled
from repro.measures import batch as stream
from repro.measures import patched
from repro.measures.path_shares import REFERENCES
from repro.model import forward
from repro.model.decoder import Model
from repro.request import Request, Workspace
from repro.run import execute as run
from tests.runs import PAPER

SHAPE = {"d_model": 32, "n_layers": 4, "d_mlp": 64, "d_head": 8, "n_heads": 8, "n_ctx": 32, "d_vocab": 101}
PROMPTS, SCATTER = 40, 30


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Prompts that went through each expensive part while the default experiments ran on named roles."""
    monkeypatch.setattr(endtoend, "SHAPE", SHAPE)
    counts: Counter[str] = Counter()
    whole, again, unembed = stream.trace, patched.patched_run, tiled.top2_logits

    def trace(model: Model, tokens: object, *given: object, **named: object) -> object:
        counts["clean"] += len(tokens)  # type: ignore[arg-type]
        return whole(model, tokens, *given, **named)  # type: ignore[arg-type]

    def patched_run(batch: stream.Batch, *given: object, **named: object) -> object:
        counts["patched"] += len(batch.tokens)
        return again(batch, *given, **named)  # type: ignore[arg-type]

    def example(model: Model, tokens: object) -> object:
        counts["examples"] += len(tokens)  # type: ignore[arg-type]
        return whole(model, tokens)  # type: ignore[arg-type]

    def top2_logits(resid: object, *given: object) -> object:
        counts["rows unembedded"] += len(resid)  # type: ignore[arg-type]
        return unembed(resid, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "trace", trace)
    monkeypatch.setattr(patched, "patched_run", patched_run)
    monkeypatch.setattr(forward, "trace", example)
    monkeypatch.setattr(tiled, "top2_logits", top2_logits)
    world = Workspace(Request(spec=endtoend.make_subject(tmp_path, PAPER, PROMPTS), subject="shape"), lambda line: None)
    plan = world.plan(world.choose(ask=False))
    session = run.Session(plan.subject, world.settings, 2**31, lambda line: None)
    assert len(plan.todo) == 6
    assert run.execute(plan, plan.todo, session) == {}
    assert world.plan(plan.subject).todo == []
    return counts


def test_the_default_plan_runs_the_model_once(counted: Counter[str]) -> None:
    assert counted == {
        "clean": PROMPTS,
        "patched": PROMPTS,
        # What is prepared before the pass: four adversarial prompts, and the references of the scan.
        "examples": 4 + REFERENCES,
        # Units of four: the last unit of the scatter ends inside one.
        "rows unembedded": SCATTER * SHAPE["n_ctx"],
    }
