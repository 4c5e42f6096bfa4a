"""The lock beside a spec: learned once, held against ever after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from repro.errors import Exit, ReproError
from repro.subjects.lock import FileHash, Lock, PromptsPin, Repo, check_hash

A, B = "a" * 64, "b" * 64
FOUND = Repo("owner/model", "main", "c" * 40, {"config.json": FileHash(A, 10)})
PROMPTS = PromptsPin(A, 300, 1024)


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock.beside(tmp_path / "experiments.toml")


def test_a_lock_is_named_after_its_spec_and_starts_empty(lock: Lock) -> None:
    assert lock.path.name == "experiments.lock.json"
    assert lock.subject("x").repo("model", "owner/model", "main") is None
    assert lock.subject("x").prompts() is None
    assert not lock.path.exists()


def test_what_is_learned_is_read_back_and_subjects_do_not_mix(lock: Lock) -> None:
    lock.subject("x").learn("model", FOUND)
    lock.subject("x").learn_prompts(PROMPTS, "recipe")
    lock.subject("y").learn("model", replace(FOUND, revision="d" * 40))
    assert lock.subject("x").repo("model", "owner/model", "main") == FOUND
    assert lock.subject("x").prompts() == PROMPTS
    assert lock.subject("y").repo("model", "owner/model", "main") == replace(FOUND, revision="d" * 40)
    assert [path.name for path in lock.path.parent.iterdir()] == [lock.path.name]


def test_learning_the_same_again_writes_nothing_and_further_files_are_added(lock: Lock) -> None:
    pins = lock.subject("x")
    pins.learn("model", FOUND)
    before = lock.path.stat().st_mtime_ns, lock.path.read_bytes()
    pins.learn("model", FOUND)
    assert (lock.path.stat().st_mtime_ns, lock.path.read_bytes()) == before
    pins.learn("model", replace(FOUND, files={"model.safetensors": FileHash(B, 20)}))
    pin = pins.repo("model", "owner/model", "main")
    assert pin is not None
    assert set(pin.files) == {"config.json", "model.safetensors"}


def test_another_repository_or_revision_is_learned_anew(lock: Lock) -> None:
    pins = lock.subject("x")
    pins.learn("model", FOUND)
    assert pins.repo("model", "owner/model", "v2") is None
    moved = replace(FOUND, asked="v2", revision="d" * 40)
    pins.learn("model", moved)
    assert pins.repo("model", "owner/model", "v2") == moved


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(FOUND, revision="d" * 40), ["c" * 40, "d" * 40]),
        (replace(FOUND, files={"config.json": FileHash(B, 10)}), ["config.json", A, B]),
        (replace(FOUND, files={"config.json": FileHash(A, 11)}), ["config.json", "10", "11"]),
    ],
    ids=["commit", "hash", "size"],
)
def test_what_differs_is_refused_naming_both(lock: Lock, other: Repo, told: list[str]) -> None:
    lock.subject("x").learn("model", FOUND)
    with pytest.raises(ReproError) as caught:
        lock.subject("x").learn("model", other)
    assert caught.value.code == Exit.UNAVAILABLE
    assert all(text in str(caught.value) for text in told)
    assert lock.subject("x").repo("model", "owner/model", "main") == FOUND


def test_other_prompts_of_the_same_recipe_are_refused(lock: Lock) -> None:
    pins = lock.subject("x")
    pins.learn_prompts(PROMPTS, "recipe")
    pins.learn_prompts(PROMPTS, "recipe")
    with pytest.raises(ReproError, match=f"(?s){B}.*{A}") as caught:
        pins.learn_prompts(PROMPTS._replace(sha256=B), "recipe")
    assert caught.value.code == Exit.UNAVAILABLE
    pins.learn_prompts(PROMPTS._replace(sha256=B), "another recipe")
    assert pins.prompts() == PROMPTS._replace(sha256=B)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "subjects": {}}',
        '{"format": 1, "subjects": []}',
        '{"format": 1, "subjects": {"x": 1}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_lock_is_named_and_never_overwritten(lock: Lock, text: str) -> None:
    lock.path.write_text(text)
    for act in (
        lambda: lock.subject("x").repo("model", "o/m", "main"),
        lambda: lock.subject("x").learn("model", FOUND),
    ):
        with pytest.raises(ReproError, match="not a lock") as caught:
            act()
        assert caught.value.code == Exit.USAGE
        assert str(lock.path) in str(caught.value)
    assert lock.path.read_text() == text


@pytest.mark.parametrize(
    "change",
    [{"revision": "main"}, {"files": []}, {"files": {"f": {"sha256": "x", "size": 1}}}, {"extra": 1}, {"repo": 3}],
)
def test_a_pin_with_odd_values_is_refused(lock: Lock, change: dict[str, object]) -> None:
    lock.subject("x").learn("model", FOUND)
    data = json.loads(lock.path.read_text())
    data["subjects"]["x"]["repos"]["model"].update(change)
    lock.path.write_text(json.dumps(data))
    with pytest.raises(ReproError, match="model of subject x"):
        lock.subject("x").repo("model", "owner/model", "main")


def test_prompts_with_odd_values_are_refused(lock: Lock) -> None:
    lock.subject("x").learn_prompts(PROMPTS, "recipe")
    lock.path.write_text(lock.path.read_text().replace("300", "true"))
    with pytest.raises(ReproError, match="prompts of subject x"):
        lock.subject("x").prompts()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReproError, match="cannot write the lock") as caught:
        Lock(tmp_path / "missing" / "x.lock.json").subject("x").learn("model", FOUND)
    assert caught.value.code == Exit.USAGE


def test_check_hash_accepts_what_is_equal() -> None:
    check_hash("file", FileHash(A, 1), FileHash(A, 1), "the lock")
