"""Prompts from the hub: rows of tokenised data sets in the authors' order, frozen once as int32 and then verified.

The order is that of `datasets` before version 5.1: shards shuffled by the seed, then a buffer of which one random row
is handed out whenever the next one comes in. Later versions shuffle otherwise under the same arguments, so the buffer
is our own; then all rows are permuted by torch's generator.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from repro.errors import AbsentError, ReproError, unavailable
from repro.files import sync_folder, temporary
from repro.model.folder import tokens_fingerprint
from repro.spec.types import HubPrompts
from repro.subjects.hub_cache import alone, writing
from repro.subjects.hub_transfer import Hub, Progress
from repro.subjects.lock import Pins, PromptsPin, Repo

COLUMN = "tokens"
T = TypeVar("T")


def freeze_prompts(
    recipe: HubPrompts,
    *,
    d_vocab: int,
    cache: Path,
    lock: Pins,
    offline: bool = False,
    timeout: float = 10.0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The frozen prompts of a recipe: a safetensors file with `tokens`, int32 [prompt, position].

    Rows of each data set in the authors' order, concatenated, permuted by `torch.randperm` after `manual_seed(seed)`.
    The file's metadata has `kind` (a JSON list, one word a row), `sha256` of the ids as little-endian int32, the
    recipe, the commits of the data sets, and `seal`, a hash of all this. A second call reads the file and asks nobody.

    recipe: data sets, rows of each, tokens a row, seed, buffer. d_vocab: ids must be below it. cache, lock, offline,
    timeout, force: as for `fetch_model`. progress: called with a data set's name, its rows so far and its rows.
    Raises ReproError: exit 4 for what cannot be had, and for duplicate rows, short rows and ids out of range, by row
    number. Agreement: tests/subjects/test_hub_prompts.py.
    """
    folder = cache / "prompts"
    text = _canonical(recipe)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    with writing(cache):
        if path.exists():
            return _verified(path, text, d_vocab, lock)
        if offline:
            names = ", ".join(source.dataset for source in recipe.sources)
            raise AbsentError(f"prompts from {names} are not in the cache {cache}, and this run does not ask the hub")
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, "prompts", timeout):
            if not path.exists():
                _freeze(recipe, path, d_vocab, lock, Hub(cache, timeout, force), progress)
    return _verified(path, text, d_vocab, lock)


def _freeze(recipe: HubPrompts, path: Path, d_vocab: int, lock: Pins, hub: Hub, progress: Progress | None) -> None:
    from safetensors.numpy import save_file

    parts, kinds, commits = [], [], {}
    for source in recipe.sources:
        pin = lock.repo(f"datasets/{source.dataset}", source.dataset, "main")
        commit = hub.listing(source.dataset, "dataset", pin.revision if pin else "main").commit
        commits[source.dataset] = commit
        wanted = source.rows + recipe.buffer
        rows: list[list[int]] = []
        with closing(_stream(source.dataset, commit, recipe.seed, wanted, hub, path.parent)) as incoming:
            for row in islice(shuffled(incoming, recipe.buffer, recipe.seed), source.rows):
                rows.append(row)
                if progress is not None:
                    progress(source.dataset, len(rows), source.rows)
        parts.append(as_tokens(rows, source.dataset, source.rows, recipe.length, d_vocab))
        kinds += [source.kind] * source.rows
    tokens = np.concatenate(parts)
    _refuse_duplicates(tokens, [(source.dataset, source.rows) for source in recipe.sources])
    order = permutation(len(tokens), recipe.seed)
    tokens = np.ascontiguousarray(tokens[order])
    metadata = {
        "kind": json.dumps([kinds[row] for row in order]),
        "sha256": tokens_fingerprint(tokens),
        "recipe": _canonical(recipe),
        "commits": json.dumps(commits, sort_keys=True),
    }
    metadata["seal"] = _seal(metadata)
    # Before anything is kept: rows that the lock does not know must not settle in the cache.
    _learn(lock, tokens, commits, metadata["recipe"])
    temp = temporary(path)
    try:
        save_file({"tokens": tokens}, temp, metadata)
        with temp.open("rb") as handle:
            os.fsync(handle.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(path.parent)


def _verified(path: Path, text: str, d_vocab: int, lock: Pins) -> Path:
    """Frozen prompts, once their bytes agree with their own metadata and with the lock."""
    from safetensors import SafetensorError, safe_open

    again = f"delete {path} to stream it again"
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata, tokens = file.metadata() or {}, file.get_tensor("tokens")
        if metadata.pop("seal") != _seal(metadata):
            raise ValueError("metadata")
        commits = json.loads(metadata["commits"])
        wanted = metadata["sha256"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise unavailable(f"{path}: damaged prompts ({type(error).__name__}); {again}") from None
    found = tokens_fingerprint(tokens)
    if found != wanted or metadata.get("recipe") != text:
        raise unavailable(f"{path}: sha256 of the tokens is {found}, its metadata has {wanted}; {again}")
    outside = np.argwhere((tokens < 0) | (tokens >= d_vocab))
    if len(outside):
        row, column = outside[0]
        raise unavailable(
            f"{path}: token id {tokens[row, column]} at row {row}, position {column} is outside the vocabulary of "
            f"{d_vocab}"
        )
    try:
        _learn(lock, tokens, commits, text)
    except ReproError as error:
        raise ReproError(f"{error.message}; {again}", error.code) from None
    return path


def _seal(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _learn(lock: Pins, tokens: np.ndarray, commits: Mapping[str, str], recipe: str) -> None:
    for dataset, commit in commits.items():
        lock.learn(f"datasets/{dataset}", Repo(dataset, "main", commit, {}))
    lock.learn_prompts(PromptsPin(tokens_fingerprint(tokens), *tokens.shape), recipe)


def _canonical(recipe: HubPrompts) -> str:
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True)


def shuffled(rows: Iterable[T], buffer: int, seed: int) -> Iterator[T]:
    """Rows in the order of a streaming shuffle, as the authors' library did it.

    The first `buffer` rows fill the buffer; each further row takes the place of a random one, which is handed out, by
    `default_rng(seed).integers(0, buffer)` drawn 1000 at a time; what remains at the end is shuffled by the same
    generator. Agreement: tests/subjects/test_hub_prompts.py.
    """
    generator = np.random.default_rng(seed)
    places = _draws(generator, buffer)
    held: list[T] = []
    for row in rows:
        if len(held) < buffer:
            held.append(row)
            continue
        place = next(places)
        yield held[place]
        held[place] = row
    generator.shuffle(held)
    yield from held


def _draws(generator: np.random.Generator, buffer: int) -> Iterator[int]:
    while True:
        yield from (int(place) for place in generator.integers(0, buffer, size=1000))


def permutation(n: int, seed: int) -> list[int]:
    """`torch.randperm(n)` after `torch.manual_seed(seed)`, leaving the global generator alone."""
    import torch

    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def as_tokens(rows: Sequence[object], dataset: str, n: int, length: int, d_vocab: int) -> np.ndarray:
    """Rows of token ids as int32 [n, length]; longer rows are cut.

    Raises ReproError (exit 4) for missing rows, short rows and ids out of range, by row number in the authors' order.
    """
    if len(rows) < n:
        raise unavailable(f"data set {dataset}: {len(rows)} rows where {n} are wanted")
    taken: list[list[int]] = []
    for number, row in enumerate(rows):
        if not isinstance(row, list) or not all(type(token) is int for token in row[:length]):
            raise unavailable(f"data set {dataset}: row {number} is no list of token ids")
        if len(row) < length:
            raise unavailable(f"data set {dataset}: row {number} has {len(row)} tokens where {length} are wanted")
        for column, token in enumerate(row[:length]):
            if not 0 <= token < d_vocab:
                raise unavailable(
                    f"data set {dataset}: token id {token} at row {number}, position {column} is outside the "
                    f"vocabulary of {d_vocab}"
                )
        taken.append(row[:length])
    # Only now is memory asked for: the recipe may want more than there is.
    return np.array(taken, np.int32)


def _refuse_duplicates(tokens: np.ndarray, sources: Sequence[tuple[str, int]]) -> None:
    places = [f"row {row} of {dataset}" for dataset, rows in sources for row in range(rows)]
    seen: dict[bytes, int] = {}
    for number, row in enumerate(tokens):
        first = seen.setdefault(row.tobytes(), number)
        if first != number:
            raise unavailable(f"{places[number]} is the same as {places[first]}; prompts must differ")


def _stream(
    dataset: str, commit: str, seed: int, count: int, hub: Hub, folder: Path
) -> Generator[list[int], None, None]:
    """Rows as they arrive from a process of their own, which ends when nobody wants more of them."""
    wish = {
        "dataset": dataset,
        "revision": commit,
        "column": COLUMN,
        "seed": seed,
        "count": count,
        "timeout": hub.timeout,
        "endpoint": hub.endpoint,
    }
    source = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(dir=folder, prefix=".streaming-") as temp:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_CACHE": temp,
            "HF_DATASETS_CACHE": temp,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))),
        }
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "repro.subjects.hub_rows", json.dumps(wish)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            yield from _rows(process.stdout, dataset)
        finally:
            process.kill()
            process.communicate()


def _rows(lines: Iterable[bytes], dataset: str) -> Iterator[list[int]]:
    for line in lines:
        message = json.loads(line)
        if "error" in message:
            raise unavailable(message["error"])
        if "done" in message:
            return
        yield message["row"]
    raise unavailable(f"data set {dataset}: streaming ended without a word; run again")
