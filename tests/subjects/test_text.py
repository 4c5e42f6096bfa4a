"""Prompts of plain text: lengths, BOS, files and the bundled sample, and what is said of texts that cannot be used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from repro.errors import Exit
from repro.model.folder import read_folder
from repro.spec.types import TextPrompts
from repro.subjects.access import Access
from repro.subjects.bos import first_token
from repro.subjects.resolve import ResolvedSubject, choose
from repro.subjects.text import SAMPLE, freeze_text, read_sample
from tests.model.test_folder import TL, make
from tests.runs import ROOT, cli
from tests.subjects.test_subjects import loaded, refused, write_tokenizer

WORDS = {"bos": 0, "one": 1, "two": 2, "three": 3}


def bare(folder: Path, **config: Any) -> Path:
    """A model with a tokenizer of words, a BOS in its configuration, and no prompts."""
    make(folder, TL | {"bos_token_id": 0} | config)
    (folder / "prompts.safetensors").unlink()
    write_tokenizer(folder / "tokenizer.json")
    return folder


class Place:
    """A model, texts beside it, and the call under test."""

    def __init__(self, root: Path) -> None:
        self.root, self.model = root, bare(root / "model")

    def freeze(self, *files: str, **recipe: Any) -> tuple[Path, str]:
        prompts = TextPrompts(text=files or "sample", **recipe)
        return freeze_text(prompts, self.model, self.root, self.root / "cache", "--text")

    def tokens(self, *files: str, **recipe: Any) -> list[list[int]]:
        found: list[list[int]] = load_file(self.freeze(*files, **recipe)[0])["tokens"].tolist()
        return found

    def write(self, name: str, text: str) -> str:
        (self.root / name).write_text(text)
        return name


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --------------------------------------------------------------------------------------------------------------- files


def test_each_prompt_is_bos_and_the_next_tokens_of_a_file(place: Place) -> None:
    place.write("a.txt", "one two three one one")
    place.write("b.txt", "three three two")
    assert place.tokens("a.txt", length=3) == [[0, 1, 2], [0, 3, 1]], "the last token fills no prompt"
    assert place.tokens("b.txt", "a.txt", length=3) == [[0, 3, 3], [0, 1, 2], [0, 3, 1]]
    assert place.tokens("b.txt", "a.txt", length=3, rows=2) == [[0, 3, 3], [0, 1, 2]]


def test_the_length_is_the_longest_that_all_files_reach_and_is_told(place: Place) -> None:
    place.write("long.txt", "one two three one two")
    place.write("short.txt", "three three")
    assert place.tokens("long.txt", "short.txt") == [[0, 1, 2], [0, 3, 1], [0, 3, 3]]
    about = place.freeze("long.txt", "short.txt")[1]
    shared = "what they share makes p-values and intervals too small"
    assert about == (
        f"3 prompts from 2 text files, 3 tokens each (all that short.txt gives); 3 prompts of 2 documents: {shared}"
    )
    assert place.freeze("long.txt", length=3)[1] == (
        f"2 prompts from 1 text file, 3 tokens each; 2 prompts of 1 document: {shared}"
    )


def test_no_prompt_is_longer_than_the_context(place: Place) -> None:
    place.write("a.txt", "one two three " * 40)
    place.write("b.txt", "two three " * 60)
    assert {len(row) for row in place.tokens("a.txt", "b.txt", rows=1)} == {TL["n_ctx"]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "--text: a.txt cannot be read (No such file or directory); name a text file"),
        (b"", "--text: a.txt holds no text; leave it out"),
        (b" \n\t", "--text: a.txt holds no text; leave it out"),
        (b"one \xff", "--text: a.txt is not plain text: byte 4 is no UTF-8; save it as UTF-8"),
        (
            b"one two one two",
            "--text: prompts 0 and 1 (a.txt, a.txt) are the same 3 tokens; prompts must differ, so leave one out",
        ),
    ],
    ids=["absent", "empty", "blank", "binary", "twice"],
)
def test_a_text_that_cannot_be_used_is_named(place: Place, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (place.root / "a.txt").write_bytes(content)
    assert refused(lambda: place.freeze("a.txt", length=3), Exit.USAGE) == sentence


def test_a_directory_is_no_text(place: Place) -> None:
    (place.root / "texts").mkdir()
    assert "texts cannot be read (Is a directory)" in refused(lambda: place.freeze("texts"), Exit.USAGE)


def test_frozen_tokens_that_were_damaged_are_written_again(place: Place) -> None:
    place.write("a.txt", "one two three")
    path, _ = place.freeze("a.txt")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x07")
    assert place.freeze("a.txt")[0] == path
    assert path.read_bytes() == content


def test_a_model_without_tokenizer_says_what_it_needs(place: Place) -> None:
    (place.model / "tokenizer.json").unlink()
    place.write("a.txt", "one")
    assert refused(lambda: place.freeze("a.txt"), Exit.UNAVAILABLE) == (
        f"{place.model}: no tokenizer.json, so that plain text cannot be tokenised; put the model's tokenizer.json "
        "there or prompts.safetensors with `tokens`, int32 [prompts, positions], BOS first"
    )


# ----------------------------------------------------------------------------------------------------------------- BOS


def edit(path: Path, **entries: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | entries))


def special(folder: Path, **ids: int) -> None:
    edit(folder / "tokenizer.json", added_tokens=[{"content": k, "id": v, "special": True} for k, v in ids.items()])


def test_bos_is_the_first_that_is_named(place: Place) -> None:
    model = place.model
    edit(model / "config.json", bos_token_id=None, eos_token_id=[5, 6])
    assert first_token(model, 61) == 5, "the end of text, where nothing else is named"
    special(model, **{"<s>": 7, "<|go|>": 8, "<pad>": 9})
    assert first_token(model, 61) == 7, "a special token with a usual name"
    edit(model / "tokenizer_config.json", bos_token={"content": "<|go|>"})
    assert first_token(model, 61) == 8, "the tokenizer's configuration"
    edit(model / "config.json", bos_token_id=10)
    assert first_token(model, 61) == 10, "the model's configuration"
    save_file({"tokens": np.full((2, 4), 11, np.int32)}, model / "prompts.safetensors")
    assert first_token(model, 61) == 11, "the model's own prompts"


@pytest.mark.parametrize("token", [61, -1, "0", 0.0, True, []])
def test_a_bos_outside_the_vocabulary_is_named(place: Place, token: object) -> None:
    edit(place.model / "config.json", bos_token_id=token)
    message = refused(lambda: first_token(place.model, 61), Exit.UNAVAILABLE)
    assert message.startswith(f"{place.model / 'config.json'}: bos_token_id is {token!r}; a token id below")


def test_a_model_that_names_no_bos_says_what_it_needs(place: Place) -> None:
    edit(place.model / "config.json", bos_token_id=None)
    assert "set bos_token_id in config.json" in refused(lambda: first_token(place.model, 61), Exit.UNAVAILABLE)


# -------------------------------------------------------------------------------------------------------------- sample


def test_the_sample_is_free_documents_of_two_kinds_in_turn() -> None:
    import gzip

    rows = [json.loads(line) for line in gzip.decompress(SAMPLE.read_bytes()).splitlines()]
    assert len(rows) >= 40
    assert [row["kind"] for row in rows] == ["prose", "code"] * (len(rows) // 2)
    assert {row["licence"] for row in rows} <= {"MIT", "BSD-2-Clause", "BSD-3-Clause", "PSF-2.0", "Apache-2.0"}
    assert len({row["text"] for row in rows}) == len(rows)
    assert [document.text for document in read_sample()] == [row["text"] for row in rows]
    assert sum(path.stat().st_size for path in SAMPLE.parent.iterdir()) < 3_000_000


def test_every_document_has_its_origin_and_its_licence_beside_it() -> None:
    origins, licences = (SAMPLE.with_name(name).read_text() for name in ("README.md", "LICENCES.txt"))
    for number, document in enumerate(read_sample()):
        distribution, file = document.name.split(", ", 1)
        assert f"| {number} | " in origins
        assert f"`{file}`" in origins
        assert distribution in licences


def test_code_of_the_sample_is_code() -> None:
    """Whole lines of real sources: what was cut ends in the middle of nothing but a statement."""
    for document in read_sample()[1::2]:
        lines = document.text.splitlines()
        assert any(line.startswith(("def ", "class ")) for line in lines), document.name
        assert document.text.endswith("\n")


def test_the_sample_is_long_enough_for_the_bundled_tokenizer(tmp_path: Path) -> None:
    mini = shutil.copytree(ROOT / "repro" / "subjects" / "mini", tmp_path / "mini")
    recipe = TextPrompts(text="sample")
    path, _ = freeze_text(recipe, mini, tmp_path, tmp_path / "cache", "")
    tokens = load_file(path)["tokens"]
    assert tokens.shape == (len(read_sample()), 1024)
    assert set(tokens[:, 0]) == {0}
    assert (tokens[:, 1:] != 0).all()


def test_of_the_sample_each_document_is_one_prompt(place: Place) -> None:
    place.model = shutil.copytree(ROOT / "repro" / "subjects" / "mini", place.root / "mini")
    first = place.tokens(rows=3, length=16)
    assert len(first) == 3
    assert [row[:10] for row in place.tokens(rows=2, length=10)] == [row[:10] for row in first[:2]]


# ------------------------------------------------------------------------------------------------------------ subjects

Pick = Callable[..., ResolvedSubject]


@pytest.fixture
def pick(tmp_path: Path) -> Pick:
    mini = ROOT / "repro" / "subjects" / "mini"
    own = {"model": str(mini), "prompts": {"text": ["a.txt", "b.txt"], "length": 4}}
    spec = loaded(tmp_path, mini={"model": str(mini)}, own=own)
    (tmp_path / "a.txt").write_text("A first text, about nothing.")
    (tmp_path / "b.txt").write_text("def second():\n    return 2\n")

    def choose_it(name: str | None, *text: str) -> ResolvedSubject:
        access = Access(tmp_path / "cache", offline=True)
        return choose(spec, name, access, [tmp_path / file for file in text])

    return choose_it


def test_a_model_without_prompts_is_given_the_sample_loudly(pick: Pick, tmp_path: Path) -> None:
    model = shutil.copytree(ROOT / "repro" / "subjects" / "mini", tmp_path / "lone")
    edit(model / "config.json", bos_token_id=0)
    (model / "prompts.safetensors").unlink()
    lone = pick(str(model))
    assert lone.tokens.shape == (30, 1024)
    assert lone.notice == ("NO PROMPTS OF ITS OWN: lone is given 30 documents of the bundled sample, 1024 tokens each")
    assert pick("mini").notice == "", "the control: a model with prompts"


def test_text_takes_the_place_of_prompts_under_another_name(pick: Pick, tmp_path: Path) -> None:
    chosen = pick("mini", "a.txt", "b.txt")
    assert re.fullmatch("mini-text-[0-9a-f]{8}", chosen.name)
    assert chosen.notice.startswith("prompts: ")
    assert chosen.tokenizer.decode(*chosen.tokens[0, 1:]) in "A first text, about nothing."
    assert pick("mini", "a.txt").name != chosen.name, "another text, another name"
    assert pick(None, "a.txt").name == pick("mini", "a.txt").name
    assert pick("mini").tokens.shape == (300, 1024)


def test_a_spec_may_name_texts(pick: Pick) -> None:
    assert pick("own").tokens.shape[1] == 4
    assert pick("own").name == "own"


def test_the_option_text_names_files_from_here(folders: dict[str, Path], tmp_path: Path) -> None:
    model = shutil.copytree(folders["native"], tmp_path / "toy")
    write_tokenizer(model / "tokenizer.json")
    (tmp_path / "a.txt").write_text("one two three two one three three")
    given = (
        "plan",
        "--subject",
        model,
        "--out",
        tmp_path,
        "--text",
        tmp_path / "a.txt",
        "--spec",
        ROOT / "experiments.toml",
    )
    said = cli(*given).out.splitlines()
    assert said[0].startswith("subject: toy-text-")
    assert said[1] == f"prompts: 1 prompt from 1 text file, 8 tokens each (all that {tmp_path / 'a.txt'} gives)"
    (model / "tokenizer.json").unlink()
    answer = cli(*given)
    assert answer.code == Exit.UNAVAILABLE
    assert "no tokenizer.json" in answer.err


def test_a_model_without_prompts_and_tokenizer_says_what_it_needs(tmp_path: Path) -> None:
    model = bare(tmp_path / "bare")
    (model / "tokenizer.json").unlink()
    spec = loaded(tmp_path, bare={"model": "bare"})
    message = refused(lambda: choose(spec, "bare", Access(tmp_path / "cache")), Exit.UNAVAILABLE)
    assert message.startswith(f"{model}: no tokenizer.json")
    assert read_folder(make(model)).tokenizer is None, "the control: with prompts it needs none"
