"""Texts and token ids of a subject."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from repro.errors import Exit, ReproError, plain, words_of
from repro.process import suppress_stderr


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
        """Return the text of token ids; `‹id›` for each where there is no tokenizer."""
        if self._inner is None:
            return "".join(f"‹{token}›" for token in ids)  # noqa: RUF001 - marks that no text has
        with self._readable():
            return self._inner.decode(list(ids), skip_special_tokens=False)

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
