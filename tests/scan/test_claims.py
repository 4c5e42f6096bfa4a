"""Statistics of claims on data whose truth is known, and every condition where it alone fails."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import quantile_test

from repro.scan.claims import LEVEL, Thresholds, erased_share, holm, sign_test
from tests.scan.made import DECOYS, claims, erase, judged, quiet

PAIR = ("L0H1", "L2H0")


def test_the_sign_test_is_that_of_scipy_with_ties_and_nan() -> None:
    generator = np.random.default_rng(0)
    for d in (0.0, 0.02, 0.1):
        shares = generator.integers(-6, 3, (40, 17)) * 0.02  # many are exactly -d
        shares[generator.random(shares.shape) < 0.2] = np.nan
        assert (shares == -d).any()
        found = sign_test(shares, d)
        for row, p in zip(shares, found, strict=True):
            theirs = quantile_test(row[np.isfinite(row)], q=-d, p=0.5, alternative="less").pvalue
            assert p == pytest.approx(theirs, rel=1e-12)
    assert sign_test(np.full((1, 5), np.nan), 0.02) == 1  # nothing known, nothing claimed


def test_the_sign_test_keeps_its_level_on_skewed_shares_and_finds_what_is_there() -> None:
    generator = np.random.default_rng(1)
    skewed = -generator.exponential(1, (4000, 25))
    at_the_bound = skewed + np.log(2) - 0.02  # median exactly -d, mean far below it
    rate = (sign_test(at_the_bound, 0.02) < 0.05).mean()
    assert 0.005 < rate < 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5
    assert (sign_test(at_the_bound - 1, 0.02) < 0.05).mean() > 0.95


def plain_holm(p: np.ndarray) -> list[float]:
    """Holm's procedure as one writes it down: the smallest of m is multiplied by m, and none is below those before."""
    adjusted, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, float(p[i]) * (len(p) - rank)))
        adjusted[i] = least
    return adjusted


def test_holm_is_the_plain_procedure() -> None:
    generator = np.random.default_rng(2)
    for n in (1, 2, 7, 100):
        p = np.round(generator.random(n) ** 4, 2)  # with ties
        np.testing.assert_allclose(holm(p), plain_holm(p), rtol=1e-12)
    assert holm(np.array([0.01, 0.04]))[1] == 0.04  # Bonferroni would say 0.08


def test_quiet_shares_give_no_claim_and_a_planted_pair_gives_one() -> None:
    raw = quiet()
    assert not claims(judged(raw))
    erase(raw, *PAIR, -0.3)
    pairs = judged(raw)
    assert claims(pairs) == [PAIR]
    w, c = pairs.writers.index(PAIR[0]), pairs.components.index(PAIR[1])
    assert pairs.path[w, c] == pytest.approx(-0.3, abs=0.03)
    assert pairs.p_adjusted[w, c] < LEVEL
    assert pairs.n_pairs == int(np.isfinite(raw["path"].sel(stratum="rest").values[: len(pairs.writers), :, 0]).sum())


def failing(condition: str) -> xr.Dataset:
    """A planted pair that meets all conditions of 1 to 3 but one."""
    raw = quiet()
    writer, component = PAIR
    erase(raw, writer, component, -0.3, clean=0.3 if condition == "net" else None)
    at = {"component": component}
    if condition == "replicable":  # the median stands, and eight of twenty prompts dissent
        raw["path"].loc[at | {"writer": writer}][..., :8] += 0.5
    if condition == "specific: z":
        decoys = [f"decoy{i}" for i in range(DECOYS)]
        raw["path"].loc[at | {"writer": decoys}] += np.linspace(-0.4, 0.4, DECOYS)[:, None]
    if condition == "specific: e":  # the component damps every real writer alike
        raw["path"].loc[at | {"writer": list(raw.node.values)}] -= 0.3
        raw["path"].loc[at | {"writer": writer}] += 0.3
        raw["clean"].loc[at] -= 0.0
    return raw


@pytest.mark.parametrize("condition", ["replicable", "specific: z", "specific: e", "net"])
def test_every_condition_fails_alone(condition: str) -> None:
    pairs = judged(failing(condition))
    w, c = pairs.writers.index(PAIR[0]), pairs.components.index(PAIR[1])
    met = {
        "replicable": pairs.replicable[w, c],
        "specific": pairs.specific_enough[w, c],
        "net": pairs.net[w, c],
    }
    assert met == {name: name != condition.split(":")[0] for name in met}
    assert (pairs.z[w, c] <= -5) == (condition != "specific: z")
    assert (pairs.specific[w, c] <= -0.02) == (condition != "specific: e")
    assert not pairs.claimed[w, c]


def test_the_least_share_is_that_of_the_thresholds() -> None:
    raw = quiet()
    erase(raw, *PAIR, -0.1)
    assert claims(judged(raw)) == [PAIR]
    assert not claims(judged(raw, Thresholds(d=0.15)))
    assert not claims(judged(raw, Thresholds(z=-1000.0)))


def test_what_decoys_would_be_claimed_for_is_counted_for_every_pair_of_their_component() -> None:
    raw = quiet()
    assert judged(raw).false_pairs == 0
    raw["path"].loc[{"component": "L2H0", "writer": "decoy3"}] -= 0.5
    pairs = judged(raw)
    # Of 16 decoys one cannot lie five of their deviations below their mean; a threshold of 3.5 it passes.
    assert pairs.false_pairs == 0
    pairs = judged(raw, Thresholds(z=-3.5))
    readers = int(pairs.reads[:, pairs.components.index("L2H0")].sum())
    assert pairs.false_pairs == pytest.approx(readers / DECOYS)
    assert not claims(pairs)


def test_with_one_prompt_fewer_than_the_least_nothing_can_be_claimed() -> None:
    least = judged(quiet()).least_prompts
    assert 2.0**-least * judged(quiet()).n_pairs <= LEVEL < 2.0 ** (1 - least) * judged(quiet()).n_pairs
    for n_prompts, expected in ((least - 1, []), (least, [PAIR])):
        raw = quiet(n_prompts=n_prompts)
        erase(raw, *PAIR, -0.9)
        assert claims(judged(raw)) == expected


def test_shares_of_one_layer_add_and_layers_compound() -> None:
    components = ("L1H0", "L1H1", "MLP1", "L2H0", "L2H1", "MLP2")
    e = np.array([-0.2, -0.1, -0.2, -0.4, 0.3, np.nan])
    erasers = np.array([True, False, True, True, False, False])
    assert erased_share(e, components, erasers) == pytest.approx(1 - 0.6 * 0.6)
    assert erased_share(e, components, np.array([True, True, True, False, False, False])) == pytest.approx(0.5)
    assert erased_share(e, components, np.zeros(6, bool)) == 0


def test_a_writer_that_writes_nothing_is_no_pair() -> None:
    raw = quiet()
    raw["path"].loc[{"writer": "L0H0"}] = np.nan
    raw["clean"].loc[{"writer": "L0H0"}] = np.nan
    erase(raw, *PAIR, -0.3)
    pairs = judged(raw)
    assert claims(pairs) == [PAIR]
    assert not pairs.reads[pairs.writers.index("L0H0")].any()
    assert pairs.n_pairs < judged(quiet()).n_pairs


def test_the_order_of_prompts_is_irrelevant() -> None:
    raw = quiet()
    erase(raw, *PAIR, -0.05)
    turned = raw.isel(prompt=np.random.default_rng(3).permutation(raw.sizes["prompt"]))
    one, other = judged(raw), judged(turned)
    np.testing.assert_array_equal(one.p_adjusted, other.p_adjusted)
    np.testing.assert_array_equal(one.z, other.z)
