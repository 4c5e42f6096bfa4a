"""Turns a hub name into a local model folder: pinned commit, verified bytes, tensors only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import AbsentError, Exit, ReproError, unavailable
from repro.files import sync_folder, write_durably
from repro.model.checkpoint import to_safetensors
from repro.subjects.hub_cache import RECORD, Record, alone, hash_of, read_record, record_bytes, writing
from repro.subjects.hub_transfer import Hub, Listing, Progress
from repro.subjects.lock import FileHash, Pins, Repo, check_hash

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = "model.safetensors.index.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_JSON_LIMIT = 1 << 26
"""Bytes."""
# What transformers reads beside the weights; taken where a repository in its format has them.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def is_hub_name(name: str) -> bool:
    """Whether a text can be a hub name: `owner/repository`."""
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def fetch_model(
    repo_id: str,
    *,
    tokenizer: str | None = None,
    revision: str | None = None,
    cache: Path,
    lock: Pins,
    offline: bool = False,
    timeout: float = 10.0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The local folder of a model on the hub: config.json, safetensors and, where there is one, tokenizer.json.

    The commit and every file's sha256 are learned into the lock on first use and verified ever after. A `*final.pth` is
    read once, tensors only, and kept as model.safetensors; repositories in Hugging Face's format are kept as they are.

    repo_id: hub name of the model. tokenizer: hub name of another repository that has its tokenizer.json. revision: a
    branch, tag or commit; nothing: main. cache: folder of all fetched models. lock: the subject's entry. offline: use
    the cache only. timeout: seconds without a sound after which the hub counts as unreachable. force: ask although the
    hub refused within the last hour. progress: called as bytes arrive, from another thread.
    Returns a complete folder. Raises ReproError: exit 4 in one sentence for whatever cannot be had or is not what the
    lock says, exit 2 for an impossible name. Agreement: tests/subjects/test_hub.py.
    """
    for name in (repo_id, tokenizer):
        if name is not None and not is_hub_name(name):
            raise ReproError(f"{name!r} is no hub name; owner/repository is expected")
    wish = _Wish(repo_id, revision or "main", tokenizer, lock)
    home = cache / f"models--{repo_id.replace('/', '--')}"
    with writing(cache):
        folder = _held(home, wish)
        if folder is not None:
            return folder
        if offline:
            raise AbsentError(f"model {repo_id} is not in the cache {cache}, and this run does not ask the hub")
        home.mkdir(parents=True, exist_ok=True)
        with alone(home, repo_id, timeout):
            return _held(home, wish) or _fetch(home, wish, Hub(cache, timeout, force), progress)


@dataclass(frozen=True)
class _Wish:
    """What is asked for, and the pins that bind the answer."""

    repo: str
    asked: str
    tokenizer: str | None
    lock: Pins

    @property
    def pin(self) -> Repo | None:
        return self.lock.repo("model", self.repo, self.asked)

    @property
    def tokenizer_pin(self) -> Repo | None:
        return None if self.tokenizer is None else self.lock.repo("tokenizer", self.tokenizer, "main")

    def is_met_by(self, record: Record) -> bool:
        """Whether a folder of the cache is what is asked for, hashes aside."""
        model, pin, theirs = record.model, self.pin, record.tokenizer
        if model.repo != self.repo or (theirs and theirs.repo) != self.tokenizer:
            return False
        if self.tokenizer_pin is not None and theirs is not None and theirs.revision != self.tokenizer_pin.revision:
            return False
        return model.revision == pin.revision if pin else self.asked in (model.asked, model.revision)

    def learn(self, record: Record) -> None:
        """Pins a folder's origin, or holds it against the pins."""
        self.lock.learn("model", Repo(self.repo, self.asked, record.model.revision, record.model.files))
        if record.tokenizer is not None:
            self.lock.learn("tokenizer", record.tokenizer)


def _held(home: Path, wish: _Wish) -> Path | None:
    """The folder of the cache that is asked for, verified; None if there is none."""
    records = [path for path in home.glob(f"*/{RECORD}") if not path.parent.name.startswith(".")]
    for path in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
        if wish.is_met_by(read_record(path)):
            return _verified(path.parent, wish)
    return None


def _verified(folder: Path, wish: _Wish) -> Path:
    """A complete folder of the cache, once its record agrees with the lock and its files with the record."""
    record = read_record(folder / RECORD)
    wish.learn(record)
    # What lies here as it came is what the lock has just been held against.
    as_it_came = {**record.model.files, **(record.tokenizer.files if record.tokenizer else {})}
    for name, stored in record.stored.items():
        file, wanted = folder / name, as_it_came.get(name, stored)
        if not file.is_file():
            raise unavailable(f"{file} is gone; delete {folder} to fetch it again")
        check_hash(f"{file} (delete {folder} to fetch it again)", hash_of(file), wanted, RECORD)
    return folder


def _fetch(home: Path, wish: _Wish, hub: Hub, progress: Progress | None) -> Path:
    """Downloads into a folder that takes its final name once everything in it is verified and on disk."""
    pin, theirs = wish.pin, wish.tokenizer_pin
    listing = hub.listing(wish.repo, "model", pin.revision if pin else wish.asked)
    other = (
        None if wish.tokenizer is None else hub.listing(wish.tokenizer, "model", theirs.revision if theirs else "main")
    )
    final = home / "-".join(found.commit[:12] for found in (listing, other) if found)
    if (final / RECORD).is_file():
        return _verified(final, wish)
    folder = home / f".incoming-{final.name}"
    folder.mkdir(exist_ok=True)

    def get(listing: Listing, name: str, pin: Repo | None) -> FileHash:
        return hub.download(listing, name, folder, pin.files.get(name) if pin else None, progress)

    hashes = _get_model(listing, folder, lambda name: get(listing, name, pin))
    stored = dict(hashes)
    tokenizer = None
    if other is not None:
        _present(other, TOKENIZER)
        stored[TOKENIZER] = get(other, TOKENIZER, theirs)
        tokenizer = Repo(other.repo, "main", other.commit, {TOKENIZER: stored[TOKENIZER]})
    raw = [name for name in hashes if name.endswith(".pth")]
    for name in raw:
        to_safetensors(folder / name, folder / WEIGHTS)
        del stored[name]
        stored[WEIGHTS] = hash_of(folder / WEIGHTS)
    record = Record(Repo(wish.repo, wish.asked, listing.commit, hashes), tokenizer, stored)
    wish.learn(record)
    write_durably(folder / RECORD, record_bytes(record))
    folder.replace(final)
    sync_folder(home)
    for name in raw:
        (final / name).unlink()
    return final


def _get_model(listing: Listing, folder: Path, get: Callable[[str], FileHash]) -> dict[str, FileHash]:
    """Downloads what a model folder needs of a repository: file name -> hash."""
    _present(listing, CONFIG, _JSON_LIMIT)
    hashes = {CONFIG: get(CONFIG)}
    config = _read_json(folder / CONFIG, f"{listing.repo}: {CONFIG}")
    if "architectures" not in config and "model_type" not in config:
        weights = [WEIGHTS] if WEIGHTS in listing.files else [_final_checkpoint(listing)]
        companions: tuple[str, ...] = (TOKENIZER,)
    else:
        companions = _COMPANIONS
        if WEIGHTS in listing.files:
            weights = [WEIGHTS]
        else:
            _present(listing, INDEX, _JSON_LIMIT)
            hashes[INDEX] = get(INDEX)
            weights = _shards(listing, _read_json(folder / INDEX, f"{listing.repo}: {INDEX}"))
    for name in (*weights, *(name for name in companions if name in listing.files)):
        hashes[name] = get(name)
    return hashes


def _final_checkpoint(listing: Listing) -> str:
    found = sorted(name for name in listing.files if name.endswith("final.pth"))
    if len(found) != 1:
        what = f"{len(found)} files *final.pth ({', '.join(found)})" if found else f"neither {WEIGHTS} nor a *final.pth"
        raise unavailable(f"{listing.repo} has {what}; one file of weights is expected")
    return found[0]


def _shards(listing: Listing, index: dict[str, Any]) -> list[str]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise unavailable(f"{listing.repo}: {INDEX} maps no weights to files")
    shards = sorted({str(name) for name in names.values()})
    for name in shards:
        if not name.endswith(".safetensors") or name not in listing.files:
            raise ReproError(
                f"{listing.repo}: {INDEX} names {name!r}, which is no file of weights there", Exit.UNAVAILABLE
            )
    return shards


def _present(listing: Listing, name: str, limit: int | None = None) -> None:
    if name not in listing.files:
        raise unavailable(f"{listing.repo} has no {name} at commit {listing.commit[:12]}")
    if limit is not None and listing.files[name].size > limit:
        raise unavailable(f"{listing.repo}: {name} has {listing.files[name].size} bytes; refused")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise unavailable(f"{what} is no JSON object")
    return data
