"""The one error of this package: a sentence for a person, and the exit code it ends in."""

from __future__ import annotations

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


class ReproError(Exception):
    """Something the user can act on: what was given, where, what is allowed, what to do.

    Raised deep inside with the offending thing only; the public boundary adds file, table and key once (`at`).
    """

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def at(self, where: str) -> ReproError:
        """The same error with the place it came from put in front."""
        return ReproError(f"{where}: {self.message}", self.code)

    def __str__(self) -> str:
        return self.message


class AbsentError(ReproError):
    """A model or data set that is not here and cannot be fetched (exit 4): another default subject may stand in.

    Not for what is here but unfit: a wrong hash or a damaged file must never be passed over.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.UNAVAILABLE)


def worst(codes: list[Exit]) -> Exit:
    """The one exit code that stands for several."""
    return next((code for code in PRECEDENCE if code in codes), Exit.OK)
