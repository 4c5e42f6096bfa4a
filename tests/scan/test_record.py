"""Roles from a scan: who is chosen, what is said of named ones, what is confirmed once and kept, and what is stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repro.errors import ReproError
from repro.measures.roles import Roles
from repro.scan import choose, record
from repro.scan.choose import settled
from repro.scan.confirmation import Confirmation
from repro.scan.record import Pair, ScanRecord, load, named_pairs, save
from repro.store.records import ROLES
from repro.store.verify import invalidate, verify_result
from tests.scan.made import erase, quiet

KEPT = Confirmation(-0.6, -0.1, -0.1, -0.1, -0.2, -0.2)
REFUTED = Confirmation(-0.6, -0.59, -0.59, -0.6, -0.6, -0.6)
TOKENS = np.zeros((20, 64), np.int64)


class Forwards:
    """Stands for real forwards: what they were asked, and what they say."""

    def __init__(self) -> None:
        self.asked: list[list[Pair]] = []
        self.refuted: set[Pair] = set()

    def __call__(self, model: Any, tokens: np.ndarray, wanted: list[Pair]) -> dict[Pair, Confirmation]:
        self.asked.append(wanted)
        return {pair: REFUTED if pair in self.refuted else KEPT for pair in wanted}


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    made = Forwards()
    monkeypatch.setattr(choose, "confirm_on", made)
    return made


def two_writers() -> xr.Dataset:
    """L0H1 loses 0.6 to MLP1 and 0.2 to L2H0, MLP0 loses 0.3 to MLP2."""
    raw = quiet()
    erase(raw, "L0H1", "MLP1", -0.6)
    erase(raw, "L0H1", "L2H0", -0.2)
    erase(raw, "MLP0", "MLP2", -0.3)
    return raw


def almost(raw: xr.Dataset, writer: str, component: str) -> None:
    """Let a component take back a third in twelve prompts of twenty, and add as much in the others: no claim."""
    for name in ("path", "clean"):
        raw[name].loc[{"writer": writer, "component": component}] = np.repeat([-0.3, 0.3], [12, 8])


def settle(path: Path, raw: xr.Dataset, *named: Pair) -> ScanRecord:
    return settled(path, lambda: raw, TOKENS, lambda: None, named)  # type: ignore[arg-type,return-value]


def test_the_writer_with_the_largest_erased_share_and_its_erasers_of_any_layers(
    tmp_path: Path, forwards: Forwards
) -> None:
    found = settle(tmp_path, two_writers())
    assert found.roles("auto", "auto") == Roles("L0H1", ("MLP1", "L2H0"), True, "auto")
    assert found.erased == ("L0H1", "MLP0")
    assert forwards.asked == [[("L0H1", "MLP1"), ("L0H1", "L2H0"), ("MLP0", "MLP2")]]


def test_refuted_pairs_erase_nothing(tmp_path: Path, forwards: Forwards) -> None:
    forwards.refuted = {("L0H1", "MLP1")}
    found = settle(tmp_path, two_writers())
    # Without MLP1 what L2H0 takes back of L0H1 is too little: MLP0 loses more.
    assert found.roles("auto", "auto") == Roles("MLP0", ("MLP2",), True, "auto")
    assert found.roles("L0H1", ("MLP1", "L2H0")).standing == "named, not claimed by the scan"


def test_where_nothing_is_claimed_the_strongest_candidate_stands_in(tmp_path: Path, forwards: Forwards) -> None:
    raw = quiet()
    almost(raw, "L1H0", "MLP2")
    found = settle(tmp_path, raw).roles("auto", "auto")
    assert found == Roles("L1H0", ("MLP2",), False, "auto")
    assert forwards.asked == []


def test_too_few_prompts_claim_nothing_but_have_a_candidate(tmp_path: Path, forwards: Forwards) -> None:
    raw = two_writers().isel(prompt=slice(0, 5))
    assert settle(tmp_path, raw).roles("auto", "auto") == Roles("L0H1", ("MLP1",), False, "auto")


def test_a_writer_erased_by_less_than_a_quarter_is_a_candidate_with_all_its_claims(
    tmp_path: Path, forwards: Forwards
) -> None:
    raw = quiet()
    erase(raw, "L0H1", "MLP1", -0.1)
    erase(raw, "L0H1", "MLP2", -0.05)
    assert settle(tmp_path, raw).roles("auto", "auto") == Roles("L0H1", ("MLP1", "MLP2"), False, "auto")


def test_embeddings_hold_no_role(tmp_path: Path, forwards: Forwards) -> None:
    raw = quiet()
    erase(raw, "embed", "MLP1", -0.7)
    erase(raw, "L0H0", "MLP1", -0.4)
    assert settle(tmp_path, raw).roles("auto", "auto") == Roles("L0H0", ("MLP1",), True, "auto")


def test_named_roles_are_put_to_the_same_test(tmp_path: Path, forwards: Forwards) -> None:
    found = settle(tmp_path, two_writers())
    assert found.roles("L0H1", ("MLP1", "L2H0")).standing == "named, claimed"
    assert found.roles("L0H1", ("L2H0",)) == Roles("L0H1", ("L2H0",), True)
    assert found.roles("L0H1", ("MLP1", "L2H1")).standing == "named, claimed but for L2H1"
    wrong = found.roles("L0H0", ("L2H1",))
    assert (wrong.standing, wrong.found) == ("named, not claimed by the scan", False)
    assert Roles("L0H0", ("L2H1",)).standing == "named, no scan yet"


def test_erasers_of_a_named_writer_are_its_claimed_ones_or_the_strongest(tmp_path: Path, forwards: Forwards) -> None:
    raw = two_writers()
    almost(raw, "L1H0", "MLP2")
    found = settle(tmp_path, raw)
    assert found.roles("MLP0", "auto") == Roles("MLP0", ("MLP2",), True, "auto")
    assert found.roles("L1H0", "auto") == Roles("L1H0", ("MLP2",), False, "auto")
    with pytest.raises(ReproError, match="writer: nothing reads MLP2 in this model"):
        found.roles("MLP2", "auto")


def test_claimed_pairs_that_are_named_are_confirmed_though_they_are_not_shown(
    tmp_path: Path, forwards: Forwards
) -> None:
    raw = two_writers()
    erase(raw, "L0H0", "MLP1", -0.1)  # slightly: not among what is shown
    settle(tmp_path, raw)
    assert ("L0H0", "MLP1") not in forwards.asked[0]
    forwards.refuted = {("L0H0", "MLP1")}
    found = settle(tmp_path, raw, ("L0H0", "MLP1"), ("L0H0", "L2H1"))
    assert forwards.asked[1:] == [[("L0H0", "MLP1")]]
    assert not found.roles("L0H0", ("MLP1",)).found
    settle(tmp_path, raw, ("L0H0", "MLP1"))
    settle(tmp_path, raw)
    assert len(forwards.asked) == 2
    assert load(tmp_path) == found
    assert settle(tmp_path, raw, *named_pairs("L0H0", "auto")).asked >= {("L0H0", "")}
    assert named_pairs("auto", "auto") == []


def test_what_is_kept_is_read_as_it_was_and_made_once(tmp_path: Path, forwards: Forwards) -> None:
    found = settle(tmp_path, two_writers())

    def never() -> Any:
        raise AssertionError("read again")

    assert settled(tmp_path, never, TOKENS, never) == load(tmp_path) == found
    assert found.confirmed["L0H1", "MLP1"] == KEPT


def test_another_version_is_stale(tmp_path: Path, forwards: Forwards, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(tmp_path, two_writers())
    monkeypatch.setattr(record, "VERSION", record.VERSION + 1)
    assert load(tmp_path) is None
    settle(tmp_path, two_writers())
    assert len(forwards.asked) == 2
    assert load(tmp_path) is not None


def test_damage_is_found_and_costs_nothing_but_itself(tmp_path: Path, forwards: Forwards) -> None:
    path = tmp_path / "subject" / "scan" / "0123456789ab"
    path.mkdir(parents=True)
    settle(path, two_writers())
    assert verify_result(path) == []
    content = (path / ROLES).read_bytes()
    (path / ROLES).write_bytes(content.replace(b"MLP1", b"MLP2", 1))
    assert load(path) is None
    (finding,) = verify_result(path)
    assert finding.file == ROLES
    assert not finding.foreign
    (path / "COMMIT").write_bytes(b"")  # what is repaired is this file alone
    invalidate(finding)
    assert not (path / ROLES).exists()
    assert (path / "COMMIT").exists()


def test_what_no_number_is_known_of_is_kept_too(tmp_path: Path) -> None:
    unknown = Confirmation(*[float("nan")] * 6)
    save(tmp_path, ScanRecord({("L0H0", "MLP0"): unknown}, frozenset(), {}, (), ("", ()), {}))
    back = load(tmp_path)
    assert back is not None
    assert np.isnan(back.confirmed["L0H0", "MLP0"].before)
    assert not back.roles("auto", "auto").knows("writer")
