"""The one error of this package: a sentence for a person, the exit code it ends in, and what sentences are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command; several problems at once exit with the first of `PRECEDENCE` that occurred."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DIFFERS = 3
    UNAVAILABLE = 4
    CORRUPT = 5
    INTERRUPTED = 130


PRECEDENCE = (Exit.INTERRUPTED, Exit.USAGE, Exit.CORRUPT, Exit.UNAVAILABLE, Exit.FAILED, Exit.DIFFERS, Exit.OK)


LONGEST = 2000
"""Characters of one line of a message."""


def plain(text: str, longest: int = LONGEST) -> str:
    """Return a text as one line that a terminal shows and does not obey: escaped where not printable, and cut."""
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text[: longest + 1]
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def words_of(error: BaseException) -> str:
    """Return what a library says of an error, as part of a sentence."""
    return plain(" ".join(str(error).split()), 300)


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ' Did you mean X?' where something allowed is close, else the empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def listing(items: Sequence[str], most: int = 12) -> str:
    """Return the items as a comma-separated list, cut after `most`."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown}, … ({len(items)} in all)"


class ReproError(Exception):
    """Something the user can act on: what was given, where, what is allowed, what to do.

    Raised deep inside with the offending thing only; the public boundary adds file, table and key once (`at`).
    What is quoted in it may come from anywhere: every line of the message is made `plain`.
    """

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        self.message = "\n".join(plain(line) for line in message.split("\n"))
        super().__init__(self.message)
        self.code = code

    def at(self, where: str) -> ReproError:
        """Return the same error with the place it came from put in front."""
        return ReproError(f"{where}: {self.message}", self.code)

    def __str__(self) -> str:
        return self.message


def unavailable(message: str) -> ReproError:
    """Return what cannot be had or is unfit (exit 4)."""
    return ReproError(message, Exit.UNAVAILABLE)


class AbsentError(ReproError):
    """A model or data set that is not here and cannot be fetched (exit 4): another default subject may stand in.

    Not for what is here but unfit: a wrong hash or a damaged file must never be passed over.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.UNAVAILABLE)


def worst(codes: list[Exit]) -> Exit:
    """Return the one exit code that stands for several."""
    return next((code for code in PRECEDENCE if code in codes), Exit.OK)
