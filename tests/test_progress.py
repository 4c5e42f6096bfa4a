"""What long work says of itself: how far, how fast, how long still; and nothing that nobody asked."""

from __future__ import annotations

import pytest

from repro.progress import LINES, duration, pace, progress


def told(total: int) -> list[str]:
    """The plain lines of work whose steps take two seconds each."""
    said: list[str] = []
    ticks = iter(range(0, 10_000, 2))
    with progress(total, "units", said.append, clock=lambda: next(ticks)) as advance:
        for _ in range(total):
            advance()
    return said


def test_plain_lines_are_few_and_end_with_the_last_step() -> None:
    for total in (1, 4, 14, 75, 1000):
        said = told(total)
        assert 1 <= len(said) <= LINES
        assert said[-1] == f"  {total}/{total} units"
    assert told(0) == []


def test_rate_and_time_left_are_said() -> None:
    assert pace(10, 40, 20.0) == "2.0 s each, 1 min left"
    assert pace(1, 2, 170.0) == "2 min 50 s each, 2 min 50 s left"
    assert pace(1234, 2468, 1.0) == "1,234 a second, 1.0 s left"
    assert pace(10, 40, 2.0) == "5 a second, 6.0 s left"
    assert pace(0, 40, 2.0) == pace(40, 40, 2.0) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.4 s"),
        (59.4, "59 s"),
        (200.0, "3 min 20 s"),
        (60.0, "1 min"),
        (1500.0, "25 min"),
        (7500.0, "2 h 5 min"),
    ],
)
def test_times_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words
