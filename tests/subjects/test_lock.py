"""The lock beside a spec: learned once, held against ever after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repro.errors import Exit, ReproError
from repro.subjects.lock import Entry, FileHash, Lock, PromptsPin, Repo, check_hash
from tests.runs import ROOT

A, B = "a" * 64, "b" * 64
FOUND = Repo(repo="owner/model", asked="main", revision="c" * 40, files={"config.json": FileHash(sha256=A, size=10)})
MOVED = FOUND.model_copy(update={"revision": "d" * 40})
PROMPTS = PromptsPin(sha256=A, n=300, length=1024, recipe="recipe")
OTHERS = PROMPTS.model_copy(update={"sha256": B})


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock.beside(tmp_path / "experiments.toml", "x")


def test_a_lock_is_named_after_its_spec_and_starts_empty(lock: Lock) -> None:
    assert lock.path.name == "experiments.lock.json"
    assert lock.repo("model", "owner/model") is None
    assert lock.entry() == Entry()
    assert not lock.path.exists()


def test_what_is_learned_is_read_back_and_subjects_do_not_mix(lock: Lock) -> None:
    other = Lock(lock.path, "y")
    lock.learn("model", FOUND)
    lock.learn_prompts(PROMPTS)
    other.learn("model", MOVED)
    assert lock.entry() == Entry(repos={"model": FOUND}, prompts=PROMPTS)
    assert other.entry() == Entry(repos={"model": MOVED})
    assert [path.name for path in lock.path.parent.iterdir()] == [lock.path.name]


def test_the_papers_own_lock_is_written_as_it_is(tmp_path: Path) -> None:
    own = ROOT / "experiments.lock.json"
    for subject, pins in json.loads(own.read_text())["subjects"].items():
        for requirement, pin in pins["wheels"].items():
            Lock(tmp_path / own.name, subject).learn_wheel(requirement, FileHash(**pin), "again")
    assert (tmp_path / own.name).read_bytes() == own.read_bytes()


def test_learning_the_same_again_writes_nothing(lock: Lock) -> None:
    lock.learn("model", FOUND)
    before = lock.path.stat().st_mtime_ns, lock.path.read_bytes()
    lock.learn("model", FOUND)
    assert (lock.path.stat().st_mtime_ns, lock.path.read_bytes()) == before


def test_another_repository_is_learned_anew(lock: Lock) -> None:
    lock.learn("model", FOUND)
    assert lock.repo("model", "owner/other") is None
    other = MOVED.model_copy(update={"repo": "owner/other"})
    lock.learn("model", other)
    assert lock.repo("model", "owner/other") == other


def test_another_commit_is_refused_naming_both(lock: Lock) -> None:
    lock.learn("model", FOUND)
    with pytest.raises(ReproError, match=f"(?s){MOVED.revision}.*{FOUND.revision}") as caught:
        lock.learn("model", MOVED)
    assert caught.value.code == Exit.UNAVAILABLE
    assert lock.repo("model", "owner/model") == FOUND


@pytest.mark.parametrize("other", [FileHash(sha256=B, size=10), FileHash(sha256=A, size=11)], ids=["hash", "size"])
def test_another_wheel_is_refused_naming_both(lock: Lock, other: FileHash) -> None:
    pin = FileHash(sha256=A, size=10)
    lock.learn_wheel("name==1", pin, "fetch it again")
    lock.learn_wheel("name==1", pin, "fetch it again")
    told = f"wheel of name==1 \\(fetch it again\\): sha256 is {other.sha256} \\({other.size} .*{A} \\(10 bytes\\)"
    with pytest.raises(ReproError, match=told) as caught:
        lock.learn_wheel("name==1", other, "fetch it again")
    assert caught.value.code == Exit.UNAVAILABLE


def test_other_prompts_of_the_same_recipe_are_refused(lock: Lock) -> None:
    lock.learn_prompts(PROMPTS)
    lock.learn_prompts(PROMPTS)
    with pytest.raises(ReproError, match=f"(?s){B}.*{A}") as caught:
        lock.learn_prompts(OTHERS)
    assert caught.value.code == Exit.UNAVAILABLE
    another = OTHERS.model_copy(update={"recipe": "another"})
    lock.learn_prompts(another)
    assert lock.entry().prompts == another


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\xff",
        '{"format": 2, "subjects": {}}',
        '{"format": 1, "subjects": []}',
        '{"format": 1, "subjects": {"x": 1}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_lock_is_named_and_never_overwritten(lock: Lock, text: str) -> None:
    lock.path.write_bytes(text.encode("latin-1"))
    for act in (lock.entry, lambda: lock.learn("model", FOUND)):
        with pytest.raises(ReproError, match=r"not a lock: .*; restore it, or delete it") as caught:
            act()
        assert caught.value.code == Exit.USAGE
        assert str(lock.path) in str(caught.value)
    assert lock.path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "main"},
        {"files": []},
        {"files": {"f": {"sha256": "x", "size": 1}}},
        {"files": {"f": {"sha256": A, "size": True}}},
        {"extra": 1},
        {"repo": 3},
        {"asked": "v2"},
    ],
)
def test_a_pin_with_odd_values_is_refused_by_place(lock: Lock, change: dict[str, object]) -> None:
    lock.learn("model", FOUND)
    data = json.loads(lock.path.read_text())
    data["subjects"]["x"]["repos"]["model"].update(change)
    lock.path.write_text(json.dumps(data))
    with pytest.raises(ReproError, match=rf"not a lock: subjects\.x\.repos\.model\.{next(iter(change))}"):
        lock.repo("model", "owner/model")


def test_damage_in_one_subject_stops_no_other(lock: Lock) -> None:
    lock.learn("model", FOUND)
    content = json.loads(lock.path.read_text())
    content["subjects"]["broken"] = {"later": 1}
    lock.path.write_text(json.dumps(content))
    assert lock.entry() == Entry(repos={"model": FOUND})
    with pytest.raises(ReproError, match=r"not a lock: subjects\.broken\.later"):
        Lock(lock.path, "broken").entry()
    lock.learn_prompts(PROMPTS)
    assert json.loads(lock.path.read_text())["subjects"]["broken"] == {"later": 1}, "kept as it was"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="cannot write the lock") as caught:
        Lock(tmp_path / "missing" / "x.lock.json", "x").learn("model", FOUND)
    assert caught.value.code == Exit.USAGE


def test_check_hash_accepts_what_is_equal() -> None:
    check_hash("file", FileHash(sha256=A, size=1), FileHash(sha256=A, size=1), "the lock")
