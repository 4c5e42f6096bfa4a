"""Models from a hub become local folders: pinned, verified, and asked for once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from repro.errors import Exit
from tests import hub_place
from tests.hub_place import CONFIG, MODEL, TOKENIZER, Place, assert_complete, use_hub
from tests.hub_server import HubServer

pytestmark = pytest.mark.hub
files, server, hub, place = hub_place.files, hub_place.server, hub_place.hub, hub_place.place


def test_a_model_becomes_a_local_folder_and_is_pinned(
    hub: HubServer, place: Place, files: dict[str, bytes | Path]
) -> None:
    folder = place.fetch()
    assert_complete(folder, files)
    model = place.lock.repo("model", MODEL)
    tokenizer = place.lock.repo("tokenizer", TOKENIZER)
    assert model is not None
    assert tokenizer is not None
    assert model.revision == hub.repositories["model", MODEL].main
    assert {name: value.sha256 for name, value in model.files.items()} == {
        name: hub.repositories["model", MODEL].commits[model.revision][name].sha256 for name in files
    }
    assert set(tokenizer.files) == {"tokenizer.json"}


def test_a_second_run_asks_nobody(hub: HubServer, place: Place) -> None:
    folder = place.fetch()
    hub.requests.clear()
    assert place.fetch() == folder
    assert place.fetch(offline=True) == folder
    assert hub.requests == []


def test_what_the_ordinary_cache_holds_is_not_fetched_again(
    hub: HubServer, place: Place, files: dict[str, bytes | Path]
) -> None:
    from huggingface_hub import snapshot_download

    for name in (MODEL, TOKENIZER):
        snapshot_download(name)
    hub.requests.clear()
    assert_complete(place.fetch(offline=True), files)
    assert hub.requests == []
    pins = place.lock.entry()
    place.lock.path.unlink()
    assert_complete(place.fetch(), files)
    assert hub.asked("/resolve/|/cdn/") == []
    assert place.lock.entry() == pins


def test_the_pinned_commit_is_fetched_though_main_has_moved(
    place: Place, files: dict[str, bytes | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as own:
        use_hub(monkeypatch, own.url, place.downloads)
        first = own.add("model", MODEL, files)
        place.fetch(tokenizer=None)
        second = own.add("model", MODEL, {**files, "config.json": json.dumps({**CONFIG, "n_ctx": 64}).encode()})
        place.forget_downloads()
        assert place.fetch(tokenizer=None).name.endswith(first[:12])
        place.lock.path.unlink()
        place.forget_downloads()
        assert place.fetch(tokenizer=None).name.endswith(second[:12])


def test_the_token_opens_and_is_neither_told_nor_stored(
    place: Place,
    files: dict[str, bytes | Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "hf_verysecret0123456789"
    with HubServer(token=secret) as own:
        own.add("model", MODEL, files)
        use_hub(monkeypatch, own.url, place.downloads)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        place.refused("401", "it may need a token in HF_TOKEN", tokenizer=None)
        for wrong in ("hf_wrongsecret", "hf_odd\x01secret"):
            monkeypatch.setenv("HF_TOKEN", wrong)
            assert "secret" not in place.refused(MODEL, tokenizer=None)
        monkeypatch.setenv("HF_TOKEN", secret)
        own.requests.clear()
        place.fetch(tokenizer=None)
        assert {request.authorized for request in own.asked("^/api|/resolve/")} == {True}
        assert {request.authorized for request in own.requests if request.origin == "cdn"} == {False}
    everything = [*place.downloads.rglob("*"), *place.cache.rglob("*"), place.lock.path]
    written = [path for path in everything if path.is_file()]
    assert not [path for path in written if b"secret" in path.read_bytes()]
    assert "secret" not in "".join(capfd.readouterr()) + caplog.text


def test_a_cache_that_another_program_has_begun_counts_as_absent(hub: HubServer, place: Place) -> None:
    repository = place.downloads / f"models--{MODEL.replace('/', '--')}"
    (snapshot := repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (snapshot / "README.md").write_text("# tiny\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    place.refused("not in the Hugging Face cache", absent=True, offline=True)


def test_offline_never_asks(hub: HubServer, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.refused("not in the Hugging Face cache", "does not ask the hub", absent=True, offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place.refused("HF_HUB_OFFLINE")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["gpt2", "a/b/c", "../x", "owner/..", "owner/a--b", "", "owner/na me", "~/x"])
def test_an_impossible_name_is_a_usage_error(hub: HubServer, place: Place, name: str) -> None:
    place.refused("not a valid hub name", code=Exit.USAGE, name=name, tokenizer=None)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_final.pth": None}, "neither model.safetensors nor a *final.pth"),
        ({"other_final.pth": b"x"}, "2 files *final.pth (model_final.pth, other_final.pth)"),
        ({"config.json": None}, "has no config.json"),
        ({"config.json": b"[]"}, "not a JSON object"),
        ({"config.json": b'{"architectures": ["X"]}'}, "has no model.safetensors.index.json"),
        ({"tokenizer.json": b""}, None),
    ],
)
def test_a_repository_that_is_no_model_is_told(
    place: Place,
    files: dict[str, bytes | Path],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, bytes | None],
    words: str | None,
) -> None:
    with HubServer() as own:
        use_hub(monkeypatch, own.url, place.downloads)
        own.add("model", MODEL, {name: held for name, held in {**files, **change}.items() if held is not None})
        if words is not None:
            place.refused(words, tokenizer=None)
        else:
            assert (place.fetch(tokenizer=None) / "tokenizer.json").read_bytes() == b""


def test_a_repository_without_a_tokenizer_is_told(hub: HubServer, place: Place) -> None:
    place.refused("has no tokenizer.json", tokenizer=MODEL)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_other_format_is_kept_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, shards: int, tmp_path: Path
) -> None:
    names = ["model.safetensors"] if shards == 1 else ["model-1.safetensors", "model-2.safetensors"]
    files: dict[str, bytes | Path] = {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "pytorch_model.bin": b"never",
    }
    for number, name in enumerate(names):
        save_file({f"w{number}": torch.full((4,), float(number))}, tmp_path / name)
        files[name] = tmp_path / name
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    if shards > 1:
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    with HubServer() as own:
        use_hub(monkeypatch, own.url, place.downloads)
        own.add("model", MODEL, files)
        folder = place.fetch(tokenizer=None)
        for name, source in files.items():
            if name == "pytorch_model.bin":
                assert not (folder / name).exists()
            else:
                assert (folder / name).read_bytes() == (source if isinstance(source, bytes) else source.read_bytes())
        if shards > 1:
            bad: object
            for bad in ({"w": "../evil.safetensors"}, {"w": "README.md"}, {}, []):
                changed = json.dumps({"weight_map": bad}).encode()
                own.add("model", "owner/other", {**files, "model.safetensors.index.json": changed})
                place.refused("model.safetensors.index.json", name="owner/other", tokenizer=None)
