"""Texts and token ids of a subject."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any

from repro.errors import Exit, ReproError, plain, words_of
from repro.process import suppress_stderr

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for the space before a word."""
_ENDS_LIKE_AN_ID = re.compile(r"<\d+>\Z")


class Tokenizer:
    """Encode and decode a subject's texts; without a tokenizer.json, ids stand for themselves.

    d_vocab: ids that a text gives must be below it.
    """

    def __init__(self, path: Path | None, d_vocab: int) -> None:
        self._path = path
        self._d_vocab = d_vocab

    @cached_property
    def _inner(self) -> Any:
        if self._path is None:
            return None
        import tokenizers

        with self._readable(), suppress_stderr():
            inner = tokenizers.Tokenizer.from_file(str(self._path))
            # What a file says of batches is not for texts that are taken as they are.
            inner.no_truncation()
            inner.no_padding()
        return inner

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ReproError(f"{self._path}: unreadable tokenizer ({words_of(error)})", Exit.UNAVAILABLE) from None

    def decode(self, *ids: int) -> str:
        """Return the text of token ids in a row, `<id>` for each that has none."""
        runs = groupby(ids, key=self._has_piece)
        return "".join(self._decoded(run) if known else "".join(f"<{token}>" for token in run) for known, run in runs)

    def name(self, token: int) -> str:
        """Return the text of one token, its leading space included: different for any two tokens.

        `<id>` stands for a token that has no text, such as part of a character or an id beyond the tokenizer's own, and
        follows a text that several tokens have. Agreement: tests/subjects/test_tokenizer.py.
        """
        text = self._text(token)
        if not text.replace(_NO_CHARACTER, ""):
            return f"<{token}>"
        shared = self._how_many[text] > 1 or _NO_CHARACTER in text or _ENDS_LIKE_AN_ID.search(text)
        return f"{text}<{token}>" if shared else text

    def prompt(self, ids: Sequence[int]) -> str:
        """Return the text of a prompt without what stands before its first words: BOS and other special tokens."""
        return self.decode(*dropwhile(lambda token: token == ids[0] or token in self._special, ids))

    def _has_piece(self, token: int) -> bool:
        return self._inner is not None and self._inner.id_to_token(token) is not None

    def _decoded(self, ids: Iterable[int]) -> str:
        with self._readable():
            text: str = self._inner.decode(list(ids), skip_special_tokens=False)
            return text

    def _text(self, token: int) -> str:
        """Return what the library says of one token; empty where it knows none."""
        if not self._has_piece(token):
            return ""
        text = self._decoded([token])
        # Decoders of this kind drop the space of whatever comes first, and so would give two tokens one text.
        spaced = self._inner.id_to_token(token).startswith(_SPACE_MARK) and not text.startswith(" ")
        return f" {text}" if spaced else text

    @cached_property
    def _how_many(self) -> Counter[str]:
        """How many tokens of the vocabulary have each text."""
        return Counter(self._text(token) for token in range(self._d_vocab))

    @cached_property
    def _special(self) -> frozenset[int]:
        if self._inner is None:
            return frozenset()
        added = self._inner.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS."""
        if self._inner is None:
            raise ReproError("examples given as text need a tokenizer.json in the model's folder", Exit.UNAVAILABLE)
        with self._readable():
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        outside = next((token for token in ids if token >= self._d_vocab), None)
        if outside is not None:
            raise ReproError(
                f"{self._path}: gives token id {outside} for {plain(repr(text), 80)}, outside the vocabulary of "
                f"{self._d_vocab}",
                Exit.UNAVAILABLE,
            )
        return ids

    def single(self, text: str) -> int:
        """Return the id of a text that is one token."""
        ids = self.encode(text)
        if len(ids) != 1:
            raise ReproError(f"{text!r} is {len(ids)} tokens of this model; an answer is a single token")
        return ids[0]
