"""Prompts from the hub: rows of tokenised data sets in the authors' order, frozen once as int32 and then verified.

The order is that of `datasets` before version 5.1: shards shuffled by the seed, then a buffer of which one random row
is handed out whenever the next one comes in. Later versions shuffle otherwise under the same arguments, so the buffer
is our own; then all rows are permuted by torch's generator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from repro.errors import AbsentError, ReproError, unavailable
from repro.files import write_durably
from repro.model.folder import tokens_fingerprint
from repro.model.prompt_file import refuse_outside
from repro.spec.types import HubPrompts
from repro.subjects.access import Access
from repro.subjects.hub import Hub
from repro.subjects.lock import BRANCH, Lock, PromptsPin, Repo
from repro.subjects.refusals import disk_errors, explained
from repro.subjects.text import first_repeat

COLUMN = "tokens"
T = TypeVar("T")


def freeze_prompts(recipe: HubPrompts, *, d_vocab: int, access: Access, lock: Lock) -> Path:
    """Return the frozen prompts of a recipe: a safetensors file with `tokens`, int32 [prompt, position].

    Rows of each data set in the authors' order, concatenated, permuted by `torch.randperm` after `manual_seed(seed)`.
    The file's metadata has `kind` (a JSON list, one word a row), `sha256` of the ids as little-endian int32, the
    recipe, the commits of the data sets, and `seal`, a hash of all this. A second call reads the file and asks nobody.

    recipe: data sets, rows of each, tokens a row, seed, buffer. d_vocab: ids must be below it. access: where the file
    is kept, and whether the hub may be asked. lock: the subject's entry.
    Raises ReproError: exit 4 for what cannot be had, and for duplicate rows, short rows and ids out of range, by row
    number. Agreement: tests/subjects/test_hub_prompts.py.
    """
    text = _canonical(recipe)
    path = access.cache / "prompts" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    with disk_errors(access.cache):
        if not path.exists():
            hub = Hub(access.offline)
            if hub.silence:
                names = ", ".join(source.dataset for source in recipe.sources)
                raise AbsentError(f"prompts from {names} are not in the cache {access.cache}, and {hub.silence}")
            path.parent.mkdir(parents=True, exist_ok=True)
            _freeze(recipe, text, path, d_vocab, lock, hub)
        return _verified(path, text, lock)


def _freeze(recipe: HubPrompts, text: str, path: Path, d_vocab: int, lock: Lock, hub: Hub) -> None:
    from safetensors.numpy import save

    parts, kinds, commits = [], [], {}
    for source in recipe.sources:
        pin = lock.repo(f"datasets/{source.dataset}", source.dataset)
        commit = pin.revision if pin is not None else hub.listing(source.dataset, "dataset")[0]
        commits[source.dataset] = commit
        incoming = _rows(hub, source.dataset, commit, recipe.seed, source.rows + recipe.buffer)
        rows = list(islice(shuffled(incoming, recipe.buffer, recipe.seed), source.rows))
        parts.append(as_tokens(rows, source.dataset, source.rows, recipe.length, d_vocab))
        kinds += [source.kind] * source.rows
    tokens = np.concatenate(parts)
    if (repeat := first_repeat(tokens)) is not None:
        places = [f"row {row} of {source.dataset}" for source in recipe.sources for row in range(source.rows)]
        raise unavailable(f"{places[repeat[1]]} is the same as {places[repeat[0]]}; prompts must differ")
    order = permutation(len(tokens), recipe.seed)
    tokens = np.ascontiguousarray(tokens[order])
    metadata = {
        "kind": json.dumps([kinds[row] for row in order]),
        "sha256": tokens_fingerprint(tokens),
        "recipe": text,
        "commits": json.dumps(commits, sort_keys=True),
    }
    metadata["seal"] = _seal(metadata)
    # Before anything is kept: rows that the lock does not know must not settle in the cache.
    _learn(lock, tokens, commits, text)
    write_durably(path, save({"tokens": tokens}, metadata))


def _verified(path: Path, text: str, lock: Lock) -> Path:
    """Return frozen prompts, once their bytes agree with their own metadata and with the lock."""
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
    try:
        _learn(lock, tokens, commits, text)
    except ReproError as error:
        raise ReproError(f"{error.message}; {again}", error.code) from None
    return path


def _seal(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _learn(lock: Lock, tokens: np.ndarray, commits: Mapping[str, str], recipe: str) -> None:
    for dataset, commit in commits.items():
        lock.learn(f"datasets/{dataset}", Repo(repo=dataset, asked=BRANCH, revision=commit, files={}))
    n, length = tokens.shape
    lock.learn_prompts(PromptsPin(sha256=tokens_fingerprint(tokens), n=n, length=length, recipe=recipe))


def _canonical(recipe: HubPrompts) -> str:
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True)


def shuffled(rows: Iterable[T], buffer: int, seed: int) -> Iterator[T]:
    """Yield rows in the order of a streaming shuffle, as the authors' library did it.

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
    """Return `torch.randperm(n)` after `torch.manual_seed(seed)`, leaving the global generator alone."""
    import torch

    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def as_tokens(rows: Sequence[Any], dataset: str, n: int, length: int, d_vocab: int) -> np.ndarray:
    """Return rows of token ids as int32 [n, length]; longer rows are cut.

    Raises ReproError (exit 4) for missing rows, short rows and ids out of range, by row number in the authors' order.
    """
    if len(rows) < n:
        raise unavailable(f"data set {dataset}: {len(rows)} rows where {n} are wanted")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or not all(type(token) is int for token in row[:length]):
            raise unavailable(f"data set {dataset}: row {number} is not a list of token ids")
        if len(row) < length:
            raise unavailable(f"data set {dataset}: row {number} has {len(row)} tokens where {length} are wanted")
    tokens = np.array([row[:length] for row in rows], object)  # until they are known to fit
    refuse_outside(f"data set {dataset}", tokens, d_vocab)
    return tokens.astype(np.int32)


def _rows(hub: Hub, dataset: str, commit: str, seed: int, count: int) -> Iterator[object]:
    """Yield the first `count` rows of a data set, shard by shard, the shards in the order that the seed gives them."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # The library retries a stream that ended 20 times, 5 to 60 s apart, on top of the hub client's own five retries.
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    for pause in ("RETRY", "SERVER_UNAVAILABLE_RETRY", "RATE_LIMIT_RETRY"):
        setattr(datasets.config, f"STREAMING_READ_{pause}_INTERVAL", 0)
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    what = f"data set {dataset}"
    with explained(what, hub.endpoint):
        try:
            rows = datasets.load_dataset(dataset, split="train", revision=commit, streaming=True)
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, HfHubHTTPError):
                raise
            raise unavailable(f"{what}: cannot be read as rows of tokens ({type(error).__name__})") from None
        if rows.column_names is not None and COLUMN not in rows.column_names:
            raise unavailable(f"{what}: no column `{COLUMN}`; it has {', '.join(rows.column_names)}")
        # A buffer of one row shuffles shards and nothing else, in every version of the library.
        rows = rows.select_columns([COLUMN]).shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        for row in rows.take(count):
            yield row[COLUMN]
