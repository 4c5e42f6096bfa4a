"""What a file really holds, told from its first bytes: downloads that went wrong look like files of the right name."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repro.errors import unavailable

_PAGE = re.compile(rb"<(!doctype|html|head|\?xml)", re.IGNORECASE)
_LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, as the format's own library allows."""


def refuse_other_content(path: Path) -> None:
    """Raise ReproError (exit 4) for an empty file, a Git LFS pointer or a web page under the name of another file.

    Agreement: tests/model/test_folder_files.py.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise unavailable(f"{path}: unreadable ({error.strerror})") from None
    if not start:
        raise unavailable(f"{path}: an empty file; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise unavailable(
            f"{path}: a Git LFS pointer, not the file itself: the download is unfinished; run `git lfs pull` there, or "
            "download the file again"
        )
    if _PAGE.match(start):
        raise unavailable(f"{path}: a web page, not the file itself; download the raw file again")


def is_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer."""
    with path.open("rb") as file:
        return file.read(23) == b"version https://git-lfs"


def read_header(path: Path) -> Mapping[str, Any]:
    """Return the tensors that a safetensors file describes: name -> dtype, shape, data_offsets.

    Raises ReproError (exit 4) for what is no such file, or has fewer or more bytes than it describes.
    """
    refuse_other_content(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST_HEADER + 1
        if length > _LONGEST_HEADER:
            raise unavailable(f"{path}: not a safetensors file")
        text = file.read(length)
    if len(text) < length:
        raise unavailable(f"{path}: cut off after {size} bytes, within its header; download it again")
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        raise unavailable(f"{path}: not a safetensors file, or its header is damaged; download it again") from None
    described = 8 + length + end
    if size < described:
        raise unavailable(f"{path}: cut off, {size} bytes where its header describes {described}; download it again")
    if size > described:
        raise unavailable(f"{path}: {size} bytes, and its header describes {described}; download it again")
    return tensors
