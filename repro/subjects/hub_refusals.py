"""What a hub refused: said in one sentence, and remembered for a while so that nobody waits for it twice."""

from __future__ import annotations

import json
import re
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from repro.errors import AbsentError, ReproError
from repro.files import write_durably

HOUR = 3600.0
"""Seconds."""
_PASSING = (408, 429, 500, 502, 503, 504)
_SECONDS_LEFT = re.compile(r";\s*t\s*=\s*(\d+)")


class HubError(AbsentError):
    """A hub that cannot be reached or does not give what it is asked for (exit 4).

    remember: seconds during which asking again would be idle. unreachable: whether nothing at all answered.
    """

    def __init__(self, message: str, remember: float = HOUR, unreachable: bool = False) -> None:
        super().__init__(message)
        self.remember = remember
        self.unreachable = unreachable


class CutError(Exception):
    """A server that ended a file before its end."""


class Refusals:
    """Refusals of the last hour, in a file of the cache. force: ask all the same."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path = path
        self.force = force

    def recall(self, key: str) -> None:
        """Raises HubError with the remembered sentence, and when it was said, if `key` was refused not long ago."""
        entry = self._read().get(key)
        if self.force or not isinstance(entry, dict):
            return
        when, until, sentence = (entry.get(name) for name in ("when", "until", "sentence"))
        if not isinstance(when, int | float) or not isinstance(until, int | float) or not isinstance(sentence, str):
            return
        if when <= time.time() < until:
            asked, again = (time.strftime("%H:%M", time.localtime(moment)) for moment in (when, until))
            raise HubError(
                f"{sentence} (asked at {asked}, not asked again before {again} unless the subject is named)", remember=0
            )

    def note(self, key: str, refused: HubError) -> None:
        """Remembers a refusal for as long as it says."""
        if refused.remember > 0:
            now = time.time()
            entry = {"when": now, "until": now + refused.remember, "sentence": refused.message}
            self._write({**self._read(), key: entry})

    def forget(self, *keys: str) -> None:
        """Forgets what was refused before and is granted now."""
        entries = self._read()
        if not entries.keys().isdisjoint(keys):
            self._write({key: entry for key, entry in entries.items() if key not in keys})

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}  # a memory that cannot be read costs one question
        return entries if isinstance(entries, dict) else {}

    def _write(self, entries: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self.path, json.dumps(entries, indent=1, sort_keys=True).encode())


def refusal(what: str, error: Exception, endpoint: str, timeout: float, token: str | None) -> HubError:
    """One sentence for what a hub, or the way to it, answered about `what`.

    Only an error's type and, for connections, the operating system's words are told: other texts may quote a request
    and with it the token. Agreement: tests/subjects/test_hub_faults.py.
    """
    if isinstance(error, ReproError):
        return error if isinstance(error, HubError) else HubError(error.message, remember=0)
    hub = f"the hub at {shown(endpoint)}"
    status = status_of(error)
    if status is not None:
        wait = retry_after(error)
        remember = HOUR if status != 429 else min(HOUR, max(wait or HOUR, 1.0))
        return HubError(f"{what}: {hub} answers {status}: {_meaning(error, status, wait, token)}", remember)
    name = type(error).__name__
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return HubError(f"{what}: {hub} gave no answer for {timeout:g} s", unreachable=True)
    if isinstance(error, CutError):
        return HubError(f"{what}: {hub} ends the file before its end", remember=0)
    if "ConnectError" in name:
        reason = str(error).replace(token, "***") if token else str(error)
        return HubError(f"{what}: {hub} cannot be reached ({reason or name})", unreachable=True)
    if is_transport(error):
        return HubError(f"{what}: {hub} drops the connection ({name})", unreachable=True)
    return HubError(f"{what}: {hub} gives an answer that is not a hub's ({name})")


def _meaning(error: Exception, status: int, wait: float | None, token: str | None) -> str:
    code = getattr(error, "response").headers.get("X-Error-Code")  # noqa: B009 - `status_of` has seen it
    if code == "RevisionNotFound":
        return "there is no such revision"
    if code == "EntryNotFound":
        return "there is no such file"
    if status in (401, 403, 404):
        has = "the token given with HF_TOKEN does not give access to it" if token else "it may need a token in HF_TOKEN"
        return f"it does not exist, or is private or gated ({has})"
    if status == 429:
        return "too many requests" + (f"; it asks to wait {wait:g} s" if wait else "")
    return "it is out of order; try again later" if status >= 500 else "the request is refused"


def may_pass(error: Exception, timeout: float) -> bool:
    """Whether the same question may be answered a moment later."""
    status = status_of(error)
    if status is not None:
        return status in _PASSING and (retry_after(error) or 0.0) <= timeout / 2
    return isinstance(error, CutError) or (is_transport(error) and "Timeout" not in type(error).__name__)


def status_of(error: Exception) -> int | None:
    """The HTTP status an error is about, if it is about one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def retry_after(error: Exception) -> float | None:
    """Seconds that a server asks to wait, from its Retry-After or rate-limit header."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    value = str(headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
        except ValueError:
            return None
    left = _SECONDS_LEFT.search(str(headers.get("RateLimit") or ""))
    return float(left[1]) if left else None


def is_transport(error: Exception) -> bool:
    """Whether a connection failed; known by name, since huggingface_hub changed its HTTP library between versions."""
    return isinstance(error, ConnectionError) or any(base.__name__ == "TransportError" for base in type(error).__mro__)


def shown(endpoint: str) -> str:
    """An address without the credentials it may carry."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
