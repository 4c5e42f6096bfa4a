"""One answer, in one call: the numbers of the card, by every way of giving a model; and a scan in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import repro
from repro.errors import ReproError
from repro.measures.path_shares import PathShares
from repro.model.decoder import Model
from repro.model.forward import logits, trace
from repro.model.given import as_tokens, loaded
from repro.model.net_effect import net_effects
from repro.scan.corrected import claims_of, corrected_dla
from repro.scan.examine import examine
from repro.scan.in_memory import scan
from repro.scan.verdict import scan as judge
from tests.measures.test_dla_card import planted
from tests.scan.made import quiet
from tests.scenes import model, prompts

TOKENS = prompts(2, 14)
ANSWERS, OTHERS = [5, 9], [7, 3]


@pytest.fixture(scope="module", params=["native", "llama", "qwen3", "gemma2"])
def given(request: pytest.FixtureRequest) -> Model:
    """A toy in float64."""
    return model(request.param)


@pytest.fixture(scope="module")
def found(given: Model) -> xr.Dataset:
    return corrected_dla(given, TOKENS, ANSWERS, OTHERS, ablate=True)


def test_the_parts_are_what_they_are_called(given: Model, found: xr.Dataset) -> None:
    run = trace(given, torch.from_numpy(TOKENS))
    scores = logits(given, run.final[:, -1])
    difference = (scores[range(2), ANSWERS] - scores[range(2), OTHERS]).numpy()
    np.testing.assert_allclose(found["logit_diff"], difference)
    embeddings = [label for label in found["node"].values if "embed" in label]
    np.testing.assert_allclose(found["net_effect"].sel(node=embeddings).sum("node") + found["rest"], difference)
    np.testing.assert_allclose(found["remainder"] + found["taken_back"], found["dla"])
    u = given.W_U[:, ANSWERS] - given.W_U[:, OTHERS]
    direction = (u - u.mean(0) if given.center else u).T / run.scale_final[:, -1:]
    for row in range(2):
        h = run.attention[1].z[row, -1, 2] @ given.blocks[1].W_O[2]
        assert float(found["dla"].sel(node="L1H2")[row]) == pytest.approx(float(h @ direction[row]))
        expected = net_effects(
            given, run, torch.from_numpy(TOKENS), row, torch.tensor([13]), direction[row : row + 1], ("gradient",)
        )["gradient"]
        np.testing.assert_allclose(found["gradient"][:, row], expected.nodes[:, 0], atol=1e-9)
    assert found.attrs.get("logits") == ("before the cap 5 tanh(l / 5)" if given.logit_cap else None)
    # Negative control: what ablation says is not what DLA says.
    assert not np.allclose(found["total_effect"], found["dla"], atol=1e-2)


def test_a_single_prompt_has_no_prompt_dimension(given: Model, found: xr.Dataset) -> None:
    one = corrected_dla(given, TOKENS[0], 5, 7)
    assert one["dla"].dims == ("node",)
    np.testing.assert_allclose(one["dla"], found["dla"].isel(prompt=0))
    earlier = corrected_dla(given, TOKENS[0], 5, 7, position=6)
    np.testing.assert_allclose(earlier["dla"], corrected_dla(given, TOKENS[0, :7], 5, 7)["dla"], rtol=1e-9)


def test_named_erasers_take_back_their_paths(given: Model) -> None:
    none = corrected_dla(given, TOKENS[0], 5, 7, erasers={})
    assert not none["taken_back"].any()
    assert not none["erases"].any()
    one, other = (corrected_dla(given, TOKENS[0], 5, 7, erasers={"L0H0": [c]}) for c in ("MLP1", "L1H1"))
    both = corrected_dla(given, TOKENS[0], 5, 7, erasers={"L0H0": ["MLP1", "L1H1"]})
    np.testing.assert_allclose(both["taken_back"], one["taken_back"] + other["taken_back"])
    assert abs(float(one["taken_back"].sel(node="L0H0"))) > 1e-4
    assert not one["taken_back"].drop_sel(node="L0H0").any()


def test_a_scan_says_who_erases_whom() -> None:
    """A planted eraser is claimed by the scan, and what it takes back of a logit is most of what DLA credits."""
    shown = planted(0.8)
    tokens = prompts(14, 24)
    said = examine(shown.model, tokens, PathShares(measure="path_shares", stride=2, decoys=16))
    assert "MLP1" in claims_of(said)["L0H1"]
    assert claims_of(said).keys() == set(said.pairs.writers)
    by_scan = corrected_dla(shown.model, tokens[0], 5, 7, erasers=said)
    assert bool(by_scan["erases"].sel(node="L0H1", component="MLP1"))
    credited, taken = (float(by_scan[name].sel(node="L0H1")) for name in ("dla", "taken_back"))
    assert taken / credited > 0.3


def test_a_model_may_be_given_in_any_way(tmp_path: Path, folders: dict[str, Path]) -> None:
    """A directory, a Hugging Face model, and one that is loaded already give the same numbers."""
    from transformers import AutoModelForCausalLM

    folder = folders["llama"]
    ids = TOKENS[0]
    expected = corrected_dla(folder, ids, 5, 7)
    assert expected["dla"].notnull().all()
    for other in (str(folder), AutoModelForCausalLM.from_pretrained(folder), repro.load(folder)):
        np.testing.assert_allclose(corrected_dla(other, ids, 5, 7)["dla"], expected["dla"], atol=1e-6)


def test_what_does_not_fit_is_said(given: Model) -> None:
    with pytest.raises(ReproError, match=r"token ids .* are expected, BOS first, not float64"):
        as_tokens([0.5])
    with pytest.raises(ReproError, match="the model has 61 tokens"):
        loaded(given, np.array([[0, 99]]))
    with pytest.raises(ReproError, match="token ids below 61"):
        corrected_dla(given, TOKENS[0], 99, 7)
    with pytest.raises(ReproError, match="one for each of 2 prompts"):
        corrected_dla(given, TOKENS, [1, 2, 3], 7)
    with pytest.raises(ReproError, match="position 40: the prompts have positions 0 to 13"):
        corrected_dla(given, TOKENS[0], 5, 7, position=40)
    with pytest.raises(ReproError, match="no node 'L9H9'"):
        corrected_dla(given, TOKENS[0], 5, 7, erasers={"L0H0": ["L9H9"]})
    for wrong in (["L1H1"], {"L0H0": "L1H1"}, 3):
        with pytest.raises(ReproError, match="erasers: a scan is expected, or a list for each writer"):
            corrected_dla(given, TOKENS[0], 5, 7, erasers=wrong)  # type: ignore[arg-type]
    with pytest.raises(ReproError, match="int cannot be exported"):
        loaded(3, TOKENS)
    with pytest.raises(ReproError, match="prompts of unequal length"):
        as_tokens([[1, 2], [3]])


def test_a_model_that_was_compared_on_short_prompts_serves_no_longer_ones(folders: dict[str, Path]) -> None:
    """A window or a temperature that binds later was never looked at."""
    short = repro.load(folders["llama"], TOKENS[:1, :6])
    assert corrected_dla(short, TOKENS[0, :6], 5, 7)["dla"].notnull().any()
    with pytest.raises(ReproError, match="14 positions; it was loaded for prompts of at most 6"):
        corrected_dla(short, TOKENS[0], 5, 7)
    assert repro.load(folders["llama"]).longest is None


def test_a_scan_of_too_few_prompts_says_nothing_of_erasers() -> None:
    with pytest.raises(ReproError, match="erasers: the scan has 4 prompts, of which nothing can be claimed"):
        claims_of(judge(quiet(n_prompts=4), draws=0))


# -------------------------------------------------------------------------------------------------------- repro.scan


def test_a_scan_in_memory_is_the_scan(folders: dict[str, Path]) -> None:
    given = model("native")
    tokens = prompts(14, 20)
    found = scan(given, tokens=tokens, stride=2, decoys=16, draws=5)
    again = examine(given, tokens, PathShares(measure="path_shares", stride=2, decoys=16))
    np.testing.assert_array_equal(found.rest.pairs.path, again.pairs.path)
    lines = str(found).splitlines()
    assert lines[0].startswith("Model: 14 prompts x 20 tokens")
    assert lines[-1].startswith(("No erasure found", "Erasure found"))
    assert repr(found) == str(found)


def test_a_directory_has_prompts_of_its_own(folders: dict[str, Path]) -> None:
    found = repro.scan(folders["native"], stride=4, decoys=8, confirm=False, draws=0)
    assert str(found).startswith("native: 8 prompts x 40 tokens")


def test_text_is_tokenised() -> None:
    """Each document gives as many prompts as it holds, BOS first; a model in memory needs a tokenizer."""
    mini = Path(repro.__file__).parent / "subjects" / "mini"
    found = scan(mini, "one two three four " * 30, length=12, stride=4, decoys=8, confirm=False, draws=0)
    assert found.n_positions == 12
    with pytest.raises(ReproError, match="needs tokenizer="):
        scan(model("native"), "some text")
    with pytest.raises(ReproError, match="none of them empty"):
        scan(mini, ["", "more"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"decoys": 3}, "decoys: given 3; allowed: a whole number from 8 on"),
        ({"stride": 0}, "stride: given 0; allowed: a whole number from 1 on"),
        ({"stride": "often"}, 'stride: given "often"; allowed: a whole number from 1 on'),
        ({"draws": -1}, "draws: given -1; allowed: a whole number from 0 on"),
        ({"length": 1}, "length: given 1; allowed: a whole number from 2 on"),
        ({"text": Path("none.txt")}, "text: none.txt cannot be read (No such file or directory); name a text file"),
        ({"text": Path(__file__).parent}, "cannot be read (Is a directory); name a text file"),
        ({"text": Path(repro.__file__).parent / "subjects/mini/model.safetensors"}, "is not plain text: byte "),
        ({"text": 5}, "text: given 5; allowed: strings, or text files as pathlib.Path"),
        ({"text": ["some text", 5]}, "text: given 5; allowed: strings, or text files as pathlib.Path"),
        ({"text": "some text", "tokenizer": 5}, "tokenizer: given 5; allowed: the path of a tokenizer.json, or"),
        ({"text": "some text", "tokenizer": "none.json"}, "none.json: unreadable tokenizer (No such file or directory"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_that_do_not_fit_are_one_sentence(arguments: dict[str, object], sentence: str) -> None:
    mini = Path(repro.__file__).parent / "subjects" / "mini"
    with pytest.raises(ReproError) as raised:
        scan(mini, **arguments)  # type: ignore[arg-type] # what a notebook may be given
    assert sentence in raised.value.message
    assert "\n" not in raised.value.message
