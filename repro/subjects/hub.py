"""Turns a hub name into a local model directory: pinned commit, verified bytes, tensors only.

huggingface_hub downloads, into the user's ordinary cache. What it lacks: it compares sizes but no checksums, does not
pin a commit, and retries for 23 s where there is no network.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import HFValidationError, disable_progress_bars, logging, validate_repo_id
from huggingface_hub.utils.sha import git_hash

from repro.errors import AbsentError, ReproError, listing, plain, unavailable
from repro.files import temporary
from repro.subjects.access import Access
from repro.subjects.lock import BRANCH, FileHash, Lock, Repo, check_hash
from repro.subjects.refusals import disk_errors, explained, shown

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, NAMES_BOS = "tokenizer.json", "tokenizer_config.json"
PROBE = 5.0
"""Seconds in which a hub that can be reached answers at all."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,200}")
"""Names of files at the top of a repository; what a hub lists must not reach out of its directory."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Hub:
    """The hub that HF_ENDPOINT names and the ordinary Hugging Face cache; HF_TOKEN, HF_HOME and proxies are honoured.

    offline: never ask, use the cache only.
    """

    def __init__(self, offline: bool) -> None:
        self.endpoint = constants.ENDPOINT
        self.offline = offline
        logging.set_verbosity_error()  # its warnings about retries would stand between our own lines
        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            disable_progress_bars()

    @cached_property
    def silence(self) -> str:
        """Return why the hub is not asked; empty if it can be. Asks it once, for at most `PROBE` seconds."""
        if self.offline:
            return "this run does not ask the hub"
        if constants.is_offline_mode():
            return "HF_HUB_OFFLINE is set, so the hub is not asked"
        if not re.match(r"https?://[^/]", self.endpoint):
            return f"HF_ENDPOINT is {shown(self.endpoint)!r}; http:// or https:// and a host are expected"
        answered = threading.Event()

        def probe() -> None:
            try:
                huggingface_hub.get_session().head(self.endpoint, timeout=PROBE)
                answered.set()
            except Exception:  # noqa: S110 - whatever it is, the hub did not answer
                pass

        # A thread, since looking up a host's name cannot be interrupted.
        thread = threading.Thread(target=probe, daemon=True)
        thread.start()
        thread.join(PROBE)
        return "" if answered.is_set() else f"the hub at {shown(self.endpoint)} cannot be reached"

    def absent(self, what: str) -> AbsentError:
        """Return that something is not cached, and why the hub is not asked for it."""
        return AbsentError(f"{what} is not in the Hugging Face cache, and {self.silence}")

    def listing(self, repo: str, kind: Literal["model", "dataset"]) -> tuple[str, Mapping[str, str]]:
        """Return the commit that the branch is now, and file -> checksum of what is at the top of the repository there.

        A checksum is the sha256 of a large file (64 digits), git's sha1 of a small one (40 digits), empty if unknown.
        Raises AbsentError (exit 4) with one sentence if the hub cannot be reached or refuses.
        """
        what = f"{kind} {repo}"
        with explained(what, self.endpoint):
            api = huggingface_hub.HfApi(endpoint=self.endpoint)
            ask = api.model_info if kind == "model" else api.dataset_info
            found = ask(repo, revision=BRANCH, files_metadata=True, timeout=2 * PROBE)
            if not _COMMIT.fullmatch(str(found.sha)):
                raise unavailable(f"{what}: the hub names no commit")
            return str(found.sha), {
                str(item.rfilename): str(item.lfs.sha256 if item.lfs else item.blob_id or "")
                for item in found.siblings or ()
                if _FILE.fullmatch(str(item.rfilename))
            }

    def file(self, repo: str, name: str, commit: str) -> Path:
        """Return a file of the Hugging Face cache, downloaded if it is not there."""
        if not _FILE.fullmatch(name):
            raise unavailable(f"{repo}: {name!r} is not a file name that is ever fetched")
        found = huggingface_hub.try_to_load_from_cache(repo, name, revision=commit)
        if isinstance(found, str):
            return Path(found)
        if self.silence:
            raise self.absent(f"{name} of {repo}")
        with explained(f"{repo}: {name}", self.endpoint):
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=commit, endpoint=self.endpoint))


def fetch_model(repo: str, *, tokenizer: str | None, access: Access, lock: Lock) -> Path:
    """Return a directory with a hub model's config.json, weights and, where there is one, tokenizer.json.

    The files lie in the Hugging Face cache, the directory holds links to exactly those that were verified. The commit
    and every file's sha256 are learned into the lock on first use and verified on every later one.

    repo: hub name of the model. tokenizer: hub name of another repository that has its tokenizer.json. access: where
    the links are kept, and whether the hub may be asked. lock: the subject's entry.
    Raises ReproError: exit 4 in one sentence for what cannot be had or is not what the lock says, exit 2 for an
    impossible name. Agreement: tests/subjects/test_hub.py.
    """
    for name in (repo, tokenizer):
        if name is not None:
            _refuse_name(name)
    hub = Hub(access.offline)
    with disk_errors(access.cache):
        commit, files = _verified(hub, "model", repo, lock, _model_files)
        label = f"{repo.replace('/', '--')}-{commit[:12]}"
        if tokenizer is not None:
            theirs, extra = _verified(hub, "tokenizer", tokenizer, lock, _tokenizer_files)
            files |= extra
            label += f"-{theirs[:12]}"
        return _linked(access.cache / "models" / label, files)


def _refuse_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        owned = False
    else:
        owned = "/" in name
    if not owned:
        raise ReproError(f"{name!r} is not a valid hub name; owner/repository is expected")


Get = Callable[[str], Path]
Choose = Callable[[str, Collection[str], Get], list[str]]
"""The repository as messages name it, its files, and how to get one of them -> the files to take."""


def _verified(hub: Hub, role: str, repo: str, lock: Lock, choose: Choose) -> tuple[str, dict[str, Path]]:
    """Return a repository's commit and its chosen files, once their bytes agree with the lock, or are learned by it."""
    checksums: Mapping[str, str] = {}
    if (pin := lock.repo(role, repo)) is not None:
        commit, names = pin.revision, list(pin.files)
    else:
        commit, checksums = _first_use(hub, repo)
        names = choose(f"{repo} at commit {commit[:12]}", checksums, lambda name: hub.file(repo, name, commit))
    files = {name: hub.file(repo, name, commit) for name in sorted(names)}
    hashes = {name: FileHash.of(path) for name, path in files.items()}
    for name, path in files.items():
        # The blob: a link that is deleted alone would be made again to the same bytes.
        what = f"{repo}: {name} (delete {path.resolve()} to fetch it again)"
        if pin is not None:
            check_hash(what, hashes[name], pin.files[name], str(lock.path))
        elif checksums[name]:
            _check_listed(what, path, hashes[name], checksums[name])
    if pin is None:
        lock.learn(role, Repo(repo=repo, asked=BRANCH, revision=commit, files=hashes))
    return commit, files


def _first_use(hub: Hub, repo: str) -> tuple[str, Mapping[str, str]]:
    """Return a repository's commit and checksums: from the hub, or, where it cannot be asked, from what is cached."""
    if not hub.silence:
        return hub.listing(repo, "model")
    try:
        snapshot = Path(huggingface_hub.snapshot_download(repo, revision=BRANCH, local_files_only=True))
    except LocalEntryNotFoundError:
        raise hub.absent(f"model {repo}") from None
    names = [path.name for path in snapshot.iterdir() if _FILE.fullmatch(path.name) and path.is_file()]
    if not {CONFIG, TOKENIZER} & set(names):  # begun by another program, or of other files
        raise hub.absent(f"model {repo}")
    return snapshot.name, dict.fromkeys(names, "")  # named after its commit


def _check_listed(what: str, path: Path, found: FileHash, listed: str) -> None:
    """Raise ReproError (exit 4) naming both checksums unless a file is what the hub lists."""
    kind, own = ("sha256", found.sha256) if len(listed) == 64 else ("git's sha1", git_hash(path.read_bytes()))
    if own != listed:
        raise unavailable(f"{what}: {kind} is {own}, the hub's listing has {listed}")


def _tokenizer_files(what: str, names: Collection[str], get: Get) -> list[str]:
    _present(what, names, TOKENIZER)
    return [TOKENIZER]


def _model_files(what: str, names: Collection[str], get: Get) -> list[str]:
    """Return the files that make up a model: configuration, weights, and its tokenizer where it has one."""
    _present(what, names, CONFIG)
    config = _read_json(get(CONFIG), f"{what}: {CONFIG}")
    hugging_face = "architectures" in config or "model_type" in config
    chosen = [CONFIG, *(name for name in (TOKENIZER, NAMES_BOS) if name in names)]
    if WEIGHTS in names:
        return [*chosen, WEIGHTS]
    if hugging_face:
        _present(what, names, INDEX)
        return [*chosen, INDEX, *_shards(what, names, _read_json(get(INDEX), f"{what}: {INDEX}"))]
    final = sorted(name for name in names if name.endswith("final.pth"))
    if len(final) != 1:
        has = f"{len(final)} files *final.pth ({', '.join(final)})" if final else f"neither {WEIGHTS} nor a *final.pth"
        raise unavailable(f"{what} has {has}; one file of weights is expected")
    return [*chosen, *final]


def _shards(what: str, names: Collection[str], index: dict[str, Any]) -> list[str]:
    listed = index.get("weight_map")
    shards = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    strange = [plain(name, 80) for name in shards if not name.endswith(".safetensors") or name not in names]
    if strange or not shards:
        raise unavailable(f"{what}: {INDEX} names {listing(strange) or 'no file'} where files of weights are expected")
    return shards


def _present(what: str, names: Collection[str], name: str) -> None:
    if name not in names:
        raise unavailable(f"{what} has no {name}")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise unavailable(f"{what} is not a JSON object")
    return data


def _linked(folder: Path, files: Mapping[str, Path]) -> Path:
    """Make a directory of links to these files and nothing else.

    A snapshot of the Hugging Face cache may hold more files than were verified, and no other repository's tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        link, target = folder / name, path.resolve()
        if not link.is_symlink() or link.readlink() != target:
            temp = temporary(link)
            temp.symlink_to(target)
            temp.replace(link)
    for path in folder.iterdir():
        if path.name not in files and path.is_symlink():
            path.unlink(missing_ok=True)
    return folder
