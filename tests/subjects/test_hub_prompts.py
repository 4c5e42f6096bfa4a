"""Prompts from a hub: the authors' order, frozen once, refused by row number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from repro.errors import Exit, ReproError
from repro.model.folder import tokens_fingerprint
from repro.model.prompt_file import read_tokens
from repro.spec.types import HubPrompts, HubSource
from repro.subjects.access import Access
from repro.subjects.lock import Lock
from repro.subjects.prompts import as_tokens, freeze_prompts, permutation, shuffled
from tests import hub_place
from tests.hub_files import Answer, Drop, Fault, Hang, Wrong
from tests.hub_place import use_hub
from tests.hub_server import HubServer

pytestmark = pytest.mark.hub
quick = hub_place.quick

TEXT, CODE, LENGTH, VOCAB, SEED, BUFFER = "owner/text", "owner/code", 16, 1000, 5235, 10
RECIPE = HubPrompts(
    sources=(HubSource(dataset=TEXT, rows=24, kind="t"), HubSource(dataset=CODE, rows=6, kind="c")),
    length=LENGTH,
    seed=SEED,
    buffer=BUFFER,
)


def rows_of(seed: int, shards: int) -> list[np.ndarray]:
    """Random rows in shards of 20, longer than wanted, as the shards of one data set."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(1, VOCAB, (shards, 20, LENGTH + 3))
    rows[:, :, 0] = 0
    return list(rows)


SHARDS = {TEXT: rows_of(1, 3), CODE: rows_of(2, 1)}


def recipe_for(dataset: str, rows: int = 5) -> HubPrompts:
    return RECIPE.model_copy(update={"sources": (HubSource(dataset=dataset, rows=rows, kind="t"),)})


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        for name, shards in SHARDS.items():
            hub.add_rows(name, shards, rows_per_group=7)
        yield hub


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    server.behave()
    use_hub(monkeypatch, server.url, tmp_path / "huggingface")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def lock_of(root: Path) -> Lock:
    return Lock(root / "spec.lock.json", "tiny")


def freeze(root: Path, recipe: HubPrompts = RECIPE, offline: bool = False) -> Path:
    return freeze_prompts(recipe, d_vocab=VOCAB, access=Access(root / "cache", offline), lock=lock_of(root))


def refused(root: Path, *words: str, recipe: HubPrompts = RECIPE, offline: bool = False) -> str:
    with pytest.raises(ReproError) as caught:
        freeze(root, recipe, offline)
    sentence = str(caught.value)
    assert caught.value.code == Exit.UNAVAILABLE
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


def test_the_order_is_that_of_the_authors_library() -> None:
    # Printed by datasets 2.14.5: seven shards of 30 rows, shuffle(seed=5235, buffer_size=10). It takes the shards in
    # the order 5, 2, 4, 0, 3, 1, 6, which our stream leaves to the library.
    rows = [100 * shard + row for shard in (5, 2, 4, 0, 3, 1, 6) for row in range(30)]
    assert list(shuffled(rows, 10, 5235))[:45] == [
        *(504, 503, 509, 507, 505, 502, 512, 510, 514, 506, 500, 516, 513, 518, 519, 523, 520, 508, 527, 526, 517, 521),
        *(511, 525, 201, 200, 202, 203, 528, 204, 501, 210, 208, 209, 522, 211, 205, 214, 215, 529, 212, 206, 515),
        *(217, 221),
    ]
    assert sorted(shuffled(rows, 10, 5235)) == sorted(rows)


@pytest.mark.parametrize(("rows", "buffer"), [(0, 10), (5, 10), (10, 10), (11, 10), (2500, 10), (7, 1)])
def test_the_buffer_loses_and_repeats_nothing(rows: int, buffer: int) -> None:
    assert sorted(shuffled(range(rows), buffer, SEED)) == list(range(rows))
    if buffer == 1:
        assert list(shuffled(range(rows), buffer, SEED)) == list(range(rows))


def test_the_permutation_is_torchs_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = permutation(300, SEED)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(SEED)
    assert found == torch.randperm(300).tolist()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, 2, 3], "row 1 has 3 tokens where 4 are wanted"),
        ([1, 2, 9, 4], "token id 9 at row 1, position 2 is outside the vocabulary of 9"),
        ([-1, 2, 3, 4], "token id -1 at row 1, position 0"),
        ([1, 2, 2**40, 4], f"token id {2**40} at row 1"),
        ([1, 2, 3.5, 4], "row 1 is not a list of token ids"),
        ([True, 2, 3, 4], "row 1 is not a list of token ids"),
        (None, "row 1 is not a list of token ids"),
        ("abcd", "row 1 is not a list of token ids"),
    ],
)
def test_an_unfit_row_is_refused_by_number(row: object, words: str) -> None:
    with pytest.raises(ReproError, match=words) as caught:
        as_tokens([[1, 2, 3, 4, 99], row], "owner/rows", 2, 4, 9)
    assert caught.value.code == Exit.UNAVAILABLE
    assert "owner/rows" in str(caught.value)


def test_missing_rows_are_counted() -> None:
    with pytest.raises(ReproError, match="1 rows where 2 are wanted"):
        as_tokens([[1, 2]], "owner/rows", 2, 2, 9)


def expected() -> tuple[np.ndarray, list[str]]:
    """The recipe, step by step and without the code under test."""
    parts = []
    for name, wanted in ((TEXT, 24), (CODE, 6)):
        shards = SHARDS[name]
        order = list(range(len(shards)))
        np.random.default_rng(SEED).shuffle(order)
        rows = [row[:LENGTH] for shard in order for row in shards[shard]]
        draws = np.random.default_rng(SEED).integers(0, BUFFER, size=1000)
        held, given = rows[:BUFFER], []
        for place, row in zip(draws, rows[BUFFER:], strict=False):
            given.append(held[place])
            held[place] = row
        parts += given[:wanted]
    torch.manual_seed(SEED)
    permuted = torch.randperm(30).tolist()
    return np.array([parts[row] for row in permuted]), ["t" if row < 24 else "c" for row in permuted]


def test_prompts_are_frozen_once_and_pinned(hub: HubServer, tmp_path: Path) -> None:
    path = freeze(tmp_path)
    with safe_open(str(path), framework="numpy") as file:
        tokens, metadata = file.get_tensor("tokens"), file.metadata()
    wanted, kinds = expected()
    np.testing.assert_array_equal(tokens, wanted)
    assert tokens.dtype == np.int32
    assert json.loads(metadata["kind"]) == kinds
    assert metadata["sha256"] == tokens_fingerprint(tokens)
    frozen = lock_of(tmp_path).entry().prompts
    assert frozen is not None
    assert (frozen.sha256, frozen.n, frozen.length) == (metadata["sha256"], 30, LENGTH)
    for name in (TEXT, CODE):
        pin = lock_of(tmp_path).repo(f"datasets/{name}", name)
        assert pin is not None
        assert pin.revision == hub.repositories["dataset", name].main
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    hub.requests.clear()
    assert freeze(tmp_path) == freeze(tmp_path, offline=True) == path
    assert hub.requests == []
    with pytest.raises(ReproError, match="outside the vocabulary of 500"):
        read_tokens(path, LENGTH, 500, {})

    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(tmp_path, str(path), "sha256", "delete")
    path.write_bytes(b"junk")
    refused(tmp_path, str(path), "damaged", "delete")


def test_other_rows_than_the_locks_do_not_settle_in_the_cache(hub: HubServer, tmp_path: Path) -> None:
    recipe = recipe_for(CODE, 8)
    path = freeze(tmp_path, recipe)
    lock, pin = lock_of(tmp_path).path, lock_of(tmp_path).entry().prompts
    text = lock.read_text()
    assert pin is not None
    lock.write_text(text.replace(pin.sha256, "0" * 64))
    refused(tmp_path, pin.sha256, "0" * 64, "delete", recipe=recipe)
    lock.write_text(text)
    path.unlink()
    shard = hub.repositories["dataset", CODE].commits[hub.repositories["dataset", CODE].main]
    (file,) = shard.values()
    assert isinstance(file.source, bytes)
    first = next(shuffled(range(20), BUFFER, SEED))
    hub.misbehave(r"^/cdn/dataset/owner/code", Wrong(at=file.source.index(SHARDS[CODE][0][first, 1:4].tobytes())))
    refused(tmp_path, pin.sha256, "other rows than before", recipe=recipe)
    assert not path.exists()


def test_offline_never_asks(hub: HubServer, tmp_path: Path) -> None:
    refused(tmp_path, TEXT, CODE, "not in the cache", "does not ask the hub", offline=True)
    assert hub.requests == []


def test_an_unreachable_hub_is_decided_before_anything_is_streamed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repro.subjects.hub.PROBE", 0.5)
    hub.misbehave("", Hang())
    start = time.monotonic()
    refused(tmp_path, "not in the cache", "cannot be reached")
    assert time.monotonic() - start < 20


def test_unfit_data_sets_are_refused_in_one_sentence(hub: HubServer, tmp_path: Path) -> None:
    same = SHARDS[TEXT][0].copy()
    same[1] = same[0]
    hub.add_rows("owner/same", [same])
    hub.add("dataset", "owner/words", {"data/train.jsonl": b'{"text": "no tokens"}\n' * 9})
    hub.add("dataset", "owner/empty", {"README.md": b"# nothing\n"})
    cases = [
        ("of owner/same is the same as row", recipe_for("owner/same", 20)),
        ("owner/words: no column `tokens`; it has text", recipe_for("owner/words")),
        ("owner/empty: cannot be read as rows of tokens", recipe_for("owner/empty")),
        ("owner/nowhere: the hub", recipe_for("owner/nowhere")),
        ("owner/code: 20 rows where 21 are wanted", recipe_for(CODE, 21)),
    ]

    def run(number: int) -> None:
        (tmp_path / str(number)).mkdir()
        refused(tmp_path / str(number), cases[number][0], recipe=cases[number][1])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(len(cases))))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Drop(after=1000, times=1), None),
        (Answer(status=500), "answers 500"),
        (Answer(status=429, headers={"Retry-After": "1800"}), "too many requests"),
        (Drop(after=1000), "drops the connection"),
        (Hang(), "drops the connection"),
    ],
    ids=["passing", "500", "429", "drops", "hang"],
)
def test_a_misbehaving_stream_is_retried_or_ends(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, fault: Fault, words: str | None
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.misbehave(r"^/cdn/dataset/owner/text/.*parquet", fault)
    if words is None:
        assert freeze(tmp_path, recipe_for(TEXT)).is_file()
    else:
        refused(tmp_path, words, TEXT, recipe=recipe_for(TEXT))
        assert not list((tmp_path / "cache" / "prompts").iterdir())


def test_a_process_that_streamed_ends_by_itself(hub: HubServer, tmp_path: Path) -> None:
    """Threads of a stream that was not read to its end must not outlive the command."""
    program = f"""
from itertools import islice
from repro.subjects.hub import Hub
from repro.subjects.prompts import _rows
print(len(list(islice(_rows(Hub(offline=False), {TEXT!r}, {hub.repositories["dataset", TEXT].main!r}, 1, 50), 7))))
"""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")
