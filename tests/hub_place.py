"""A hub with a small model in the paper's format, a cache and a lock: what the tests of the hub share.

A test module takes the fixtures it needs by name: `hub = hub_place.hub`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from repro.errors import AbsentError, Exit, ReproError
from repro.subjects.access import Access
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


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Make the hub libraries ask `url` and keep what they download in `cache`, as if the environment had said so.

    They read HF_ENDPOINT and HF_HUB_CACHE when they are imported, which an earlier test may have done.
    """
    import datasets
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    server.behave()
    use_hub(monkeypatch, server.url, tmp_path / "huggingface")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


class Place:
    """A cache, a lock, and the call under test."""

    def __init__(self, root: Path) -> None:
        self.cache, self.downloads, self.lock = (
            root / "cache",
            root / "huggingface",
            Lock(root / "spec.lock.json", "tiny"),
        )

    def fetch(self, name: str = MODEL, tokenizer: str | None = TOKENIZER, offline: bool = False) -> Path:
        return fetch_model(name, tokenizer=tokenizer, access=Access(self.cache, offline), lock=self.lock)

    def refused(self, *words: str, code: Exit = Exit.UNAVAILABLE, absent: bool | None = None, **options: object) -> str:
        """Return the one sentence in which a fetch ends; `absent`: whether another subject may stand in."""
        with pytest.raises(ReproError) as caught:
            self.fetch(**options)  # type: ignore[arg-type]
        sentence = str(caught.value)
        assert caught.value.code == code
        assert absent is None or isinstance(caught.value, AbsentError) is absent
        assert "\n" not in sentence
        for word in words:
            assert word in sentence
        return sentence

    def forget_downloads(self) -> None:
        """Empty both caches."""
        for folder in (self.cache, self.downloads):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def assert_complete(folder: Path, files: dict[str, bytes | Path]) -> None:
    """The directory holds the model, bit for bit, and nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model_final.pth", "tokenizer.json"]
    for name, source in files.items():
        assert (folder / name).read_bytes() == (source if isinstance(source, bytes) else source.read_bytes())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries retry without the pauses that they make on a user's machine."""
    pauseless = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", pauseless)
    monkeypatch.setattr("huggingface_hub.file_download.time", pauseless)
