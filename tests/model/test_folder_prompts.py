"""Prompts as people have them: other names, masks, padding; the right ids or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from repro.errors import Exit
from repro.model.prompt_file import read_tokens
from tests.model.test_folder import refused

N, P, V, PAD = 12, 40, 61, 60


def tokens(seed: int = 0) -> np.ndarray:
    """Random rows without the id that pads, BOS first."""
    found = np.random.default_rng(seed).integers(1, PAD, (N, P)).astype(np.int32)
    found[:, 0] = 0
    return found


def read(path: Path, **tensors: np.ndarray) -> np.ndarray:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path / "p.safetensors")
    return read_tokens(path / "p.safetensors", P, V, {"pad_token_id": PAD, "eos_token_id": [7, 8]})


def message(path: Path, **tensors: np.ndarray) -> str:
    return refused(lambda: read(path, **tensors), Exit.UNAVAILABLE).removeprefix(f"{path / 'p.safetensors'}: ")


def cut(found: np.ndarray, lengths: list[int], pad: int | None) -> np.ndarray:
    """The first rows cut to so many tokens, then padded, or their last token repeated."""
    for row, length in enumerate(lengths):
        found[row, length:] = found[row, length - 1] if pad is None else pad
    return found


def test_a_tensor_that_nobody_reads_is_named(tmp_path: Path) -> None:
    assert message(tmp_path, tokens=tokens(), labels=tokens(), lengths=np.full(N, P)) == (
        "'labels', 'lengths' beside `tokens` would not be read; save `tokens` alone"
    )


def test_ids_under_another_name_are_described(tmp_path: Path) -> None:
    assert message(tmp_path, input_ids=tokens(), attention_mask=tokens()) == (
        "holds no tensor `tokens` but 'attention_mask' int32 [12, 40], 'input_ids' int32 [12, 40]; save the ids, int32 "
        "[prompts, positions], BOS first, under that name"
    )


def test_a_mask_of_ones_is_read_and_any_other_refused(tmp_path: Path) -> None:
    mask = np.ones((N, P), np.int64)
    np.testing.assert_array_equal(read(tmp_path, tokens=tokens(), attention_mask=mask), tokens())
    mask[3, 30:] = 0
    assert message(tmp_path, tokens=tokens(), attention_mask=mask) == (
        "`attention_mask` int64 [12, 40] leaves out positions of `tokens`: prompts of unequal length are not "
        "supported; cut all to one length"
    )
    assert "leaves out" in message(tmp_path, tokens=tokens(), attention_mask=np.ones((N, P - 1), np.int64))


@pytest.mark.parametrize(
    ("lengths", "pad", "row"),
    [
        ([40, 37], PAD, 1),
        ([40, 30], 8, 1),
        ([40, 40, 20], 0, 2),
        ([40, 38, 38], 59, 1),
        ([30, 35, 31, 32], None, 0),
    ],
    ids=["the pad token", "an end of text", "BOS", "a token that is nowhere else", "the last token again"],
)
def test_padding_that_nobody_declared_is_refused(tmp_path: Path, lengths: list[int], pad: int | None, row: int) -> None:
    found = tokens()
    if pad == 59:
        found[found == 59] = 58
    found = cut(found, lengths, pad)
    said = message(tmp_path, tokens=found)
    times = P - lengths[row] + (pad is None)
    assert said == (
        f"row {row} ends with {times} times the token id {found[row, -1]}, as padding does: prompts of unequal length "
        "are not supported; cut all to one length, or add an `attention_mask` of ones if nothing is padding"
    )
    ones: dict[str, Any] = {"attention_mask": np.ones((N, P), np.int32)}
    np.testing.assert_array_equal(read(tmp_path, tokens=found, **ones), found)


def test_padding_at_the_beginning_is_refused(tmp_path: Path) -> None:
    found = tokens()
    found[2] = np.concatenate([np.zeros(5, np.int32), found[2, :-5]])
    assert message(tmp_path, tokens=found).startswith("row 2 begins with 6 times the token id 0, as padding does")
    found = tokens()
    found[:2] = PAD
    assert message(tmp_path, tokens=found).startswith("row 0 ends with 40 times the token id 60")


def test_text_that_repeats_itself_is_no_padding(tmp_path: Path) -> None:
    found = tokens()
    found[0, -4:] = 5  # one row, of a token that other rows have, too
    found[1, 1] = 0  # a document that ends where the prompt begins
    found[2, -2:] = 8  # an end of text after another
    np.testing.assert_array_equal(read(tmp_path, tokens=found), found)
    habit = np.repeat(tokens(1)[:, : P // 2], 2, axis=1)[:, 1:]
    np.testing.assert_array_equal(read(tmp_path, tokens=habit), habit)
