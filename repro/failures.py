"""What went wrong, experiment by experiment: one that fails does not stop the others."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from repro.errors import Exit, ReproError

Say = Callable[[str], None]


@dataclass
class Failures:
    """The errors of a run by experiment; `say` hears of each at once."""

    say: Say
    errors: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        """Whether an experiment has failed."""
        return name in self.errors

    def guard(self, name: str, action: Callable[[], None]) -> None:
        """Runs one experiment's step; what goes wrong ends that experiment only.

        Raises ReproError for what concerns every experiment: wrong use (exit 2), a corrupt store (exit 5).
        """
        if name in self.errors:
            return
        try:
            action()
        except ReproError as error:
            if error.code in (Exit.CORRUPT, Exit.USAGE):
                raise
            self.errors[name] = error.message
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self.errors[name] = f"{type(error).__name__}: {error}"
            self.say("".join(traceback.format_exception(error)))
        if name in self.errors:
            self.say(f"{name} failed: {self.errors[name]}")
