"""Names of tokens: no two alike, as they are, whatever kind of tokenizer; and prompts without what only opens them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Made

from paper_figures.text import token
from repro.subjects.tokenizer import Tokenizer


def byte_level() -> Made:
    """GPT-2's kind: every byte is a token, so that parts of characters are."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<|endoftext|>", *letters, "Ġthe", "the", "The", "ĊĊ", "ĠĠ", "Ġ\\", "<5>", "\\n"]
    made = Made(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def sentence_pieces() -> Made:
    """Llama's kind: its decoder drops the space of the first word; bytes are written as <0x0A>."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xE4>", "\N{LOWER ONE EIGHTH BLOCK}", "\n"]
    pieces += [f"{mark}{word}" for word in ("the", "a", '"', "bottom") for mark in ("\N{LOWER ONE EIGHTH BLOCK}", "")]
    made = Made(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    mark = decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
    made.decoder = decoders.Sequence([mark, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<s>", "</s>"])
    return made


def words() -> Made:
    """Whole words, and one that differs from another only where nobody sees it."""
    listed = ("bos", "one", "One", "two", "a\N{ZERO WIDTH SPACE}", "a", "模型", "\N{GRINNING FACE}", "<7>")
    made = Made(models.WordLevel({word: index for index, word in enumerate(listed)}, "bos"))
    made.add_tokens([AddedToken("two words"), AddedToken("two  words")])
    return made


KINDS: dict[str, Callable[[], Made]] = {"byte level": byte_level, "sentence pieces": sentence_pieces, "words": words}


def ours(made: Made, folder: Path, padding: int = 3) -> Tokenizer:
    """The tokenizer of a model whose vocabulary is padded with rows that have no token."""
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json", made.get_vocab_size() + padding)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_tokens_have_one_name_nor_print_alike(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind]()
    size = made.get_vocab_size() + 3
    tokenizer = ours(made, tmp_path)
    names = [tokenizer.name(index) for index in range(size)]
    assert len(set(names)) == size
    printed = [token(name) for name in names]
    assert len(set(printed)) == size
    assert all(text.isprintable() and text.strip() == text != "" for text in printed)
    assert names[-3:] == [f"<{size - 3}>", f"<{size - 2}>", f"<{size - 1}>"], "ids without a token"


def test_the_librarys_own_texts_would_not_do() -> None:
    """The control: what is decoded token by token is the same for several."""
    for make in (byte_level, sentence_pieces):
        made = make()
        texts = [made.decode([index], skip_special_tokens=False) for index in range(made.get_vocab_size())]
        assert len(set(texts)) < len(texts)


def test_tokens_are_named_as_they_are(tmp_path: Path) -> None:
    made = sentence_pieces()
    tokenizer, vocabulary = ours(made, tmp_path), made.get_vocab()
    assert tokenizer.name(vocabulary["\N{LOWER ONE EIGHTH BLOCK}bottom"]) == " bottom"
    assert tokenizer.name(vocabulary["bottom"]) == "bottom"
    assert tokenizer.name(vocabulary['"']) == '"'
    assert tokenizer.name(vocabulary["</s>"]) == "</s>"
    newline, byte = vocabulary["\n"], vocabulary["<0x0A>"]
    assert [tokenizer.name(newline), tokenizer.name(byte)] == [f"\n<{newline}>", f"\n<{byte}>"], "two with one text"
    assert tokenizer.name(vocabulary["<0xE4>"]) == f"<{vocabulary['<0xE4>']}>", "part of a character"
    bytes_, known = byte_level(), byte_level().get_vocab()
    tokenizer = ours(bytes_, tmp_path)
    assert [tokenizer.name(known[piece]) for piece in ("Ġthe", "the", "ĊĊ")] == [" the", "the", "\n\n"]
    assert tokenizer.name(known["<5>"]) == f"<5><{known['<5>']}>", "a text that looks like an id has its own"


def test_a_prompt_begins_with_its_words(tmp_path: Path) -> None:
    made = byte_level()
    the, special = made.get_vocab()["the"], made.get_vocab()["<|endoftext|>"]
    tokenizer = ours(made, tmp_path)
    assert tokenizer.prompt([special, the]) == "the"
    assert tokenizer.prompt([special, special, the, special, the]) == "the<|endoftext|>the"
    beyond = made.get_vocab_size() + 1
    assert tokenizer.prompt([special, the, beyond, the]) == f"the<{beyond}>the"
    assert Tokenizer(None, 9).prompt([0, 0, 7, 0]) == "<7><0>"


def test_without_a_tokenizer_a_name_is_an_id() -> None:
    assert [Tokenizer(None, 9).name(index) for index in (0, 8)] == ["<0>", "<8>"]
