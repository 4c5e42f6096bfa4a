"""Hundreds of damaged and hostile model folders: one sentence, or a model that passes the self-check; nothing else."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from repro.errors import Exit, ReproError
from repro.model.folder import read_folder
from repro.model.load import load
from tests import toys
from tests.fuzzing import little_memory, sentences, watched, within
from tests.model_mutants import checkpoint, config, deeds, prompts, tokenizer, weights
from tests.runs import cli

SPECIMENS = {config: 180, weights: 120, checkpoint: 90, prompts: 90, tokenizer: 80}
PATIENCE = 20.0
"""Seconds for one folder; an honest one takes about 0.1."""
MEMORY = 3 << 30
"""Bytes of addresses that one folder may take; the toys need about 100 MiB."""
SPEC = """
[run]
default_subjects = ["toy"]
groups = ["paper"]
paper_subject = "toy"
[subject.toy]
model = "model"
writer = "L0H0"
erasers = ["L1H1", "L1H2"]
examples = [{ label = "a", text = "one two", answer = "two", other = "one", head = "L1H1" }]
[experiment.dla]
measure = "resampled_dla"
[figure]
"""


class Place:
    """Good folders of every kind, and a spec on the one that is spoilt."""

    def __init__(self, root: Path) -> None:
        self.root, self.model, self.spec = root, root / "model", root / "spec.toml"
        self.spec.write_text(SPEC)
        small = {"d_model": 16, "n_layers": 2, "d_mlp": 20, "d_head": 4, "n_ctx": 24}
        self.safe = [
            toys.make_native(root / "native", **small),
            toys.make_native(root / "rotary", **toys.ROTARY | {"n_ctx": 24}),
            toys.make_gpt2(root / "gpt2", n_layer=2, n_embd=16, n_positions=24),
            toys.make_llama(root / "llama"),
        ]
        self.checkpoint = Path(shutil.copytree(self.safe[0], root / "checkpoint"))
        torch.save(load_file(self.checkpoint / "model.safetensors"), self.checkpoint / "toy_final.pth")
        (self.checkpoint / "model.safetensors").unlink()
        for folder, text in zip(
            [*self.safe, self.checkpoint], [words(), pieces(), pieces(), pieces(), words()], strict=True
        ):
            toys.write_prompts(folder, n=4, length=12)
            (folder / "tokenizer.json").write_text(text)

    def take(self, folder: Path) -> Path:
        """A copy of a good folder, to be spoilt."""
        shutil.rmtree(self.model, ignore_errors=True)
        return Path(shutil.copytree(folder, self.model))

    def outcome(self) -> str:
        """What becomes of the spoilt folder; AssertionError or HangError for whatever must not."""
        with watched() as deeds_done, within(PATIENCE), little_memory(MEMORY):
            found, said = self._outcome()
        assert deeds_done == []
        assert not (self.model / "pwned").exists()
        # Sizes are checked before memory is asked for: the system never has to refuse it.
        assert not any(word in said for word in ("allocate", "MemoryError", "bad_alloc", "recursion")), said
        return found

    def _outcome(self) -> tuple[str, str]:
        answer = cli("plan", "--spec", self.spec, "--out", self.root / "out")
        assert answer.code in (Exit.OK, Exit.USAGE, Exit.UNAVAILABLE)
        if answer.code != Exit.OK:
            (said,) = sentences(answer.err)
            return f"refused without weights (exit {answer.code})", said
        assert answer.err == ""
        refused = self._refusal()
        if refused is None:
            return "loaded, self-check passed", ""
        assert refused.code == Exit.UNAVAILABLE
        (said,) = sentences(f"error: {refused.message}\n")
        return "weights refused (exit 4)", said

    def _refusal(self) -> ReproError | None:
        try:
            load(read_folder(self.model))
        except ReproError as error:
            return error
        return None


def words() -> str:
    """A tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(("bos", "one", "two", "three"))}, "bos"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made.to_str()


def pieces() -> str:
    """A tokenizer of byte pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [("o", "n"), ("on", "e"), ("t", "w"), ("tw", "o")]
    vocabulary = ["bos", "Ġ", *"onetw", *("".join(merge) for merge in merges)]
    made = Tokenizer(models.BPE({piece: n for n, piece in enumerate(vocabulary)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made.to_str()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("models"))


@pytest.mark.faults
def test_hundreds_of_fuzzed_models_are_refused_or_right(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in (*place.safe, place.checkpoint):
        place.take(folder)
        assert place.outcome() == "loaded, self-check passed"
    rng = random.Random(0)
    outcomes: Counter[str] = Counter()
    begun = time.perf_counter()
    for spoil, specimens in SPECIMENS.items():
        for _ in range(specimens):
            spoil(place.take(place.checkpoint if spoil is checkpoint else rng.choice(place.safe)), rng)
            outcomes[place.outcome()] += 1
    seconds = time.perf_counter() - begun
    assert capfd.readouterr() == ("", "")  # not even native code has said anything
    with capfd.disabled():
        told = ", ".join(f"{outcomes[name]} {name}" for name in sorted(outcomes))
        print(f"\nfuzzed models, 0 tracebacks, 0 hangs, 0 deeds: {outcomes.total()} in {seconds:.0f} s: {told}")
    assert outcomes.total() >= 500
    # Not all of one kind: else the mutants would be too tame, or too wild to get as far as the weights.
    assert outcomes["weights refused (exit 4)"] >= 100
    assert outcomes["loaded, self-check passed"] >= 50


# --------------------------------------------------------------------------------------------------- negative controls


@pytest.mark.parametrize("number", range(4))
def test_the_harness_notices_a_checkpoint_that_acts(place: Place, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = place.take(place.checkpoint) / "toy_final.pth"
    torch.save({"a": deeds(place.model)[number], **torch.load(path)}, path)
    assert place.outcome() == "weights refused (exit 4)"
    free = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: free(*args, **options | {"weights_only": False}))
    with pytest.raises(AssertionError):
        place.outcome()


@pytest.mark.parametrize("size", ["d_vocab", "d_mlp", "d_head", "n_ctx"])
def test_the_harness_notices_sizes_that_nobody_checks(place: Place, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    path = place.take(place.safe[0]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {size: 2**28 if size != "n_ctx" else 2**20}))
    assert place.outcome() == "refused without weights (exit 4)"
    monkeypatch.setattr("repro.model.folder._refuse_claims", lambda _: None)
    monkeypatch.setattr("repro.model.folder.refuse_other_sizes", lambda *_: None)
    with pytest.raises(AssertionError, match="allocate"):
        place.outcome()
