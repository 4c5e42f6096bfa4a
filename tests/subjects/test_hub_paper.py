"""The whole paper from the hub: full-size architecture with random weights, over loopback, libraries unmodified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from repro.__main__ import main
from repro.errors import Exit
from repro.measures import MEASURES
from repro.spec.read import read_spec
from tests.hub_files import as_checkpoint
from tests.hub_place import use_hub
from tests.hub_server import HubServer
from tests.toys import native_config, native_weights

pytestmark = pytest.mark.hub

ROOT = Path(__file__).parents[2]
ROWS = {"NeelNanda/c4-tokenized-2b": 2, "NeelNanda/code-tokenized": 1}
SHAPE = {"d_model": 512, "n_layers": 4, "d_mlp": 2048, "d_head": 64, "n_heads": 8, "n_ctx": 1024, "d_vocab": 48262}


def tokenizer_json() -> bytes:
    """A byte-level tokenizer in which every answer of the paper's examples is one token."""
    subject = read_spec(ROOT / "experiments.toml", MEASURES).spec.subject["gelu-4l"]
    assert not isinstance(subject.examples, str)
    texts = [f"{item.text}{end}" for item in subject.examples for end in ("", item.answer, item.other)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<bos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts * 4, trainer)
    return tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("gelu")
    config = native_config(**SHAPE)
    weights = native_weights(config, seed=4)
    # Scaled so that activations stay near what a trained model has, with norms and biases far from trivial.
    scaled = {
        name: tensor * (0.1 if tensor.ndim > 1 and "embed" not in name else 1) for name, tensor in weights.items()
    }
    save_file(scaled, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with HubServer() as server:
        server.add("model", "NeelNanda/GELU_4L512W_C4_Code", as_checkpoint(folder, folder / "hub"))
        server.add("model", "NeelNanda/gpt-neox-tokenizer-digits", {"tokenizer.json": tokenizer_json()})
        for seed, name in enumerate(ROWS):
            rows = np.random.default_rng(seed).integers(1, SHAPE["d_vocab"], (20, 1024))
            rows[:, 0] = 0
            server.add_rows(name, [rows])
        yield server


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """The paper's own spec, with a few prompts instead of 300."""
    text = (ROOT / "experiments.toml").read_text()
    for name, rows in ROWS.items():
        before = f'dataset = "{name}", rows = {240 if "c4" in name else 60}'
        assert before in text
        text = text.replace(before, f'dataset = "{name}", rows = {rows}')
    path = tmp_path / "experiments.toml"
    path.write_text(text)
    return path


def test_the_whole_paper_runs_from_the_hub(
    hub: HubServer, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_hub(monkeypatch, hub.url, tmp_path / "huggingface")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    # Random weights reproduce nothing: every number that can be compared differs, and that is exit 3.
    assert main(["all", "--spec", str(spec)]) == Exit.DIFFERS
    said = capsys.readouterr().out
    assert "subject: gelu-4l" in said
    assert "NOT THE PAPER'S SUBJECT" not in said
    out = tmp_path / "paper_figures" / "out" / "gelu-4l"
    assert len(list(out.glob("*.svg"))) == 14
    rows = json.loads((out / "check.json").read_text())["rows"]
    verdicts = {row["verdict"] for row in rows}
    assert "differs" in verdicts
    summed = next(row for row in rows if row["published"] == -0.903)
    assert summed["ours"] is not None
    lock = json.loads((tmp_path / "experiments.lock.json").read_text())["subjects"]["gelu-4l"]
    assert lock["repos"]["model"]["revision"]
    everything = "".join(path.read_text(errors="ignore") for path in tmp_path.rglob("*.json"))
    assert "hf_secret" not in everything + said

    # From here on nobody is asked: the cache and the lock are enough, and nothing is computed again.
    asked = len(hub.requests)
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "huggingface")
    assert main(["all", "--spec", str(spec), "--offline"]) == Exit.DIFFERS
    again = capsys.readouterr().out
    assert "pass over" not in again
    assert "0 drawn, 14 unchanged" in again
    assert len(hub.requests) == asked
