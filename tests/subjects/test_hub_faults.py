"""A hub that misbehaves: one sentence or a successful retry, and bytes that differ are never used."""

from __future__ import annotations

import errno
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from repro.subjects import hub as under_test
from repro.subjects.lock import FileHash, Repo
from tests import hub_place
from tests.hub_files import Answer, Drop, Hang, Wrong
from tests.hub_place import API, CDN, MODEL, Place, assert_complete, use_hub
from tests.hub_server import HubServer

pytestmark = pytest.mark.hub
files, server, hub, place = hub_place.files, hub_place.server, hub_place.hub, hub_place.place
quick = hub_place.quick


def test_a_dropped_connection_is_retried(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], quick: None
) -> None:
    hub.misbehave(CDN, Drop(after=150_000, times=1))
    assert_complete(place.fetch(), files)
    assert len(hub.asked(CDN)) == 2


def test_a_connection_that_always_drops_ends_and_the_next_run_fetches_again(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], quick: None
) -> None:
    hub.misbehave(CDN, Drop(after=0))
    place.refused("model_final.pth", hub.url, "run again", absent=True)
    assert not place.lock.path.exists()
    hub.behave()
    assert_complete(place.fetch(), files)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "fresh"])
def test_another_hash_than_the_locks_is_told_with_both(hub: HubServer, place: Place, cached: bool) -> None:
    place.fetch()
    if not cached:
        place.forget_downloads()
    text = place.lock.path.read_text()
    pin = place.lock.repo("model", MODEL)
    assert pin is not None
    was = pin.files["model_final.pth"].sha256
    place.lock.path.write_text(text.replace(was, "0" * 64))
    place.refused("model_final.pth", was, "0" * 64, str(place.lock.path), absent=False)


@pytest.mark.parametrize("name", ["config.json", "model_final.pth", "tokenizer.json"])
def test_a_damaged_file_of_the_cache_is_named_and_can_be_fetched_again(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], name: str
) -> None:
    blob = (place.fetch() / name).resolve()
    content = bytearray(blob.read_bytes())
    content[-3] ^= 1
    blob.write_bytes(content)
    place.refused(name, "sha256", f"delete {blob}", absent=False)
    blob.unlink()
    assert_complete(place.fetch(), files)


def test_a_careless_check_of_hashes_is_noticed(hub: HubServer, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = (place.fetch() / "model_final.pth").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    monkeypatch.setattr("repro.subjects.lock.digest", lambda _: [1, "0" * 64])
    place.refused("sha256 is " + "0" * 64, absent=False)
    monkeypatch.setattr(under_test, "check_hash", lambda *_: None)
    monkeypatch.setattr("repro.subjects.lock.check_hash", lambda *_: None)
    place.fetch()


@pytest.mark.parametrize(
    ("path", "at", "name"), [(CDN, 5000, "model_final.pth"), (r"^/owner/.*config", 3, "config.json")]
)
def test_wrong_bytes_of_a_first_download_are_not_learned(
    hub: HubServer, place: Place, path: str, at: int, name: str
) -> None:
    hub.misbehave(path, Wrong(at=at))
    sentence = place.refused(name, "the hub's listing has", absent=False)
    words = sentence.replace(",", "").replace(";", "").split()
    assert len({word for word in words if len(word) in (40, 64) and "/" not in word}) == 2
    assert not place.lock.path.exists()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "does not exist, or is private or gated (it may need a token in HF_TOKEN)"),
        (403, {"X-Error-Code": "GatedRepo"}, "private or gated"),
        (404, {"X-Error-Code": "RepoNotFound"}, "does not exist"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision"),
        (429, {"Retry-After": "1800"}, "too many requests"),
        (400, {}, "the request is refused"),
        (503, {}, "out of order"),
    ],
)
def test_a_refusal_is_one_sentence(
    hub: HubServer, place: Place, status: int, headers: dict[str, str], words: str
) -> None:
    hub.misbehave(API, Answer(status=status, headers=headers))
    place.refused(str(status), words, hub.url, MODEL, absent=True)


def test_a_file_that_is_refused_is_named(hub: HubServer, place: Place, quick: None) -> None:
    hub.misbehave(CDN, Answer(status=503))
    place.refused("model_final.pth", hub.url, absent=True)


def test_a_listing_that_hangs_is_decided_in_time(hub: HubServer, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "PROBE", 0.5)
    hub.misbehave(API, Hang())
    start = time.monotonic()
    place.refused("stopped answering", absent=True)
    assert time.monotonic() - start < 20


def test_a_hub_that_hangs_is_unreachable_and_the_cache_serves(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "PROBE", 0.5)
    hub.misbehave("", Hang())
    start = time.monotonic()
    place.refused("not in the Hugging Face cache", "cannot be reached", hub.url, absent=True)
    assert time.monotonic() - start < 20
    hub.behave()
    place.fetch()
    hub.misbehave("", Hang())
    assert_complete(place.fetch(), files)


def test_a_name_that_is_never_resolved_is_decided_in_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://nowhere.invalid", place.downloads)
    monkeypatch.setattr(under_test, "PROBE", 0.5)
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(40))
    start = time.monotonic()
    place.refused("http://nowhere.invalid cannot be reached", absent=True)
    ended.set()
    assert time.monotonic() - start < 20


def test_a_closed_port_is_unreachable_and_its_password_is_not_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        use_hub(monkeypatch, f"http://user:secret@127.0.0.1:{held.getsockname()[1]}", place.downloads)
        assert "secret" not in place.refused("cannot be reached", absent=True)


def test_an_endpoint_that_is_not_an_address_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "nonsense", place.downloads)
    place.refused("HF_ENDPOINT is 'nonsense'", absent=True)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"id": "x", "sha": "../..", "siblings": []}'])
def test_an_answer_that_is_not_a_hubs_is_told(hub: HubServer, place: Place, answer: bytes) -> None:
    hub.misbehave(API, Answer(status=200, headers={"Content-Type": "application/json"}, body=answer))
    place.refused(MODEL)


def test_a_full_disk_is_told(hub: HubServer, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/some/blob")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    place.refused("/some/blob: No space left on device", absent=False)


@pytest.mark.parametrize("which", ["cache", "downloads"])
def test_a_cache_that_cannot_be_written_is_told(hub: HubServer, place: Place, which: str) -> None:
    getattr(place, which).write_text("a file")
    place.refused(str(getattr(place, which)), absent=False)


def test_a_pin_that_reaches_out_of_the_cache_is_refused(hub: HubServer, place: Place) -> None:
    place.fetch(tokenizer=None)
    shutil.rmtree(place.cache)
    pin = place.lock.repo("model", MODEL)
    assert pin is not None
    place.lock.path.unlink()
    evil = {"../evil": FileHash(sha256="0" * 64, size=1)}
    place.lock.learn("model", Repo(repo=pin.repo, asked=pin.asked, revision=pin.revision, files=evil))
    place.refused("'../evil'", absent=False, tokenizer=None)
    assert not place.cache.exists()
