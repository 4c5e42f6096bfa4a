"""A scan of a model in a notebook: text or tokens in, the answer out, nothing stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import ValidationError

from repro.errors import ReproError
from repro.measures.path_shares import PathShares
from repro.model.folder import PROMPTS, read_folder, read_prompts, read_shape
from repro.scan.choose import confirm_on
from repro.scan.expected import Case, compare
from repro.scan.table import answer
from repro.scan.twin import Twin, untrained_twins
from repro.scan.verdict import DRAWS, Scan, to_confirm
from repro.scan.verdict import scan as judge
from repro.spec.messages import described, unfit
from repro.subjects.bos import first_token
from repro.subjects.text import prompts_of, read_file, read_sample
from repro.subjects.tokenizer import Tokenizer

SAMPLE_ROWS = 30
"""Documents of the bundled sample that a model without prompts is given."""


@dataclass(frozen=True, repr=False)
class ScanResult:
    """What a scan found; printed, it is the table that `python -m repro scan` prints."""

    rest: Scan
    """All positions but the first: writers, their claimed erasers, and how sure it is."""
    first: Scan
    """Position 0, one observation where all prompts begin alike."""
    raw: xr.Dataset
    """Path shares, clean shares and presence of every pair, per prompt."""
    name: str
    n_positions: int
    twins: tuple[Twin, ...] = ()
    """What the same scan claims in untrained twins, where it was asked for."""
    known: tuple[Case, ...] = ()
    """Expected erasures, where the model's directory has the name of a listed model, and whether they are claimed."""

    def __str__(self) -> str:
        return "\n".join(answer(self.rest, self.first, self.name, self.n_positions, self.twins, self.known))

    __repr__ = __str__


def scan(
    model: Any,
    text: str | Path | Sequence[str | Path] | None = None,
    *,
    tokens: Any = None,
    tokenizer: Any = None,
    length: int = 1024,
    stride: int = 32,
    decoys: int = 64,
    confirm: bool = True,
    controls: bool = False,
    draws: int = DRAWS,
    name: str | None = None,
) -> ScanResult:
    """Return which components of a model take back what others wrote, because it was written.

    model: as for `repro.corrected_dla`. text: documents, as strings or as `pathlib.Path` of text files; each gives as
    many prompts of `length` tokens as it holds in full, BOS first. tokens: prompts [prompt, position] in place of text.
    Nothing: the model directory's own prompts, else the bundled sample. tokenizer: a tokenizer.json or a Hugging Face
    tokenizer, for text given to a model in memory; a directory has its own. stride: destinations looked at, one in so
    many; decoys: for each component; confirm: whether what is claimed is tried by real forwards; controls: whether two
    untrained twins of the model are scanned, too; draws: of the bootstrap, 0 for no intervals; name: what the table
    calls the model. Returns a ScanResult; its `rest.writers` are the claims, and `repro.corrected_dla` takes it as
    `erasers`. Raises ReproError: exit 2 for arguments, text or tokens that do not fit, exit 4 for a model that cannot
    be had.
    Agreement: tests/scan/test_corrected.py, with the stored scan.
    """
    from repro.model.given import as_tokens, loaded
    from repro.scan.examine import measured

    measure = _measure(stride=stride, decoys=decoys)
    for key, value, least in (("length", length, 2), ("draws", draws, 0)):
        if type(value) is not int or value < least:
            raise ReproError(key + unfit(value, f"a whole number from {least} on"))
    ids = as_tokens(tokens) if tokens is not None else _tokens(model, text, tokenizer, length)
    made = loaded(model, ids)
    raw = measured(made, ids, measure)
    confirmed = confirm_on(made, ids, to_confirm(judge(raw, draws=0))) if confirm else {}
    directory = Path(model).expanduser().resolve().name if isinstance(model, str | Path) else ""
    if name is None:
        name = directory or type(model).__name__
    rest, first = judge(raw, confirmed=confirmed, draws=draws), judge(raw, "first", draws=0)
    twins = untrained_twins(made, ids, measure) if controls else ()
    return ScanResult(rest, first, raw, name, ids.shape[1], twins, compare("", directory, rest, first))


def _measure(**given: Any) -> PathShares:
    """Return the measure with its fields as given. Raises ReproError (exit 2) for one that does not fit."""
    try:
        return PathShares(measure="path_shares", **given)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        field = PathShares.model_json_schema()["properties"][name]
        raise ReproError(name + unfit(given[name], described([field]))) from None


def _tokens(model: Any, text: str | Path | Sequence[str | Path] | None, tokenizer: Any, length: int) -> np.ndarray:
    """Return prompts [prompt, position] for a model: of text, its own, or of the bundled sample."""
    directory = Path(model).expanduser() if isinstance(model, str | Path) else None
    if text is None and directory is not None and (directory / PROMPTS).is_file():
        return read_prompts(read_folder(directory)).astype(np.int64)
    encode, bos, context = _encoder(model, directory, tokenizer)
    if text is None:
        texts = [document.text for document in read_sample()[:SAMPLE_ROWS]]
    else:
        texts = list(_texts([text] if isinstance(text, str | Path) else text))
    encoded = [encode(part) for part in texts]
    if not encoded or not all(encoded):
        raise ReproError("text: at least one document, none of them empty")
    size = min(length, context, 1 + min(map(len, encoded)))
    rows = [row for part in encoded for row in prompts_of(part, bos, size)]
    # What the sample or a document says twice is one observation.
    return np.array(list(dict.fromkeys(map(tuple, rows))), np.int64)


def _texts(given: Any) -> Iterator[str]:
    """Yield documents: strings as they are, text files read. Raises ReproError (exit 2) for anything else."""
    if not isinstance(given, Sequence):
        raise ReproError("text" + unfit(given, "strings, or text files as pathlib.Path"))
    for part in given:
        if not isinstance(part, str | Path):
            raise ReproError("text" + unfit(part, "strings, or text files as pathlib.Path"))
        yield part if isinstance(part, str) else read_file(str(part), Path(), "text").text


def _encoder(model: Any, directory: Path | None, tokenizer: Any) -> tuple[Any, int, int]:
    """Return text -> token ids, the BOS token and the context length."""
    if directory is not None:
        shape = read_shape(directory)
        path = directory / "tokenizer.json" if tokenizer is None else tokenizer
        encode = Tokenizer(Path(path), shape.d_vocab).encode if isinstance(path, str | Path) else _library(tokenizer)
        return encode, first_token(directory, shape.d_vocab), shape.n_ctx
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    if tokenizer is None:
        raise ReproError("text: a model in memory needs tokenizer=, a tokenizer.json or a Hugging Face tokenizer")
    named = (getattr(tokenizer, "bos_token_id", None), getattr(config, "bos_token_id", None))
    bos = next((token for token in (*named, getattr(config, "eos_token_id", None)) if isinstance(token, int)), None)
    if bos is None:
        raise ReproError("text: neither the tokenizer nor the model names a BOS token; give tokens= instead")
    context = next(
        (n for key in ("max_position_embeddings", "n_positions", "n_ctx") if (n := getattr(config, key, None))), 0
    )
    if isinstance(tokenizer, str | Path):
        words: Any = getattr(config, "vocab_size", None) or getattr(config, "d_vocab", 0)
        return Tokenizer(Path(tokenizer), int(words)).encode, bos, context
    return _library(tokenizer), bos, context


def _library(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return text -> token ids of a Hugging Face tokenizer. Raises ReproError (exit 2) for what is none."""
    if not callable(tokenizer):
        raise ReproError("tokenizer" + unfit(tokenizer, "the path of a tokenizer.json, or a Hugging Face tokenizer"))
    return lambda part: list(tokenizer(part, add_special_tokens=False)["input_ids"])
