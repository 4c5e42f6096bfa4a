"""A hub that misbehaves: one sentence or a successful resume, in bounded time, and never a corrupt cache."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from repro.subjects.hub_transfer import AbandonedError, within
from tests import hub_place
from tests.hub_files import Answer, Drop, Hang, Wrong
from tests.hub_place import API, CDN, MODEL, Place, assert_complete
from tests.hub_server import HubServer

pytestmark = pytest.mark.hub
files, server, hub, place = hub_place.files, hub_place.server, hub_place.hub, hub_place.place
quick = hub_place.quick


def test_a_dropped_connection_is_resumed(hub: HubServer, place: Place, files: dict[str, bytes | Path]) -> None:
    hub.misbehave(CDN, Drop(after=150_000, times=1))
    assert_complete(place.fetch(), files)
    assert [request.range is None for request in hub.asked(CDN)] == [True, False]


def test_a_connection_that_always_drops_gets_there_in_the_end(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], quick: None
) -> None:
    hub.misbehave(CDN, Drop(after=100_000))
    assert_complete(place.fetch(), files)
    assert len(hub.asked(CDN)) > 3


def test_an_interrupted_download_goes_on_in_the_next_run(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], quick: None
) -> None:
    hub.misbehave(CDN, Drop(after=200_000, times=1))
    hub.misbehave(CDN, Answer(status=503))
    place.refused("503", "are kept, run again to go on")
    (part,) = place.parts()
    kept = part.stat().st_size
    assert 0 < kept <= 200_000
    assert place.complete() == []
    hub.behave()
    assert_complete(place.fetch(), files)
    assert [request.range for request in hub.asked(CDN)] == [f"bytes={kept}-"]


def test_a_torn_leftover_is_thrown_away(hub: HubServer, place: Place, files: dict[str, bytes | Path]) -> None:
    incoming = place.cache / "models--owner--tiny_4L" / f".incoming-{place.fetch().name}"
    shutil.rmtree(place.cache)
    incoming.mkdir(parents=True)
    (incoming / "model_final.pth.part").write_bytes(b"\0" * 1000)
    (incoming / "config.json").write_bytes(b"torn")
    assert_complete(place.fetch(), files)


def test_a_server_without_ranges_sends_everything_again(
    hub: HubServer, place: Place, files: dict[str, bytes | Path]
) -> None:
    whole = Path(str(files["model_final.pth"])).read_bytes()
    hub.misbehave(CDN, Drop(after=150_000, times=1))
    hub.misbehave(CDN, Answer(status=200, body=whole, times=1))
    assert_complete(place.fetch(), files)
    hub.behave()
    shutil.rmtree(place.cache)
    hub.misbehave(CDN, Drop(after=150_000, times=1))
    hub.misbehave(CDN, Answer(status=416, times=1))
    assert_complete(place.fetch(), files)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "fresh"])
def test_another_hash_than_the_locks_is_told_with_both(hub: HubServer, place: Place, cached: bool) -> None:
    place.fetch()
    if not cached:
        shutil.rmtree(place.cache)
    text = place.lock.path.read_text()
    pin = place.lock.subject("tiny").repo("model", MODEL, "main")
    assert pin is not None
    was = pin.files["model_final.pth"].sha256
    place.lock.path.write_text(text.replace(was, "0" * 64))
    place.refused("model_final.pth", was, "0" * 64, "lock")
    assert place.complete() == ([place.cache / "models--owner--tiny_4L" / place.complete()[0].name] if cached else [])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_of_the_cache_is_named(hub: HubServer, place: Place, name: str) -> None:
    file = place.fetch() / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    place.refused(str(file), "sha256", "delete")
    file.unlink()
    place.refused(str(file), "gone", "delete")


def test_a_damaged_record_is_named(hub: HubServer, place: Place) -> None:
    record = place.fetch() / "hub.json"
    record.write_text("{}")
    place.refused(str(record), "damaged", "delete")


@pytest.mark.parametrize(
    "fault", [Answer(status=200, body=b"<html>log in</html>"), Drop(after=0)], ids=["portal", "cut"]
)
def test_a_file_that_never_gets_whole_ends(hub: HubServer, place: Place, fault: Answer | Drop, quick: None) -> None:
    hub.misbehave(CDN, fault)
    place.refused("model_final.pth")
    assert len(hub.asked(CDN)) < 10
    assert place.complete() == []


def test_more_bytes_than_listed_are_refused(hub: HubServer, place: Place) -> None:
    hub.misbehave(CDN, Answer(status=200, body=b"x" * 1_000_000))
    place.refused("model_final.pth", "more bytes than")
    assert place.complete() == []


@pytest.mark.parametrize(
    ("path", "at", "name"), [(CDN, 5000, "model_final.pth"), (r"^/owner/.*config", 3, "config.json")]
)
def test_wrong_bytes_are_thrown_away(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], path: str, at: int, name: str
) -> None:
    hub.misbehave(path, Wrong(at=at))
    sentence = place.refused(name, "the hub's listing has")
    assert len([word for word in sentence.replace(",", "").split() if len(word) in (40, 64)]) == 2
    assert place.parts() == []
    hub.behave()
    assert_complete(place.fetch(), files)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "does not exist, or is private or gated (it may need a token in HF_TOKEN)"),
        (403, {}, "private or gated"),
        (404, {"X-Error-Code": "RepoNotFound"}, "does not exist"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision"),
        (429, {"Retry-After": "1800"}, "too many requests; it asks to wait 1800 s"),
        (429, {"RateLimit": '"api";r=0;t=55'}, "it asks to wait 55 s"),
        (429, {"Retry-After": "Fri, 31 Dec 2060 23:59:59 GMT"}, "it asks to wait"),
        (400, {}, "the request is refused"),
        (503, {}, "out of order"),
    ],
)
def test_a_refusal_is_one_sentence_and_remembered(
    hub: HubServer, place: Place, status: int, headers: dict[str, str], words: str, quick: None
) -> None:
    hub.misbehave(API, Answer(status=status, headers=headers))
    place.refused(str(status), words, hub.url, MODEL)
    asked = len(hub.requests)
    place.refused(words, "not asked again before", "unless the subject is named")
    assert len(hub.requests) == asked
    place.refused(words, force=True)
    assert len(hub.requests) > asked
    hub.behave()
    place.fetch(force=True)
    shutil.rmtree(place.cache / "models--owner--tiny_4L")
    place.fetch()  # what is granted is no longer remembered as refused


@pytest.mark.parametrize("path", [API, r"^/owner/tiny_4L/resolve/.*final", CDN], ids=["listing", "resolve", "file"])
@pytest.mark.parametrize(
    "fault", [Answer(status=500, times=1), Answer(status=429, headers={"Retry-After": "1"}, times=1)]
)
def test_what_passes_is_tried_again(
    hub: HubServer, place: Place, files: dict[str, bytes | Path], path: str, fault: Answer, quick: None
) -> None:
    hub.misbehave(path, Answer(status=fault.status, headers=fault.headers, times=1))
    assert_complete(place.fetch(), files)


@pytest.mark.parametrize("path", [API, r"^/owner/tiny_4L/resolve/.*final", CDN], ids=["listing", "resolve", "file"])
def test_a_hang_is_decided_in_time(hub: HubServer, place: Place, path: str) -> None:
    hub.misbehave(path, Hang(after=100_000 if path == CDN else None))
    start = time.monotonic()
    place.refused("gave no answer for 1 s", timeout=1.0)
    assert time.monotonic() - start < 5
    assert place.complete() == []
    hub.behave()
    place.fetch(force=True)


def test_a_name_that_is_never_resolved_is_decided_in_time(
    place: Place, monkeypatch: pytest.MonkeyPatch, server: HubServer
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(20))
    start = time.monotonic()
    place.refused("http://nowhere.invalid gave no answer for 1 s", timeout=1.0)
    ended.set()
    assert time.monotonic() - start < 5
    place.refused("not asked again before", name="owner/another", tokenizer=None)  # the hub as a whole is remembered


def test_a_closed_port_is_unreachable(place: Place, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://user:pass@127.0.0.1:{held.getsockname()[1]}")
        sentence = place.refused("cannot be reached")
    assert "pass" not in sentence
    assert "pass" not in (place.cache / "refusals.json").read_text()


def test_an_endpoint_that_is_no_address_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    place.refused("HF_ENDPOINT is 'nonsense'")


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"id": "x", "sha": "../..", "siblings": []}'])
def test_an_answer_that_is_no_hubs_is_told(hub: HubServer, place: Place, answer: bytes) -> None:
    hub.misbehave(API, Answer(status=200, headers={"Content-Type": "application/json"}, body=answer))
    place.refused(MODEL)


def test_a_memory_that_cannot_be_read_is_no_obstacle(
    hub: HubServer, place: Place, files: dict[str, bytes | Path]
) -> None:
    place.cache.mkdir()
    for text in ("", "[]", json.dumps({hub.url: 1}), json.dumps({hub.url: {"when": "x", "until": 1, "sentence": 2}})):
        (place.cache / "refusals.json").write_text(text)
        assert_complete(place.fetch(), files)
        shutil.rmtree(place.cache / "models--owner--tiny_4L")


@pytest.mark.parametrize("path", ["../../evil_final.pth", "/etc/evil", "a/../../b", "..\\evil", "C:evil", "x\n", ".."])
def test_a_listing_that_reaches_out_of_the_folder_is_refused(
    place: Place, files: dict[str, bytes | Path], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as own:
        monkeypatch.setenv("HF_ENDPOINT", own.url)
        own.add("model", MODEL, files, listed=[path])
        place.refused("lists the path", repr(path), tokenizer=None)
        assert own.asked("resolve") == []
    assert place.complete() == []


def test_a_link_in_the_cache_is_not_followed(hub: HubServer, place: Place, tmp_path: Path) -> None:
    incoming = place.cache / "models--owner--tiny_4L" / f".incoming-{place.fetch().name}"
    shutil.rmtree(place.cache)
    incoming.mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (incoming / "config.json.part").symlink_to(tmp_path / "precious")
    place.refused("not a plain file")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_full_disk_is_told_before_the_download(hub: HubServer, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    place.refused("config.json needs", "has 5")
    assert hub.asked("resolve") == []


def test_a_cache_that_cannot_be_written_is_told(hub: HubServer, place: Place) -> None:
    place.cache.write_text("a file")
    place.refused(str(place.cache))


def test_two_processes_do_not_fetch_the_same(hub: HubServer, place: Place) -> None:
    from filelock import FileLock

    home = place.cache / "models--owner--tiny_4L"
    home.mkdir(parents=True)
    with FileLock(home / ".lock"):
        place.refused("another process is fetching", timeout=0.3)


def test_within_returns_raises_and_gives_up() -> None:
    assert within(1.0, lambda _: 3) == 3
    with pytest.raises(KeyError):
        within(1.0, lambda _: dict[str, int]()["x"])

    def slow_but_sure(beat: Callable[[], None]) -> int:
        for _ in range(6):
            time.sleep(0.1)
            beat()
        return 4

    assert within(0.3, slow_but_sure) == 4
    ended: list[type[BaseException]] = []

    def silent(beat: Callable[[], None]) -> None:
        time.sleep(0.4)
        try:
            beat()
        except BaseException as error:
            ended.append(type(error))
            raise

    with pytest.raises(TimeoutError):
        within(0.1, silent)
    time.sleep(0.6)
    assert ended == [AbandonedError]
