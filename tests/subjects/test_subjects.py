"""Which subject is at hand: names, folders, falling back, named roles, tokenizers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.errors import Exit, ReproError
from repro.measures import MEASURES
from repro.spec.read import read_spec
from repro.spec.types import NAME, Loaded
from repro.subjects.access import Access
from repro.subjects.resolve import ResolvedSubject, choose, listed
from repro.subjects.tokenizer import Tokenizer
from tests.model.test_folder import TL, make
from tests.runs import toml


def loaded(folder: Path, **subjects: dict[str, Any]) -> Loaded:
    """A spec with these subjects, all of them defaults in order."""
    tables: dict[str, Any] = {
        "run": {"default_subjects": list(subjects), "groups": ["paper"], "paper_subject": next(iter(subjects))},
        **{f'subject."{name}"': entries for name, entries in subjects.items()},
        "experiment.nodes": {"measure": "projection", "of": "nodes", "onto": "$writer"},
        "figure": {},
    }
    path = folder / "spec.toml"
    path.write_text(toml(tables))
    return read_spec(path, MEASURES)


def pick(spec: Loaded, name: str | None = None) -> ResolvedSubject:
    return choose(spec, name, Access(spec.folder / "cache", offline=True))


def refused(action: Callable[[], Any], code: Exit) -> str:
    with pytest.raises(ReproError) as caught:
        action()
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    return caught.value.message


# ------------------------------------------------------------------------------------------------------------ choosing


def test_a_declared_subject_is_found_relative_to_the_spec(tmp_path: Path) -> None:
    make(tmp_path / "models")
    chosen = pick(loaded(tmp_path, toy={"model": "models"}))
    assert (chosen.name, chosen.folder.path, chosen.fallback) == ("toy", tmp_path / "models", "")
    assert chosen.tokens.shape == (5, 16)


def test_a_models_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pick(loaded(tmp_path, toy={"model": "~/home"})).folder.path == tmp_path / "home"
    spec = loaded(tmp_path, toy={"model": "~/home", "prompts": "~/home/prompts.safetensors"})
    assert pick(spec).folder.prompts == tmp_path / "home" / "prompts.safetensors"
    assert pick(spec, "~/home").folder.path == tmp_path / "home"


def test_falling_back_says_from_what_and_why(tmp_path: Path) -> None:
    make(tmp_path / "mini")
    spec = loaded(tmp_path, first={"model": "gone"}, second={"model": "mini"})
    chosen = pick(spec)
    assert chosen.name == "second"
    assert chosen.fallback == (
        f"first cannot be had here ([subject.first] model: {tmp_path / 'gone'}: model directory not found)"
    )


def test_a_named_subject_never_falls_back(tmp_path: Path) -> None:
    make(tmp_path / "mini")
    spec = loaded(tmp_path, first={"model": "gone"}, second={"model": "mini"})
    assert refused(lambda: pick(spec, "first"), Exit.UNAVAILABLE) == (
        f"[subject.first] model: {tmp_path / 'gone'}: model directory not found"
    )


def test_an_unfit_default_is_an_error_and_not_a_reason_to_fall_back(tmp_path: Path) -> None:
    """What the user can mend is told; only what cannot be had makes way for the next."""
    make(tmp_path / "mini")
    make(tmp_path / "flat", TL | {"n_layers": 1})
    spec = loaded(tmp_path, first={"model": "flat"}, second={"model": "mini"})
    assert "the model has one layer" in refused(lambda: pick(spec), Exit.USAGE)


def test_nothing_at_hand_names_every_reason(tmp_path: Path) -> None:
    message = refused(lambda: pick(loaded(tmp_path, a={"model": "x"}, b={"model": "y"})), Exit.UNAVAILABLE)
    assert "a cannot be had here" in message
    assert "b cannot be had here" in message


def test_an_unknown_subject_is_a_usage_error_with_a_hint(tmp_path: Path) -> None:
    make(tmp_path / "mini")
    spec = loaded(tmp_path, mini={"model": "mini"})
    assert refused(lambda: pick(spec, "minni"), Exit.USAGE) == (
        "--subject minni: no such subject. Did you mean 'mini'? Declared: mini; a model folder or a hub name "
        "(owner/name) is also allowed"
    )


def test_a_folder_is_a_subject_of_its_own_name(tmp_path: Path) -> None:
    make(tmp_path / "mini")
    make(tmp_path / "elsewhere")
    spec = loaded(tmp_path, mini={"model": "mini"})
    chosen = pick(spec, str(tmp_path / "elsewhere"))
    assert re.fullmatch("elsewhere-[0-9a-f]{8}", chosen.name)
    assert (chosen.subject.writer, chosen.subject.examples) == ("auto", "auto")
    assert chosen.tokens.shape == (5, 16)


@pytest.mark.parametrize(
    ("folder", "word"),
    [("mini", "mini"), ("bench", "bench"), ("my model", "my-model"), ("\u6a21", "model"), ("x" * 200, "x" * 48)],
)
def test_a_folder_never_passes_for_a_declared_subject(tmp_path: Path, folder: str, word: str) -> None:
    """Results, copies in git and published numbers go by the subject's name."""
    make(tmp_path / "declared")
    (tmp_path / "away").mkdir()
    spec = loaded(tmp_path, mini={"model": "declared"})
    name = pick(spec, str(make(tmp_path / "away" / folder))).name
    assert re.fullmatch(f"{word}-[0-9a-f]{{8}}", name)
    assert NAME.fullmatch(name)


def test_two_folders_of_one_name_are_two_subjects(tmp_path: Path) -> None:
    make(tmp_path / "declared")
    spec = loaded(tmp_path, mini={"model": "declared"})
    for parent in "abc":
        (tmp_path / parent).mkdir()
    one = make(tmp_path / "a" / "checkpoint 100")
    other = make(tmp_path / "b" / "checkpoint 100", TL | {"eps": 1e-6})
    prompts = make(tmp_path / "c" / "checkpoint 100", tokens=np.tile(np.arange(9, dtype=np.int32), (5, 1)))
    names = [pick(spec, str(folder)).name for folder in (one, other, prompts)]
    assert len(set(names)) == 3
    moved = shutil.move(one, tmp_path / "checkpoint 100")
    assert pick(spec, str(moved)).name == names[0], "a directory that is moved keeps its results"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{}/model.safetensors", ": a file; give the directory that holds config.json, the weights and prompts"),
        ('"{}"', ": quotes are part of the name; give the path without them: {}"),
        ("C:\\models\\mine", ": a path of Windows that is not here; under WSL drives are directories such as /mnt/c"),
        ('"C:\\models\\mine"', ": quotes are part of the name; give the path without them: C:\\models\\mine"),
    ],
    ids=["a file of weights", "quotes", "Windows", "Windows in quotes"],
)
def test_what_is_no_directory_is_refused_with_what_to_give(tmp_path: Path, given: str, sentence: str) -> None:
    folder = make(tmp_path / "toy")
    spec = loaded(tmp_path, toy={"model": "toy"})
    given = given.replace("{}", str(folder))
    message = refused(lambda: pick(spec, given), Exit.USAGE)
    assert message.startswith(f"--subject {given}{sentence.replace('{}', str(folder))}")


def test_a_model_of_the_hub_that_is_not_here_is_one_sentence_offline(tmp_path: Path) -> None:
    spec = loaded(tmp_path, toy={"model": "owner/name"})
    for name in ("toy", "owner/name"):
        assert "owner/name" in refused(lambda name=name: pick(spec, name), Exit.UNAVAILABLE)  # type: ignore[misc]


def test_a_failed_subject_is_named_as_it_was_asked_for_and_no_other_is_blamed(tmp_path: Path) -> None:
    spec = loaded(tmp_path, first={"model": "owner/first"}, toy={"model": "owner/name"})
    for name in ("toy", "openai-community/gpt2"):
        said = refused(lambda name=name: pick(spec, name), Exit.UNAVAILABLE)  # type: ignore[misc]
        assert name in said
        assert "first" not in said


# --------------------------------------------------------------------------------------------------------------- roles

EXAMPLE = {"text": "a", "answer": "b", "other": "c", "head": "L9H1", "label": "one"}


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"writer": "L7H2"}, "writer: unknown node 'L7H2'"),
        ({"writer": "L0H4"}, "writer: unknown node 'L0H4'"),
        ({"writer": "MLP3"}, "writer: unknown node 'MLP3'"),
        ({"writer": "L0H0", "erasers": ["L1H0", "L1H9"]}, "erasers: unknown node 'L1H9'"),
        ({"writer": "L0H0", "erasers": ["L2H0", "MLP3"]}, "erasers: unknown node 'MLP3'"),
        ({"examples": [EXAMPLE]}, "examples head: unknown head 'L9H1'"),
    ],
)
def test_an_unknown_node_is_a_usage_error_that_says_which_there_are(
    tmp_path: Path, entries: dict[str, Any], sentence: str
) -> None:
    make(tmp_path / "toy")
    spec = loaded(tmp_path, toy={"model": "toy"} | entries)
    mlps = "" if "examples" in entries else ", and MLP0 to MLP2"
    assert refused(lambda: pick(spec), Exit.USAGE) == (
        f"[subject.toy] {sentence}; toy has layers 0 to 2 with 4 heads each (L0H0 to L2H3{mlps})"
    )


def test_what_writes_last_is_no_writer(tmp_path: Path) -> None:
    make(tmp_path / "toy")
    assert refused(lambda: pick(loaded(tmp_path, toy={"model": "toy", "writer": "MLP2"})), Exit.USAGE) == (
        "[subject.toy] writer: MLP2 is the last to write; nothing can erase it"
    )
    for writer in ("L2H0", "MLP1"):  # the last MLP reads a head of its own layer
        assert pick(loaded(tmp_path, toy={"model": "toy", "writer": writer})).subject.writer == writer


# ---------------------------------------------------------------------------------------------------------- tokenizers


def write_tokenizer(path: Path) -> Path:
    """A tokenizer of words."""
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Words(WordLevel({word: index for index, word in enumerate(("bos", "one", "two", "three"))}, "bos"))
    words.pre_tokenizer = Whitespace()
    words.save(str(path))
    return path


def test_without_a_tokenizer_texts_are_token_ids() -> None:
    bare = Tokenizer(None, 61)
    assert bare.decode(7, 12) == "<7><12>"
    assert "need a tokenizer.json" in refused(lambda: bare.encode("a"), Exit.UNAVAILABLE)


def test_a_tokenizer_gives_ids_and_texts(tmp_path: Path) -> None:
    words = Tokenizer(write_tokenizer(tmp_path / "tokenizer.json"), 61)
    assert words.encode("one three") == [1, 3]
    assert words.decode(2, 1) == "two one"
    assert words.single("three") == 3
    assert refused(lambda: words.single("one two"), Exit.USAGE) == (
        "'one two' is 2 tokens of this model; an answer is a single token"
    )


def change_tokenizer(path: Path, **model: Any) -> Tokenizer:
    """A tokenizer of words, its model changed."""
    found = json.loads(write_tokenizer(path).read_text())
    path.write_text(json.dumps(found | {"model": found["model"] | model}))
    return Tokenizer(path, 61)


def test_a_tokenizer_that_fails_on_a_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    lacking = change_tokenizer(path, unk_token="unknown")
    assert lacking.encode("one") == [1]
    assert refused(lambda: lacking.encode("four"), Exit.UNAVAILABLE).startswith(f"{path}: unreadable tokenizer (")
    high = change_tokenizer(path, vocab={"bos": 0, "one": 61})
    assert refused(lambda: high.encode("one"), Exit.UNAVAILABLE) == (
        f"{path}: gives token id 61 for 'one', outside the vocabulary of 61"
    )


def test_a_tokenizer_that_makes_its_library_panic_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokenizer.json"
    merging = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    assert change_tokenizer(path, **merging).encode("ab") == [2]
    spoilt = change_tokenizer(path, **merging, continuing_subword_prefix="longer")
    assert refused(lambda: spoilt.encode("ab"), Exit.UNAVAILABLE).startswith(f"{path}: unreadable tokenizer (")
    assert capfd.readouterr() == ("", "")


def test_what_a_tokenizer_does_to_batches_is_not_done_to_texts(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    found = json.loads(path.read_text())
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    cutting = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(found | {"padding": padding | {"pad_to_multiple_of": None}, "truncation": cutting}))
    assert Tokenizer(path, 61).encode("one two three") == [1, 2, 3]


def test_an_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    message = refused(lambda: Tokenizer(path, 61).encode("a"), Exit.UNAVAILABLE)
    assert message.startswith(f"{path}: unreadable tokenizer")


# ------------------------------------------------------------------------------------------------------------- listing


def test_the_list_says_what_is_here_and_what_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "good")
    make(tmp_path / "flat", TL | {"n_layers": 1})
    rows = listed(
        loaded(
            tmp_path,
            good={"model": "good", "about": "a toy"},
            gone={"model": "owner/name"},
            flat={"model": "flat"},
        )
    )
    assert [(row["name"], row["state"]) for row in rows] == [("good", "here"), ("gone", "not here"), ("flat", "unfit")]
    assert rows[0]["about"] == "a toy"


def test_tokens_and_weights_are_read_once(tmp_path: Path) -> None:
    make(tmp_path / "toy")
    chosen = pick(loaded(tmp_path, toy={"model": "toy"}))
    first, weights = chosen.tokens, chosen.weights
    make(tmp_path / "toy", TL | {"eps": 1}, np.ones((9, 4), np.int32))
    assert chosen.tokens is first
    assert chosen.weights == weights
