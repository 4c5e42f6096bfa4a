"""What the test hub holds: files with their hashes, repositories of commits, and the faults it can be told to show."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LARGE = (".pth", ".bin", ".safetensors", ".parquet")
PIECE = 1 << 16


@dataclass(frozen=True)
class File:
    """One file of a repository: its bytes or where they lie, and the hub's names for them."""

    source: bytes | Path
    size: int
    sha256: str
    oid: str
    large: bool

    @classmethod
    def of(cls, name: str, source: bytes | Path) -> File:
        """The file with the hashes that git and its large-file storage would give it."""
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        for piece in pieces(source, 0, size):
            sha256.update(piece)
            sha1.update(piece)
        large = name.endswith(LARGE)
        if large:
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize {size}\n".encode()
            )
            sha1 = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer)
        return cls(source, size, sha256.hexdigest(), sha1.hexdigest(), large)

    @property
    def etag(self) -> str:
        """What the hub's ETag says of it."""
        return f'"{self.sha256 if self.large else self.oid}"'


@dataclass
class Repository:
    """The commits of one repository; `main` is the last."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    main: str = ""

    def at(self, revision: str) -> tuple[str, dict[str, File]] | None:
        """The commit that a revision names and its files."""
        commit = self.main if revision == "main" else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Fault:
    """What goes wrong on a path, the first `times` times (always, if None)."""

    times: int | None = field(default=None, kw_only=True)


@dataclass
class Drop(Fault):
    """The connection closes after so many bytes of the body."""

    after: int


@dataclass
class Answer(Fault):
    """Another status instead."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "as ordered"}'


@dataclass
class Wrong(Fault):
    """One byte of the body is not what it was."""

    at: int


@dataclass
class Hang(Fault):
    """Nothing comes any more: from the start, or after so many bytes of the body."""

    after: int | None = None


def parquet(rows: np.ndarray | list[list[int]], rows_per_group: int = 50) -> bytes:
    """Rows of token ids as a parquet file with the one column `tokens`."""
    table = pa.table({"tokens": pa.array([list(map(int, row)) for row in rows], type=pa.list_(pa.int64()))})
    sink = io.BytesIO()
    # Plain values, so that a test can find the place of a token.
    pq.write_table(table, sink, row_group_size=rows_per_group, compression="none", use_dictionary=False)
    return sink.getvalue()


def pieces(source: bytes | Path, start: int, length: int) -> Iterator[bytes]:
    """A part of a file, piece by piece."""
    if isinstance(source, bytes):
        yield source[start : start + length]
        return
    with source.open("rb") as handle:
        handle.seek(start)
        while length > 0 and (piece := handle.read(min(PIECE, length))):
            length -= len(piece)
            yield piece


def as_checkpoint(folder: Path, into: Path) -> dict[str, bytes | Path]:
    """A local model folder's files as an older repository holds them: config.json and model_final.pth.

    into: where the checkpoint is written; it must outlive the hub that serves it.
    """
    import torch
    from safetensors.torch import load_file

    into.mkdir(parents=True, exist_ok=True)
    torch.save(load_file(folder / "model.safetensors"), into / "model_final.pth")
    return {"config.json": folder / "config.json", "model_final.pth": into / "model_final.pth"}
