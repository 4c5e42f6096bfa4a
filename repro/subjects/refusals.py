"""What the hub's libraries raise, as one sentence. They answer in several lines, with tracebacks, links and headers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from repro.errors import AbsentError, ReproError, unavailable


@contextmanager
def explained(what: str, endpoint: str) -> Iterator[None]:
    """Turn whatever a hub library raises about `what` into one sentence (exit 4).

    A refusal or a failed connection becomes an AbsentError, a full disk does not. Only statuses, types and the system's
    own words are told: other texts may quote a request, and with it the token.
    Agreement: tests/subjects/test_hub_faults.py.
    """
    try:
        yield
    except ReproError:
        raise
    except Exception as error:  # libraries raise httpx2's, aiohttp's, pyarrow's and their own errors
        raise _sentence(what, error, endpoint) from None


@contextmanager
def disk_errors(cache: Path) -> Iterator[None]:
    """Turn what the operating system says about the cache into one sentence (exit 4)."""
    try:
        yield
    except OSError as error:
        raise _disk(error, cache) from None


def shown(endpoint: str) -> str:
    """Return an address without the credentials that it may carry."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _sentence(what: str, error: Exception, endpoint: str) -> ReproError:
    hub = f"the hub at {shown(endpoint)}"
    chain = list(_causes(error))
    for cause in chain:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return AbsentError(f"{what}: {hub} answers {status}: {_meaning(cause, status)}")
    for cause in chain:
        name = type(cause).__name__
        if isinstance(cause, TimeoutError) or "Timeout" in name:
            return AbsentError(f"{what}: {hub} stopped answering ({name}); run again")
        if isinstance(cause, ConnectionError) or any(base.__name__ == "TransportError" for base in type(cause).__mro__):
            return AbsentError(f"{what}: {hub} cannot be reached or drops the connection ({name}); run again")
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno is not None:
            return _disk(cause, Path())
        if isinstance(cause, OSError) and "Consistency check failed" in str(cause):
            return AbsentError(f"{what}: {hub} sends another number of bytes than it announces; run again")
    return AbsentError(f"{what}: {hub} gives an answer that cannot be used ({type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _meaning(error: BaseException, status: int) -> str:
    kinds = {base.__name__ for base in type(error).__mro__}
    if "RevisionNotFoundError" in kinds:
        return "there is no such revision"
    if "EntryNotFoundError" in kinds:
        return "there is no such file"
    if status in (401, 403, 404):
        from huggingface_hub import get_token

        has = "the token given does not give access to it" if get_token() else "it may need a token in HF_TOKEN"
        return f"it does not exist, or is private or gated ({has})"
    if status == 429:
        return "too many requests; try again later"
    return "it is out of order; try again later" if status >= 500 else "the request is refused"


def _disk(error: OSError, cache: Path) -> ReproError:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    where = re.sub(r"\s+", " ", str(error.filename or cache))
    return unavailable(f"{where}: {reason}; free or repair the disk and run again")
