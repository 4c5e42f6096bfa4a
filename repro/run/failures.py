"""What went wrong, experiment by experiment: one that fails does not stop the others."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from repro.errors import Exit, ReproError

Say = Callable[[str], None]

# As torch words it: on CUDA and ROCm, asynchronously, in a library's own workspace, and on the host.
_NO_MEMORY = ("out of memory", "_ALLOC_FAILED", "you tried to allocate")
_ONE_EXPERIMENTS = (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class NoMemoryError(Exception):
    """Memory ran out: nobody's failure as long as fewer prompts at once may fit."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a device or on the host; torch raises it as a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


@contextmanager
def memory_told() -> Iterator[None]:
    """Turn whatever is raised when memory runs out into NoMemoryError. Agreement: tests/run/test_trouble.py."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise NoMemoryError(str(error)) from error


@dataclass
class Failures:
    """The errors of a run by experiment; `say` hears of each at once."""

    say: Say
    errors: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        """Return whether an experiment has failed."""
        return name in self.errors

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Keep what goes wrong in the block, a step of one experiment, to that experiment.

        Raises ReproError for what concerns every experiment: wrong use (exit 2), a corrupt store (exit 5); and
        NoMemoryError, which whoever can do with less answers.
        """
        try:
            yield
        except ReproError as error:
            if error.code in (Exit.CORRUPT, Exit.USAGE):
                raise
            self.errors[name] = error.message
        except _ONE_EXPERIMENTS as error:
            self.errors[name] = f"{type(error).__name__}: {error}"
            if ran_out_of_memory(error):
                self.errors[name] += "; free some memory, then run the same command again to go on"
            else:
                self.say("".join(traceback.format_exception(error)))
        if name in self.errors:
            self.say(f"{name} failed: {self.errors[name]}")
