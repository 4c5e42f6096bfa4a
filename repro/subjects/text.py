"""Prompts from plain text, tokenised by the model's own tokenizer: the bundled sample, or files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro.errors import ReproError, listing, unavailable, words_of
from repro.files import write_durably
from repro.model.folder import PROMPTS, Shape, read_shape, tokens_fingerprint
from repro.spec.types import TextPrompts
from repro.subjects.bos import first_token
from repro.subjects.given import shown_path
from repro.subjects.refusals import disk_errors
from repro.subjects.tokenizer import Tokenizer

SAMPLE = Path(__file__).with_name("sample") / "documents.jsonl.gz"
_LARGEST = 1 << 26
"""Bytes of a text file."""


@dataclass(frozen=True)
class Document:
    """One text."""

    name: str
    """Where it comes from, for messages."""
    text: str


def freeze_text(recipe: TextPrompts, model: Path, base: Path, cache: Path, where: str) -> tuple[Path, str]:
    """Write prompts of plain text: token ids of a model's own tokenizer, BOS first, all of the same length.

    The length is the recipe's, or what the model's context and the shortest text allow. A document of the sample gives
    one prompt, a file as many as it holds in full. The file in the cache is named by its content and written again if
    it is anything else.

    model: a model directory with tokenizer.json. base: where relative paths start. where: what names the texts, for
    messages. Returns a safetensors file with `tokens`, int32 [prompt, position], and how many there are, how long, and
    of what. Raises ReproError: exit 2 for texts that cannot be used, exit 4 for a model without tokenizer or BOS.
    Agreement: tests/subjects/test_text.py.
    """
    shape = read_shape(model)
    tokenizer = _tokenizer(model, shape)
    bos = first_token(model, shape.d_vocab)
    sampled = recipe.text == "sample"
    # A file may hold many prompts, so that all are read; of the sample, each document is one.
    documents = read_sample()[: recipe.rows] if sampled else [read_file(name, base, where) for name in recipe.text]
    encoded = _encode(documents, tokenizer, where)
    shortest = min(range(len(encoded)), key=lambda index: len(encoded[index]))
    length = min(recipe.length, shape.n_ctx, 1 + len(encoded[shortest]))
    parts = [prompts_of(ids, bos, length)[: 1 if sampled else None] for ids in encoded]
    tokens = np.array([row for part in parts for row in part][: recipe.rows], np.int32)
    origins = [document.name for document, part in zip(documents, parts, strict=True) for _ in part][: recipe.rows]
    if (repeat := first_repeat(tokens)) is not None:
        both = listing([shown_path(origins[number]) for number in repeat])
        raise ReproError(
            f"{where}: prompts {repeat[0]} and {repeat[1]} ({both}) are the same {length} tokens; prompts must differ, "
            "so leave one out"
        )
    source = "of the bundled sample" if sampled else f"from {_count(len(documents), 'text file')}"
    about = f"{_count(len(tokens), 'document' if sampled else 'prompt')} {source}, {length} tokens each"
    if length < min(recipe.length, shape.n_ctx):
        about += f" (all that {shown_path(documents[shortest].name)} gives)"
    if len(set(origins)) < len(origins):
        about += (
            f"; {len(origins)} prompts of {_count(len(set(origins)), 'document')}: what they share makes p-values and "
            "intervals too small"
        )
    return _kept(tokens, cache), about


def read_sample() -> list[Document]:
    """Return the documents of the bundled sample, documentation and Python code in turn."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Document(f"{row['source']}, {row['file']}", row["text"]) for row in rows]


def read_file(name: str, base: Path, where: str) -> Document:
    """Return a file of plain text, its path relative to `base`. Raises ReproError (exit 2) if it is no such file.

    where: what names the file, for messages. Agreement: tests/subjects/test_text.py.
    """
    shown = f"{where}: {shown_path(name)}"
    try:
        path = base / Path(name).expanduser()
        if path.stat().st_size > _LARGEST:
            raise ReproError(f"{shown} has more than {_LARGEST >> 20} MiB; split it")
        return Document(name, path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ReproError(f"{shown} is not plain text: byte {error.start} is no UTF-8; save it as UTF-8") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or words_of(error)
        raise ReproError(f"{shown} cannot be read ({reason}); name a text file") from None


def _tokenizer(model: Path, shape: Shape) -> Tokenizer:
    path = model / "tokenizer.json"
    if not path.is_file():
        raise unavailable(
            f"{model}: no tokenizer.json, so that plain text cannot be tokenised; put the model's tokenizer.json there "
            f"or {PROMPTS} with `tokens`, int32 [prompts, positions], BOS first"
        )
    return Tokenizer(path, shape.d_vocab)


def _encode(documents: Sequence[Document], tokenizer: Tokenizer, where: str) -> list[list[int]]:
    encoded = []
    for document in documents:
        ids = tokenizer.encode(document.text)
        if not ids:
            raise ReproError(f"{where}: {shown_path(document.name)} holds no text; leave it out")
        encoded.append(ids)
    return encoded


def prompts_of(ids: Sequence[int], bos: int, length: int) -> list[list[int]]:
    """Return the prompts that a text's token ids hold in full: each BOS and the next length - 1 of them."""
    step = length - 1
    return [[bos, *ids[start : start + step]] for start in range(0, len(ids) - step + 1, step)]


def first_repeat(tokens: np.ndarray) -> tuple[int, int] | None:
    """Return the first row that stands in [row, position] a second time, and where: its numbers; None if all differ."""
    seen: dict[bytes, int] = {}
    for number, row in enumerate(tokens):
        first = seen.setdefault(row.tobytes(), number)
        if first != number:
            return first, number
    return None


def _kept(tokens: np.ndarray, cache: Path) -> Path:
    """Return the file that holds these tokens; it is written unless it does so already."""
    from safetensors.numpy import save

    content = save({"tokens": np.ascontiguousarray(tokens)})
    path = cache / "prompts" / f"text-{tokens_fingerprint(tokens)[:16]}.safetensors"
    with disk_errors(cache):
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, content)
    return path


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
