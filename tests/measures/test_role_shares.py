"""Shares through the named erasers alone: the same numbers as the whole scan's, held to the whole model's level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repro.labels import step_of
from repro.measures.path_shares import PathShares
from repro.measures.role_shares import RoleShares
from repro.measures.roles import Roles
from repro.scan.claims import pairs_of_model
from repro.scan.verdict import scan
from tests.scan.made import erase, quiet
from tests.scenes import scene

WHOLE = PathShares(measure="path_shares", stride=4, decoys=8)
NAMED = RoleShares(measure="role_shares", stride=4, decoys=8)


@pytest.mark.parametrize("kind", ["native", "llama"])
@pytest.mark.parametrize("erasers", [("L1H0",), ("MLP1", "L1H1")])
def test_they_are_the_whole_scans_shares(kind: str, erasers: tuple[str, ...]) -> None:
    given = scene(kind)
    named = replace(given, roles=Roles("L0H0", erasers))
    all_of_it, some = given.compute(WHOLE), named.compute(NAMED)
    columns = [i for i, node in enumerate(given.context.nodes) if node in erasers]
    for name, values in some.items():
        expected = all_of_it[name][:, :, columns] if name in ("path", "clean") else all_of_it[name]
        np.testing.assert_array_equal(values, expected, err_msg=name)
        assert values.shape == NAMED.layout(named.context).shape(NAMED.layout(named.context).variable(name))
    assert NAMED.extra_flop(named.context) < WHOLE.extra_flop(given.context) / 2


def test_the_pairs_of_a_model_are_those_that_a_whole_scan_tests() -> None:
    raw = quiet()
    nodes, components = list(map(str, raw.node.values)), list(map(str, raw.component.values))
    assert pairs_of_model(nodes, components) == 0
    assert pairs_of_model(nodes, components[2:3]) == scan(raw, draws=0).pairs.n_pairs
    assert pairs_of_model(["embed", "L0H0", "MLP0"], ["MLP0"]) == 1 + 2  # embed by both, L0H0 by MLP0
    assert step_of("embed") < step_of("L0H0") < step_of("MLP0")


def test_few_pairs_make_no_claim_easier() -> None:
    """Nine prompts can claim one pair of eight, and none of a whole model's."""
    for n_prompts, claimed in ((9, False), (20, True)):
        raw = quiet(n_prompts=n_prompts)
        erase(raw, "L0H1", "MLP2", -0.6)
        some = raw.sel(component=["MLP2"])
        whole, alone = scan(raw, draws=0), scan(some, draws=0)
        assert alone.pairs.n_pairs < whole.pairs.n_pairs == alone.pairs.family
        assert alone.enough_prompts == whole.enough_prompts == claimed
        assert [w.label for w in alone.erased] == [w.label for w in whole.erased] == (["L0H1"] if claimed else [])
