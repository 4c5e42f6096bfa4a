"""Asks a model hub: lists a repository and downloads its files in bounded time, and says in one sentence what failed.

Uses huggingface_hub's session, so that HF_ENDPOINT, HF_TOKEN and proxies are honoured, but none of its retries: those
wait for as long as a server asks. Its own download keeps nothing of an interrupted file; this one resumes.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from repro.errors import Exit, ReproError
from repro.files import sync_folder
from repro.subjects.hub_refusals import CutError, HubError, Refusals, may_pass, refusal, retry_after, shown
from repro.subjects.lock import FileHash, check_hash

Kind = Literal["model", "dataset"]
Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that are there, and its size in bytes."""
T = TypeVar("T")

PIECE = 1 << 16
"""Bytes: fewer than this within the time allowed is a hang."""
PAUSES = (0.5, 1.5)
"""Seconds before the second and the third try of what may pass."""
SPARE = 1 << 26
"""Bytes that stay free on the disk."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,200}")
_UNSAFE = re.compile(r"^/|^[A-Za-z]:|\\|[\x00-\x1f]|(^|/)\.\.(/|$)")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing, with what the hub says its bytes are."""

    name: str
    size: int
    sha256: str | None
    """Of large files."""
    git_sha1: str | None
    """Of small files: the name of git's blob."""


@dataclass(frozen=True)
class Listing:
    """The top-level files of a repository at one commit."""

    repo: str
    kind: Kind
    commit: str
    files: dict[str, RemoteFile]


class AbandonedError(Exception):
    """Ends a thread that was given up."""


def within(silence: float, work: Callable[[Callable[[], None]], T]) -> T:
    """What `work` returns or raises, unless it makes no sound for `silence` seconds.

    work: is handed a function to call whenever it got on. It runs in a thread of its own, since looking up a host's
    name cannot be interrupted. Raises TimeoutError, and the abandoned work ends at its next call.
    Agreement: tests/subjects/test_hub_faults.py.
    """
    last = [time.monotonic()]
    abandoned = threading.Event()
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def beat() -> None:
        if abandoned.is_set():
            raise AbandonedError
        last[0] = time.monotonic()

    def body() -> None:
        try:
            result = work(beat)
        except BaseException as error:  # handed to the caller, whatever it is
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    threading.Thread(target=body, daemon=True).start()
    try:
        while True:
            left = last[0] + silence - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if concurrent.futures.wait([outcome], timeout=left).done:
                return outcome.result()
    finally:
        abandoned.set()


class Hub:
    """The hub that HF_ENDPOINT names, and how patient to be with it.

    cache: a folder that remembers refusals. timeout: seconds without a sound. force: ask in spite of a refusal.
    """

    def __init__(self, cache: Path, timeout: float = 10.0, force: bool = False) -> None:
        from huggingface_hub import constants, get_token

        if constants.is_offline_mode():
            raise HubError("HF_HUB_OFFLINE is set, so the hub is not asked", remember=0)
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        if not re.match(r"https?://[^/]", self.endpoint):
            raise HubError(
                f"HF_ENDPOINT is {shown(self.endpoint)!r}; http:// or https:// and a host are expected", remember=0
            )
        self.timeout = timeout
        self.token = get_token()
        self.refusals = Refusals(cache / "refusals.json", force)

    def listing(self, repo: str, kind: Kind, revision: str) -> Listing:
        """The files of a repository at a revision, at most `timeout` seconds from now.

        Raises HubError (exit 4) with one sentence if the hub cannot be reached or does not give them; the refusal is
        remembered for an hour.
        """
        what = f"{kind} {repo}"
        key = f"{shown(self.endpoint)} {what} {'with' if self.token else 'without'} a token"
        self.refusals.recall(shown(self.endpoint))
        self.refusals.recall(key)
        try:
            found = within(self.timeout, lambda _: self._ask(repo, kind, revision))
            result = _read_listing(repo, kind, found)
        except Exception as error:  # whatever a server can make a client stumble over
            refused = self.refusal(what, error)
            self.refusals.note(shown(self.endpoint) if refused.unreachable else key, refused)
            raise refused from None
        self.refusals.forget(shown(self.endpoint), key)
        return result

    def _ask(self, repo: str, kind: Kind, revision: str) -> Any:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint)
        ask = api.model_info if kind == "model" else api.dataset_info
        for pause in (*PAUSES, None):
            try:
                return ask(repo, revision=revision, files_metadata=True, timeout=self.timeout)
            except Exception as error:  # `may_pass` decides
                # Without a network, connecting fails at once, and nobody should wait for that twice.
                if pause is None or "ConnectError" in type(error).__name__ or not may_pass(error, self.timeout):
                    raise
                time.sleep(max(pause, retry_after(error) or 0))
        raise AssertionError

    def download(
        self, listing: Listing, name: str, folder: Path, wanted: FileHash | None, progress: Progress | None = None
    ) -> FileHash:
        """Puts one file of a listing into a folder, going on where an earlier try stopped.

        wanted: what the lock says of it. The bytes lie in `<name>.part` until size and hash are right.
        Raises ReproError (exit 4): what is kept can be resumed, wrong bytes are thrown away.
        """
        remote, target, part = listing.files[name], folder / name, folder / f"{name}.part"
        if wanted is not None and wanted.size != remote.size:
            raise ReproError(
                f"{listing.repo}: {name} has {remote.size} bytes on the hub, {wanted.size} in the lock",
                Exit.UNAVAILABLE,
            )
        if target.exists():
            target.replace(part)  # an earlier run got it: to be checked like everything else
        resumed = self._fill(listing, remote, part, progress)
        try:
            found = _check(listing, remote, part, wanted)
        except ReproError:
            part.unlink()
            if not resumed:
                raise
            # What an earlier run left may have been torn when that run was killed.
            return self.download(listing, name, folder, wanted, progress)
        part.replace(target)
        sync_folder(folder)
        return found

    def _fill(self, listing: Listing, remote: RemoteFile, part: Path, progress: Progress | None) -> bool:
        """Downloads what is missing of a file. Returns whether some of it was there before."""
        before = size = _size(part)
        if size > remote.size:
            part.unlink()
            before = size = 0
        free = shutil.disk_usage(part.parent).free
        if free < remote.size - size + SPARE:
            raise ReproError(
                f"{listing.repo}: {remote.name} needs {remote.size - size} bytes, {part.parent} has {free}",
                Exit.UNAVAILABLE,
            )
        pauses: Iterator[float] = iter(PAUSES)
        while _size(part) < remote.size or not part.exists():
            try:
                within(self.timeout, lambda beat: self._stream(listing, remote, part, beat, progress))
            except ReproError:
                raise
            except Exception as error:  # whatever a server can make a client stumble over
                if _size(part) > size:
                    size, pauses = _size(part), iter(PAUSES)
                pause = next(pauses, None)
                if pause is None or not may_pass(error, self.timeout):
                    refused = self.refusal(f"{listing.repo}: {remote.name}", error)
                    kept = f"; {_size(part)} of {remote.size} bytes are kept, run again to go on" if _size(part) else ""
                    raise ReproError(refused.message + kept, refused.code) from None
                time.sleep(max(pause, retry_after(error) or 0))
        return before > 0

    def _stream(
        self, listing: Listing, remote: RemoteFile, part: Path, beat: Callable[[], None], progress: Progress | None
    ) -> None:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        have = _size(part)
        url = hf_hub_url(
            listing.repo, remote.name, repo_type=listing.kind, revision=listing.commit, endpoint=self.endpoint
        )
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with get_session().stream("GET", url, headers=headers, timeout=self.timeout, follow_redirects=True) as answer:
            if have and answer.status_code == 416:
                part.unlink()
                raise CutError
            hf_raise_for_status(answer)
            beat()
            if have and (answer.status_code != 206 or not _starts_at(answer, have)):
                have = 0  # a server without ranges sends the file from its first byte
            with _opened(part, have) as sink:
                for piece in answer.iter_bytes(PIECE):
                    beat()
                    have += len(piece)
                    if have > remote.size:
                        raise ReproError(
                            f"{listing.repo}: {remote.name} has more bytes than the {remote.size} the hub lists",
                            Exit.UNAVAILABLE,
                        )
                    sink.write(piece)
                    if progress is not None:
                        progress(remote.name, have, remote.size)
                sink.flush()
                os.fsync(sink.fileno())
        if have < remote.size:
            raise CutError

    def refusal(self, what: str, error: Exception) -> HubError:
        """One sentence for what the hub, or the way to it, answered about `what`."""
        return refusal(what, error, self.endpoint, self.timeout, self.token)


def _read_listing(repo: str, kind: Kind, found: Any) -> Listing:
    """Checks what a hub lists: nothing in it may reach out of the folder that its files go to."""
    if not re.fullmatch(r"[0-9a-f]{40}", str(found.sha)):
        raise ReproError(f"{kind} {repo}: the hub names no commit", Exit.UNAVAILABLE)
    files = {}
    for sibling in found.siblings or ():
        name, large = str(sibling.rfilename), sibling.lfs
        if _UNSAFE.search(name):
            raise ReproError(f"{kind} {repo}: the hub lists the path {name!r}; refused", Exit.UNAVAILABLE)
        if kind == "dataset" or not _NAME.fullmatch(name):
            continue  # neither subfolders nor odd names are ever wanted, and data sets are streamed
        size = sibling.size if large is None else large.size
        if type(size) is not int or size < 0:
            raise ReproError(f"{kind} {repo}: the hub lists no size of {name}", Exit.UNAVAILABLE)
        files[name] = RemoteFile(name, size, large and large.sha256, None if large else sibling.blob_id)
    return Listing(repo, kind, found.sha, files)


def _check(listing: Listing, remote: RemoteFile, path: Path, wanted: FileHash | None) -> FileHash:
    """The hash of a file, held against the lock's and against the hub's."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)
    with path.open("rb") as source:
        while piece := source.read(1 << 20):
            sha256.update(piece)
            if remote.git_sha1 is not None:
                git.update(piece)
    found = FileHash(sha256.hexdigest(), path.stat().st_size)
    what = f"{listing.repo}: {remote.name}"
    if wanted is not None:
        check_hash(what, found, wanted, "the lock")
    if remote.sha256 is not None:
        check_hash(what, found, FileHash(remote.sha256, remote.size), "the hub's listing")
    elif remote.git_sha1 is not None and git.hexdigest() != remote.git_sha1:
        raise ReproError(
            f"{what}: git's sha1 is {git.hexdigest()}, the hub's listing has {remote.git_sha1}", Exit.UNAVAILABLE
        )
    return found


def _size(part: Path) -> int:
    """Bytes of a file that may not exist. Raises ReproError if it is a link or no file."""
    try:
        found = part.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise ReproError(f"{part}: not a plain file; remove it", Exit.UNAVAILABLE)
    return found.st_size


def _opened(part: Path, size: int) -> BinaryIO:
    """A file to append to, cut to its first `size` bytes; links are not followed."""
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    os.ftruncate(handle, size)
    os.lseek(handle, 0, os.SEEK_END)
    return os.fdopen(handle, "wb")


def _starts_at(answer: Any, start: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-")
