"""A process of its own that streams token rows of a data set on the hub: `python -m repro.subjects.hub_rows`.

A process, because the library behind it waits for as long as a server asks, retries for many minutes, and leaves
threads that no caller can end. It writes JSON lines on its standard output: rows, then `done` or an `error`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from repro.subjects.hub_refusals import CutError, is_transport, refusal, retry_after, status_of
from repro.subjects.hub_transfer import PAUSES, PIECE

IMPORTING = 120.0
"""Seconds that may pass before the first request: a cold disk reads the libraries slowly."""


class GivenUpError(Exception):
    """Too many failures in a row; known to nobody's list of what to try again. Carries the last of them."""


class Line:
    """What goes on between this process and the hub, as its HTTP client tells it."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.waiting = True
        self.last = time.monotonic() + IMPORTING - timeout
        self.failures = 0

    def asked(self, _: Any) -> None:
        """A request goes out. A repeated one does not make the wait any younger."""
        if not self.waiting:
            self.waiting, self.last = True, time.monotonic()

    def answered(self, response: Any) -> None:
        """Headers came: what may pass is tried again a few times, and the body is watched."""
        self.last = time.monotonic()
        if response.status_code in (408, 429) or response.status_code >= 500:
            self.failed(_StatusError(response))
        response.stream = _watched(self, response.stream, response.is_success)

    def failed(self, error: Exception) -> None:
        """Counts what failed; raises GivenUpError once waiting longer is no use."""
        self.failures += 1
        if self.failures > len(PAUSES) or (retry_after(error) or 0) > self.timeout / 2:
            raise GivenUpError(error)

    def silent(self) -> bool:
        """Whether the hub owes an answer for longer than the time allowed."""
        return self.waiting and time.monotonic() - self.last > self.timeout


class _StatusError(Exception):
    """Carries a response to those who read its status."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.response = response


def _watched(line: Line, stream: Any, success: bool) -> Any:
    """The body of a response, every piece of which is a sign of life."""

    class Watched(type(stream)):  # type: ignore[misc]  # the HTTP library checks for its own class
        def __init__(self) -> None:
            """Nothing of its own."""

        def __iter__(self) -> Iterator[bytes]:
            since = 0
            try:
                for piece in stream:
                    since += len(piece)
                    if since >= PIECE:
                        since, line.last = 0, time.monotonic()
                    yield piece
            except GeneratorExit:
                raise
            except Exception:
                line.failed(CutError())
                raise
            if success:
                line.failures = 0

        def close(self) -> None:
            line.waiting = False
            stream.close()

    return Watched()


def stream(dataset: str, revision: str, column: str, seed: int, count: int) -> Iterator[list[int]]:
    """The first `count` rows, shard by shard, the shards in the order that the seed gives them."""
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(dataset, split="train", revision=revision, streaming=True)
    if rows.column_names is not None and column not in rows.column_names:
        raise _MissingColumnError(", ".join(rows.column_names))
    # A buffer of one row shuffles shards and nothing else, in every version of the library.
    rows = rows.select_columns([column]).shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
    for row in rows.take(count):
        yield row[column]


class _MissingColumnError(Exception):
    """The data set has other columns."""


def main() -> None:
    """Streams what the one argument, a JSON object, asks for; always ends by itself."""
    wish = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the rows
    what, timeout = f"data set {wish['dataset']}", wish["timeout"]
    line = Line(timeout)

    def say(error: Exception) -> None:
        from huggingface_hub import get_token

        _send(out, {"error": _sentence(what, error, wish["endpoint"], timeout, get_token())})

    def watch() -> None:
        while not line.silent():
            time.sleep(0.1)
        say(TimeoutError())
        os._exit(4)

    threading.Thread(target=watch, daemon=True).start()
    try:
        _listen(line)
        for row in stream(wish["dataset"], wish["revision"], wish["column"], wish["seed"], wish["count"]):
            _send(out, {"row": row})
        _send(out, {"done": True})
    except Exception as error:  # turned into a sentence for the parent
        say(error)
    # The streaming library's threads may outlive it, and the interpreter with them.
    os._exit(0)


def _listen(line: Line) -> None:
    """Makes every HTTP client of this process report to `line`."""
    import huggingface_hub

    made = huggingface_hub.get_session()
    hooks: dict[str, list[Any]] = {
        "request": [*made.event_hooks["request"], line.asked],
        "response": [*made.event_hooks["response"], line.answered],
    }
    kind = type(made)
    huggingface_hub.set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=None))


def _sentence(what: str, error: Exception, endpoint: str, timeout: float, token: str | None) -> str:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, GivenUpError):
            return refusal(what, chain.args[0], endpoint, timeout, token).message
        if isinstance(chain, Exception) and _is_of_the_line(chain):
            return refusal(what, chain, endpoint, timeout, token).message
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, _MissingColumnError):
        return f"{what}: no column `tokens`; it has {error}"
    return f"{what}: cannot be read as rows of tokens ({type(error).__name__})"


def _is_of_the_line(error: Exception) -> bool:
    return status_of(error) is not None or isinstance(error, TimeoutError) or is_transport(error)


def _send(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
