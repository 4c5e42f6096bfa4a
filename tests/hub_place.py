"""A hub with a small model in the paper's format, a cache and a lock: what the tests of the hub share.

A test module takes the fixtures it needs by name: `hub = hub_place.hub`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from repro.errors import Exit, ReproError
from repro.subjects.hub import fetch_model
from repro.subjects.lock import Lock
from tests.hub_files import as_checkpoint
from tests.hub_server import HubServer

MODEL, TOKENIZER = "owner/tiny_4L", "owner/digits"
CONFIG = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_vocab": 6000, "n_ctx": 32, "architecture": "neel"}
CDN = r"^/cdn/.*model_final"
API = r"^/api/models/owner/tiny_4L"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | Path]:
    """A small model in the format of the paper's: config.json and model_final.pth, about 400 kB."""
    folder = tmp_path_factory.mktemp("model")
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.W_E": (6000, 16), "blocks.0.attn.W_O": (2, 8, 16), "blocks.1.mlp.b_out": (16,)}
    save_file(
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return as_checkpoint(folder, folder / "hub")


@pytest.fixture(scope="module")
def server(files: dict[str, bytes | Path]) -> Iterator[HubServer]:
    with HubServer() as hub:
        hub.add("model", MODEL, {**files, "README.md": b"# tiny\n", "checkpoints/1.pth": b"no"})
        hub.add("model", TOKENIZER, {"tokenizer.json": b'{"version": "1.0"}', "README.md": b"#\n"})
        yield hub


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    server.behave()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


class Place:
    """A cache and a lock, and the call under test."""

    def __init__(self, root: Path) -> None:
        self.cache, self.lock = root / "cache", Lock(root / "spec.lock.json")

    def fetch(self, name: str = MODEL, tokenizer: str | None = TOKENIZER, **options: object) -> Path:
        pins = self.lock.subject("tiny")
        return fetch_model(name, tokenizer=tokenizer, cache=self.cache, lock=pins, **options)  # type: ignore[arg-type]

    def refused(self, *words: str, code: Exit = Exit.UNAVAILABLE, **options: object) -> str:
        """The one sentence in which a fetch ends."""
        with pytest.raises(ReproError) as caught:
            self.fetch(**options)  # type: ignore[arg-type]
        sentence = str(caught.value)
        assert caught.value.code == code
        assert "\n" not in sentence
        for word in words:
            assert word in sentence
        return sentence

    def parts(self) -> list[Path]:
        return sorted(self.cache.rglob("*.part"))

    def complete(self) -> list[Path]:
        return [path.parent for path in self.cache.glob("models--*/[!.]*/hub.json")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def assert_complete(folder: Path, files: dict[str, bytes | Path]) -> None:
    """The folder holds the model, bit for bit, and nothing unfinished."""
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "hub.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    wanted, found = (
        torch.load(str(files["model_final.pth"]), weights_only=True),
        load_file(folder / "model.safetensors"),
    )
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) and wanted[name].dtype == found[name].dtype for name in wanted)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again sooner than a user's machine does."""
    monkeypatch.setattr("repro.subjects.hub_transfer.PAUSES", (0.01, 0.02))
