"""The answer on raw shares made by hand: what is erased and how much, of what kind, how sure, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from repro.errors import ReproError
from repro.scan.verdict import Scan, Writer, scan
from tests.scan.made import SAMPLED, erase, quiet

DRAWS = 40


def found(raw: xr.Dataset, draws: int = 0) -> Scan:
    """The answer, without intervals unless a test looks at them."""
    return scan(raw, draws=draws)


def only(result: Scan) -> Writer:
    """The one writer that something is claimed for."""
    (writer,) = result.writers
    return writer


def test_a_writer_with_its_erasers_in_the_order_in_which_they_read() -> None:
    raw = quiet()
    erase(raw, "L0H1", "MLP2", -0.4)
    erase(raw, "L0H1", "L1H0", -0.25)
    erase(raw, "L0H1", "L1H1", -0.05)
    writer = only(found(raw))
    assert (writer.label, [e.component for e in writer.erasers]) == ("L0H1", ["L1H0", "L1H1", "MLP2"])
    assert writer.erased == pytest.approx(1 - 0.7 * 0.6, abs=0.05)
    assert writer.before == pytest.approx(1)
    assert writer.after == pytest.approx(1 - 0.25 - 0.05 - 0.4)
    assert writer.cleared
    assert abs(writer.decoys) < 0.05  # what the same components take of decoys
    assert writer.words == "mostly erased"
    assert [w.label for w in found(raw).erased] == ["L0H1"]


def test_the_decoys_share_is_that_of_the_same_components() -> None:
    raw = quiet()
    erase(raw, "L0H1", "MLP2", -0.7)
    decoys = [str(w) for w in raw.writer.values if str(w).startswith("decoy")]
    raw["path"].loc[{"writer": decoys, "component": "MLP2"}] -= 0.2
    raw["path"].loc[{"writer": decoys, "component": "MLP1"}] -= 0.9
    assert only(found(raw)).decoys == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("share", "words"), [(-0.7, "mostly erased"), (-0.4, "partly erased"), (-0.1, "slightly")], ids=str
)
def test_how_much_in_words(share: float, words: str) -> None:
    raw = quiet()
    erase(raw, "L0H1", "L2H0", share)
    result = found(raw)
    assert only(result).words == words
    assert bool(result.erased) == (words != "slightly")


def test_content_is_what_differs_between_prompts_and_position_what_does_not() -> None:
    raw = quiet()
    for writer in ("L0H0", "L0H1", "pos_embed"):
        erase(raw, writer, "L2H0", -0.6)
    # Half of what each head writes is the same in all prompts. Of L0H1 all that is erased is of that half.
    raw["held_self"].loc[{"node": ["L0H0", "L0H1"]}] = 0.5
    raw["held"].loc[{"node": "L0H0"}] = raw["presence"].sel(node="L0H0") / 2
    raw["held"].loc[{"node": "L0H1"}] = raw["presence"].sel(node="L0H1") - 0.5
    raw["held_self"].loc[{"node": "pos_embed"}] = 1.0
    raw["held"].loc[{"node": "pos_embed"}] = raw["presence"].sel(node="pos_embed")
    kinds = {w.label: w.kind for w in found(raw).writers}
    assert kinds == {"L0H0": "content", "L0H1": "position", "pos_embed": "position"}


def test_the_kind_is_open_where_no_other_prompt_is_known() -> None:
    raw = quiet()
    erase(raw, "L0H0", "L2H0", -0.6)
    raw["held"][:], raw["held_self"][:] = np.nan, np.nan
    assert only(found(raw)).kind == ""


@pytest.mark.parametrize("what", ["stays", "weak before", "huge before"])
def test_taken_back_but_not_cleared(what: str) -> None:
    """Condition 4 alone fails: the pair is claimed, and the writer is not called erased."""
    raw = quiet()
    erase(raw, "L0H1", "L1H0", -0.6)
    own = {"node": "L0H1"}
    if what == "stays":  # something else writes the same again before the last eraser's end
        raw["presence"].loc[own] = 1.0
    else:
        raw["presence"].loc[own] += -0.6 if what == "weak before" else 3.5
    writer = only(found(raw))
    assert [e.component for e in writer.erasers] == ["L1H0"]
    assert not writer.cleared
    assert writer.words == "taken back, not cleared"
    assert not found(raw).erased


def test_a_fall_of_less_than_half_of_what_is_erased_does_not_clear() -> None:
    for fall, cleared in ((0.25, False), (0.35, True)):
        raw = quiet()
        erase(raw, "L0H1", "L1H0", -0.6, clean=-fall)
        assert only(found(raw)).cleared == cleared


def test_a_writer_in_few_positions_is_no_share_of_the_text() -> None:
    raw = quiet()
    erase(raw, "L0H1", "L1H0", -0.6)
    assert only(found(raw)).positions == pytest.approx(1)
    raw["norm4"].loc[{"node": "L0H1"}] = raw["norm2"].sel(node="L0H1") ** 2 / 0.3  # all in 0.3 positions of 8
    writer = only(found(raw))
    assert writer.positions == pytest.approx(0.3 / SAMPLED)
    assert writer.words == "in few positions"
    assert not found(raw).erased


def test_opposition_in_parallel_is_listed_and_never_claimed() -> None:
    raw = quiet()
    erase(raw, "L0H1", "L1H0", 0.0, clean=-0.6)
    erase(raw, "L0H0", "MLP2", 0.0, clean=-0.2)
    result = found(raw)
    assert [row[:2] for row in result.opposed] == [("L0H1", "L1H0"), ("L0H0", "MLP2")]
    assert result.opposed[0][2] == pytest.approx(-0.6, abs=0.03)
    assert not result.writers
    erase(raw, "L0H1", "L1H0", -0.6, clean=0.0)  # negative control: with a path it is erasure, and no longer listed
    assert [row[:2] for row in found(raw).opposed] == [("L0H0", "MLP2")]
    assert only(found(raw)).label == "L0H1"


def test_intervals_contain_the_truth_and_are_narrow() -> None:
    inside, n = 0, 12
    for seed in range(n):
        raw = quiet(n_layers=2, seed=seed)
        raw["path"].loc[{"component": "L1H0"}] *= 0.0  # nothing else flows there: the truth is exactly 0.4
        generator = np.random.default_rng(100 + seed)
        erase(raw, "L0H1", "L1H0", -0.4)
        raw["path"].loc[{"writer": [f"decoy{i}" for i in range(16)], "component": "L1H0"}] += np.linspace(
            -0.01, 0.01, 16
        )[:, None]
        raw["path"].loc[{"writer": "L0H1", "component": "L1H0"}] += 0.1 * generator.standard_normal(20)
        low, high = only(found(raw, DRAWS)).interval
        assert 0 < high - low < 0.25
        inside += low <= 0.4 <= high
    assert inside >= 9  # of 12, where 11 are expected


def test_claims_are_made_anew_in_every_draw() -> None:
    raw = quiet(n_layers=2, n_prompts=20)
    erase(raw, "L0H1", "L1H0", -0.4)
    raw["path"].loc[{"writer": "L0H1", "component": "L1H0"}][..., :3] += 0.6  # three of twenty dissent: just claimed
    low, high = only(found(raw, DRAWS)).interval
    assert low == 0  # in some draws more of them are drawn, and nothing is claimed
    assert high > 0.3


def test_intervals_are_the_same_for_the_same_seed() -> None:
    raw = quiet(n_layers=2)
    erase(raw, "L0H1", "L1H0", -0.4)
    raw["path"].loc[{"writer": "L0H1", "component": "L1H0"}] += np.linspace(-0.1, 0.1, 20)
    one, two, other = (only(scan(raw, draws=DRAWS, seed=seed)).interval for seed in (0, 0, 1))
    assert one == two
    assert one != other


def test_halves_agree_where_prompts_do() -> None:
    raw = quiet()
    for i, component in enumerate(("L1H0", "L1H1", "L2H0", "L2H1")):
        erase(raw, "L0H1", component, -0.1 - 0.05 * i)
    agreement = found(raw).halves
    assert agreement is not None
    assert agreement[0] > 0.98
    assert agreement[1] < 0.01
    other = raw.copy(deep=True)  # negative control: every second prompt has the shares in the opposite order
    for i, component in enumerate(("L1H0", "L1H1", "L2H0", "L2H1")):
        other["path"].loc[{"writer": "L0H1", "component": component}][..., 1::2] += 0.1 * (i - 1.5)
    disagreement = found(other).halves
    assert disagreement is not None
    assert disagreement[0] < 0
    assert disagreement[1] > 0.05


def test_halves_of_equal_shares_have_no_correlation_to_speak_of() -> None:
    raw = quiet()
    raw["path"].loc[{"component": "L2H0", "writer": list(raw.node.values)}] *= 0.0
    for writer in ("L0H0", "L0H1", "MLP0"):
        erase(raw, writer, "L2H0", -0.25)
    agreement = found(raw).halves
    assert agreement is not None
    assert np.isnan(agreement[0])
    assert agreement[1] == 0


def test_no_claim() -> None:
    result = found(quiet(), DRAWS)
    assert result.writers == result.erased == result.opposed == ()
    assert result.halves is None
    assert result.enough_prompts


def test_one_prompt_claims_nothing_and_says_why() -> None:
    raw = quiet(n_prompts=1)
    erase(raw, "L0H1", "L2H0", -0.9)
    result = found(raw, DRAWS)
    assert not result.writers
    assert not result.enough_prompts
    assert result.pairs.least_prompts > 1 == result.pairs.n_prompts


def test_a_prompt_without_finite_shares_counts_for_nothing() -> None:
    raw = quiet()
    erase(raw, "L0H1", "L2H0", -0.6)
    raw["path"].loc[{"writer": "L0H1", "component": "L2H0"}] += np.linspace(-0.1, 0.1, 20)
    without = raw.isel(prompt=[i for i in range(20) if i not in (3, 7)])
    for variable in raw.data_vars.values():
        variable.loc[{"prompt": [3, 7]}] = np.nan
    with_them, expected = found(raw, DRAWS), found(without, DRAWS)
    assert with_them.pairs.n_prompts == 18
    assert with_them.writers == expected.writers
    np.testing.assert_array_equal(with_them.pairs.p_adjusted, expected.pairs.p_adjusted)


def test_no_finite_prompt_at_all_is_an_error() -> None:
    raw = quiet()
    raw["path"][:] = np.nan
    with pytest.raises(ReproError, match=r"'rest'.*not a single prompt"):
        found(raw)


def test_too_few_finite_prompts_are_too_few() -> None:
    raw = quiet()
    assert found(raw).enough_prompts
    least = found(raw).pairs.least_prompts
    for variable in raw.data_vars.values():
        variable[..., least - 1 :] = np.nan
    assert not found(raw).enough_prompts


def test_one_layer() -> None:
    raw = quiet(n_layers=1)
    erase(raw, "L0H1", "MLP0", -0.6)
    assert [e.component for e in only(found(raw)).erasers] == ["MLP0"]
    assert found(raw).pairs.n_pairs == 2 * 2 + 4  # both embeddings into two heads; they and the heads into the MLP


def test_a_model_without_learned_positions() -> None:
    raw = quiet()
    raw["path"].loc[{"writer": "pos_embed"}], raw["clean"].loc[{"writer": "pos_embed"}] = np.nan, np.nan
    for name in ("presence", "held", "held_self", "norm2", "norm4"):
        raw[name].loc[{"node": "pos_embed"}] = np.nan
    erase(raw, "L0H1", "L2H0", -0.6)
    assert only(found(raw, DRAWS)).label == "L0H1"
    assert found(raw).pairs.n_pairs < found(quiet()).pairs.n_pairs


def test_the_strata_are_never_pooled() -> None:
    raw = quiet()
    erase(raw, "L0H1", "L2H0", -0.6)
    raw["path"].loc[{"stratum": "first", "writer": "L0H1", "component": "L2H0"}] = 0.0
    assert scan(raw, "rest", draws=0).writers
    assert not scan(raw, "first", draws=0).writers
