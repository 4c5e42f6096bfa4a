"""A model hub on loopback for tests: repositories of models and data sets behind the hub's own protocol.

`huggingface_hub`, `datasets` and `transformers` talk to it unmodified. It answers the calls they make to list, resolve
and read files, redirects large files to a second origin as the hub does, and misbehaves on request.

    with HubServer() as hub:
        hub.add("model", "someone/model", {"config.json": b"{}", "model_final.pth": path})
        hub.add_rows("someone/tokens", [tokens])
        hub.misbehave(r"^/cdn/.*model_final", Drop(after=1000, times=1))
        ...  # HF_ENDPOINT = hub.url
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from tests.hub_files import Answer, Fault, File, Hang, Repository, Wrong, parquet, pieces


class Request(NamedTuple):
    """What a client asked."""

    method: str
    path: str
    range: str | None
    authorized: bool
    origin: str


@dataclass
class Reply:
    """What a handler sends: `body` is bytes or a part of a file."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | File = b""
    start: int = 0
    length: int = 0


class HubServer:
    """The hub: `url` is its HF_ENDPOINT, `requests` what was asked of it. With `token`, only its bearer is let in."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.requests: list[Request] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.extra: dict[tuple[str, str], list[str]] = {}
        self.faults: list[tuple[re.Pattern[str], Fault]] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.servers = [self._server("hub"), self._server("cdn")]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def _server(self, origin: str) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self, "origin": origin}))
        server.daemon_threads, server.block_on_close = True, False
        return server

    def __enter__(self) -> HubServer:
        self.threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self.servers]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server, thread in zip(self.servers, self.threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def add(self, kind: str, name: str, files: Mapping[str, bytes | Path] | Path, *, listed: Sequence[str] = ()) -> str:
        """A new commit on main: kind `model` or `dataset`; a folder's files or the given ones.

        listed: further paths that only the listing claims. Returns the commit's sha.
        """
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
        known = {path: File.of(path, source) for path, source in sorted(files.items())}
        commit = hashlib.sha1(repr([(path, file.oid) for path, file in known.items()]).encode()).hexdigest()
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.commits[commit], repository.main = known, commit
        self.extra[kind, name] = list(listed)
        return commit

    def add_rows(self, name: str, shards: Sequence[np.ndarray | list[list[int]]], *, rows_per_group: int = 50) -> str:
        """A data set of token rows, one parquet file a shard, column `tokens`, split train, in the hub's layout."""
        files: dict[str, bytes | Path] = {
            f"data/train-{index:05d}-of-{len(shards):05d}.parquet": parquet(shard, rows_per_group)
            for index, shard in enumerate(shards)
        }
        return self.add("dataset", name, files)

    def misbehave(self, pattern: str, fault: Fault) -> None:
        """From now on, paths (queries left out) that match go wrong like this."""
        self.faults.append((re.compile(pattern), fault))

    def behave(self) -> None:
        """Forgets all faults and all requests."""
        self.faults.clear()
        self.requests.clear()

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose path matches."""
        return [request for request in self.requests if re.search(pattern, request.path)]

    def fault(self, path: str) -> Fault | None:
        """The fault that is due on a path."""
        with self.lock:
            for pattern, fault in self.faults:
                if pattern.search(path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    def handle_error(self, *where: Any) -> None:
        """A client that goes away is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*where)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    origin: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""

    def do_GET(self) -> None:
        self.serve()

    def do_HEAD(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode()) if length else {}
        path = unquote(urlsplit(self.path).path)
        bearer = self.headers.get("Authorization")
        asked = Request(self.command, path, self.headers.get("Range"), bearer is not None, self.origin)
        self.hub.requests.append(asked)
        fault = self.hub.fault(path)
        try:
            if isinstance(fault, Hang) and fault.after is None:
                self.hang()
            elif isinstance(fault, Answer):
                self.send(Reply(fault.status, dict(fault.headers), fault.body), None)
            elif self.origin == "hub" and self.hub.token and bearer != f"Bearer {self.hub.token}":
                self.send(_error(401, "Invalid username or password.", None), None)
            else:
                self.send(self.route(path, form), fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def hang(self) -> None:
        self.hub.closing.wait(120)
        self.close_connection = True

    def route(self, path: str, form: dict[str, list[str]]) -> Reply:
        if self.origin == "cdn":
            _, _, kind, owner, name, commit, rest = path.split("/", 6)
            return self.content(self.hub.repositories[kind, f"{owner}/{name}"].commits[commit][rest])
        if found := re.match(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.*))?$", path):
            kind, name, call, rest = found.groups()
            return self.api(kind, name, call or "revision", rest or "main", form)
        if found := re.match(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", path):
            return self.resolve("dataset" if found[1] else "model", found[2], found[3], found[4])
        return _error(404, "Not found", None)

    def api(self, kind: str, name: str, call: str, rest: str, form: dict[str, list[str]]) -> Reply:
        revision, _, folder = rest.partition("/")
        found = self.find(kind, name, revision)
        if isinstance(found, Reply):
            return found
        commit, files = found
        if call == "revision":
            siblings = [_sibling(path, file) for path, file in files.items()]
            siblings += [{"rfilename": path, "size": 4, "blobId": "0" * 40} for path in self.hub.extra[kind, name]]
            return _json(
                {"_id": commit[:24], "id": name, "sha": commit, "private": False, "siblings": siblings, "tags": []}
            )
        if call == "paths-info":
            entries = [_entry(path, file) for path, file in files.items() if path in form.get("paths", [])]
            wanted = {path.rstrip("/") for path in form.get("paths", [])}
            return _json(entries + [entry for entry in _folders(files) if entry["path"] in wanted])
        inside = [entry for entry in _tree(files) if not folder or str(entry["path"]).startswith(folder + "/")]
        if folder and not inside:
            return _error(404, f"{folder} does not exist", "EntryNotFound")
        if "recursive=true" not in urlsplit(self.path).query.lower():
            inside = [entry for entry in inside if "/" not in str(entry["path"])[len(folder) :].lstrip("/")]
        return _json(inside)

    def find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, File]] | Reply:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            return _error(404, "Repository not found", "RepoNotFound")
        return repository.at(revision) or _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def resolve(self, kind: str, name: str, revision: str, path: str) -> Reply:
        found = self.find(kind, name, revision)
        if isinstance(found, Reply):
            return found
        commit, files = found
        if path not in files:
            reply = _error(404, "Entry not found", "EntryNotFound")
            reply.headers["X-Repo-Commit"] = commit
            return reply
        file = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": file.etag, "Accept-Ranges": "bytes"}
        if not file.large:
            reply = self.content(file)
            reply.headers.update(headers)
            return reply
        headers |= {"X-Linked-Etag": file.etag, "X-Linked-Size": str(file.size)}
        headers["Location"] = f"{self.hub.cdn}/cdn/{kind}/{name}/{commit}/{path}"
        return Reply(HTTPStatus.FOUND, headers, b"")

    def content(self, file: File) -> Reply:
        headers = {"ETag": file.etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return Reply(HTTPStatus.OK, headers, file, 0, file.size)
        start, end = int(wanted[1]), min(int(wanted[2] or file.size - 1), file.size - 1)
        if start >= file.size:
            return Reply(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{file.size}"
        return Reply(HTTPStatus.PARTIAL_CONTENT, headers, file, start, end - start + 1)

    def send(self, reply: Reply, fault: Fault | None) -> None:
        source, start = (reply.body, 0) if isinstance(reply.body, bytes) else (reply.body.source, reply.start)
        length = len(reply.body) if isinstance(reply.body, bytes) else reply.length
        self.send_response(reply.status)
        for key, value in reply.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = getattr(fault, "after", None)
        sent = 0
        for piece in pieces(source, start, length):
            if isinstance(fault, Wrong) and 0 <= fault.at - start - sent < len(piece):
                spot = fault.at - start - sent
                piece = piece[:spot] + bytes([piece[spot] ^ 1]) + piece[spot + 1 :]
            if stop is not None and sent + len(piece) > stop:
                self.wfile.write(piece[: stop - sent])
                self.wfile.flush()
                if isinstance(fault, Hang):
                    self.hang()
                self.close_connection = True
                return
            self.wfile.write(piece)
            sent += len(piece)


def _json(data: object) -> Reply:
    return Reply(HTTPStatus.OK, {"Content-Type": "application/json"}, json.dumps(data).encode())


def _error(status: int, message: str, code: str | None) -> Reply:
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    if code:
        headers["X-Error-Code"] = code
    return Reply(status, headers, json.dumps({"error": message}).encode())


def _sibling(path: str, file: File) -> dict[str, object]:
    large = {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 130}} if file.large else {}
    return {"rfilename": path, "size": file.size, "blobId": file.oid, **large}


def _entry(path: str, file: File) -> dict[str, object]:
    large = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 130}} if file.large else {}
    return {"type": "file", "path": path, "size": file.size, "oid": file.oid, **large}


def _folders(files: Mapping[str, File]) -> list[dict[str, object]]:
    parents = {parent.as_posix() for path in files for parent in Path(path).parents} - {"."}
    return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(parents)]


def _tree(files: Mapping[str, File]) -> list[dict[str, object]]:
    return _folders(files) + [_entry(path, file) for path, file in files.items()]
