"""A model's folder: what is read from it without torch, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from repro.errors import Exit, ReproError
from repro.model.folder import (
    Folder,
    Shape,
    read_folder,
    read_prompts,
    tokens_fingerprint,
    weights_fingerprint,
)

TL = {"n_layers": 3, "n_heads": 4, "d_model": 32, "n_ctx": 64, "d_vocab": 61, "d_head": 8, "d_mlp": 48}
GPT2 = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 61, "model_type": "gpt2"}
LLAMA = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 64,
    "vocab_size": 61,
    "intermediate_size": 48,
    "model_type": "llama",
}


def make(folder: Path, config: object = TL, tokens: np.ndarray | None = None) -> Path:
    """A folder with a configuration, a weight file large enough for it, and prompts."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file({"weights": np.zeros(15_000, np.float32)}, folder / "model.safetensors")
    if tokens is None:
        tokens = np.tile(np.arange(16, dtype=np.int32), (5, 1))
    save_file({"tokens": tokens}, folder / "prompts.safetensors")
    return folder


def refused(action: Callable[[], Any], code: Exit) -> str:
    with pytest.raises(ReproError) as caught:
        action()
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    return caught.value.message


# -------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TL, Shape(3, 4, 4, 32, 8, 48, 64, 61)),
        (GPT2, Shape(3, 4, 4, 32, 8, 128, 64, 61)),
        (LLAMA, Shape(3, 4, 2, 32, 8, 48, 64, 61)),
        (LLAMA | {"head_dim": 16}, Shape(3, 4, 2, 32, 16, 48, 64, 61)),
    ],
    ids=["native", "gpt2", "llama", "llama with its own head size"],
)
def test_sizes_are_read_under_every_librarys_names(tmp_path: Path, config: dict[str, Any], expected: Shape) -> None:
    assert read_folder(make(tmp_path / "model", config)).shape == expected


def test_the_toy_models_are_folders(folders: dict[str, Path]) -> None:
    shapes = {kind: read_folder(path).shape for kind, path in folders.items()}
    assert {shape.n_layers for shape in shapes.values()} == {3}
    assert {kind: shape.n_kv_heads for kind, shape in shapes.items()} == {"native": 4, "gpt2": 4, "llama": 2}
    assert {kind: read_folder(path).is_hugging_face for kind, path in folders.items()} == {
        "native": False,
        "gpt2": True,
        "llama": True,
    }


def test_flop_per_token_counts_every_matrix_product() -> None:
    shape = Shape(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_mlp=48, n_ctx=64, d_vocab=61)
    weights = 32 * 8 * (4 + 2 + 2) + 4 * 8 * 32 + 2 * 32 * 48
    attention = 2 * 4 * 8 * 16 / 2  # scores and values, each over the causal half
    assert shape.flop_per_token(16) == 2 * 2 * (weights + attention)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "unreadable model configuration"),
        ("[1]", "a JSON object is expected, found list"),
        ("[" * 100_000, "unreadable model configuration"),
        (TL | {"d_model": None}, "d_model is missing (also known as hidden_size, n_embd)"),
        (TL | {"n_heads": 0}, "n_heads is 0; a positive whole number is expected"),
        (TL | {"n_heads": True}, "n_heads is True; a positive whole number is expected"),
        (TL | {"n_ctx": "64"}, "n_ctx is '64'; a positive whole number is expected"),
        (TL | {"d_vocab": 2**31}, f"d_vocab is {2**31}; a positive whole number is expected"),
        (TL | {"attn_only": True}, "attn_only models are not supported: every layer needs an MLP"),
        (LLAMA | {"num_key_value_heads": 3}, "4 heads cannot be shared out evenly among 3 key/value heads"),
        (TL | {"num_hidden_layers": 4}, "n_layers and num_hidden_layers name the same size and must not differ"),
        (
            TL | {"n_layers": 2**30},
            "1073741824 layers of 4 heads and a context of 64 tokens; at most 65536 heads in all",
        ),
        (TL | {"n_ctx": 2**23}, "a context of 8388608 tokens; at most 65536 heads in all and 4194304 tokens"),
        (TL | {"n_ctx": "x" * 10**6}, "…; a positive whole number is expected"),
        (TL | {"rotary_dim": 2**30}, "rotary_dim is 1073741824, and a head has 8 dimensions"),
        (TL | {"act_fn": {}}, "act_fn is {}; a text is expected"),
        (TL | {"eps": True}, "eps is True; a number is expected"),
        (LLAMA | {"architectures": "x"}, "architectures is 'x'; an array is expected"),
    ],
)
def test_an_unfit_configuration_is_unavailable_by_name(tmp_path: Path, config: object, sentence: str) -> None:
    path = make(tmp_path / "model", config)
    message = refused(lambda: read_folder(path), Exit.UNAVAILABLE)
    assert message.startswith(f"{path / 'config.json'}: ")
    assert sentence in message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"d_vocab": 2**30},
            "config.json describes at least 34359761920 weights, but the weight files have only 60080 bytes",
        ),
        ({"d_mlp": 2**30}, "config.json describes at least"),
        ({"n_layers": 2**14}, "config.json describes at least"),
        ({"n_ctx": 2**14}, "config.json describes at least"),
        (
            {"n_ctx": 2**16, "positional_embedding_type": "rotary"},
            "a context of 65536 tokens is too long for the library's own model, which masks every pair",
        ),
    ],
)
def test_sizes_that_would_not_fit_are_refused_before_anything_is_allocated(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    path = make(tmp_path / "model", TL | changes)
    assert f"{path}: {sentence}" in refused(lambda: read_folder(path), Exit.UNAVAILABLE)


def test_a_configuration_that_is_no_file_of_bearable_size_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "model") / "config.json"
    with path.open("r+b") as file:
        file.truncate(2**26 + 1)
    assert "a file of at most 64 MiB is expected" in refused(lambda: read_folder(path.parent), Exit.UNAVAILABLE)
    path.unlink()
    os.mkfifo(path)
    assert "a file of at most 64 MiB is expected" in refused(lambda: read_folder(path.parent), Exit.UNAVAILABLE)


def test_a_one_layer_model_is_a_usage_error(tmp_path: Path) -> None:
    path = make(tmp_path / "model", TL | {"n_layers": 1})
    assert refused(lambda: read_folder(path), Exit.USAGE) == (
        f"{path / 'config.json'}: the model has one layer; erasure needs a writer and a later layer that could erase it"
    )


# --------------------------------------------------------------------------------------------------------------- files


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model"
    assert refused(lambda: read_folder(path), Exit.UNAVAILABLE) == f"{path}: model directory not found"
    make(path)
    (path / "config.json").unlink()
    assert str(path / "config.json") in refused(lambda: read_folder(path), Exit.UNAVAILABLE)
    make(path)
    (path / "model.safetensors").unlink()
    assert refused(lambda: read_folder(path), Exit.UNAVAILABLE) == (
        f"{path}: no weights; one model.safetensors or one *final.pth is expected"
    )
    make(path)
    (path / "prompts.safetensors").unlink()
    assert refused(lambda: read_folder(path), Exit.USAGE) == (
        f"{path / 'prompts.safetensors'}: no prompts; a safetensors file with `tokens`, int32 [prompts, positions], "
        "BOS first, is needed"
    )


def test_weights_may_be_one_pth_file_or_several_safetensors(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    (path / "model.safetensors").rename(path / "gelu_final.pth")
    assert read_folder(path).weights == (path / "gelu_final.pth",)
    (path / "other_final.pth").write_bytes(b"PK")
    assert "2 files *final.pth" in refused(lambda: read_folder(path), Exit.UNAVAILABLE)
    for file in path.glob("*_final.pth"):
        file.unlink()
    shards = tuple(path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    for shard in shards:
        save_file({shard.name: np.zeros(8_000, np.float32)}, shard)
    assert read_folder(path).weights == shards


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    (path / "model.safetensors").unlink()
    (path / "x_final.pth").mkdir()
    assert "no weights" in refused(lambda: read_folder(path), Exit.UNAVAILABLE)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/model.safetensors", "model-3.safetensors", 5])
def test_an_index_never_leads_out_of_the_folder(tmp_path: Path, name: object) -> None:
    path = make(tmp_path / "model", LLAMA)
    (path / "model.safetensors").rename(path / "model-1.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}}))
    said = refused(lambda: read_folder(path), Exit.UNAVAILABLE)
    assert said == f"{index}: {name!r} is not a file of weights in this directory"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert read_folder(path).weights == (path / "model-1.safetensors",)


def test_prompts_may_lie_elsewhere(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    elsewhere = tmp_path / "mine.safetensors"
    (path / "prompts.safetensors").rename(elsewhere)
    assert read_folder(path, elsewhere).prompts == elsewhere


# ------------------------------------------------------------------------------------------------------------- prompts


def prompts(tmp_path: Path, tokens: np.ndarray) -> Folder:
    return read_folder(make(tmp_path / "model", TL, tokens))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_prompts_of_any_whole_type_become_int32(tmp_path: Path, dtype: type) -> None:
    tokens: np.ndarray = np.tile(np.arange(16, dtype=dtype), (3, 1))
    found = read_prompts(prompts(tmp_path, tokens))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, tokens)


def test_prompts_longer_than_the_context_are_a_usage_error(tmp_path: Path) -> None:
    fits, longer = (np.tile(np.arange(length, dtype=np.int32) % 61, (2, 1)) for length in (64, 65))
    assert read_prompts(prompts(tmp_path, fits)).shape == (2, 64)
    folder = prompts(tmp_path, longer)
    assert refused(lambda: read_prompts(folder), Exit.USAGE) == (
        f"{folder.prompts}: prompts of 65 tokens are longer than the model's context of 64"
    )


@pytest.mark.parametrize("token", [61, -1, 2**31 - 1])
def test_a_token_id_outside_the_vocabulary_is_named_by_row_and_position(tmp_path: Path, token: int) -> None:
    tokens = np.tile(np.arange(16, dtype=np.int32), (5, 1))
    tokens[3, 7] = token
    folder = prompts(tmp_path, tokens)
    assert refused(lambda: read_prompts(folder), Exit.UNAVAILABLE) == (
        f"{folder.prompts}: token id {token} at row 3, position 7 is outside the vocabulary of 61"
    )
    tokens[3, 7] = 60
    assert read_prompts(prompts(tmp_path, tokens))[3, 7] == 60


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (np.zeros((2, 3, 4), np.int32), "tokens are int32 [2, 3, 4]; int32 [prompts, positions] is expected"),
        (np.zeros((0, 4), np.int32), "tokens are int32 [0, 4]; int32 [prompts, positions] is expected"),
        (np.zeros((2, 4), np.float32), "tokens are float32 [2, 4]; int32 [prompts, positions] is expected"),
        (
            np.array([[0, 1, 3], [5, 1, 2]], np.int32),
            "rows start with different tokens; every prompt must start with BOS",
        ),
    ],
)
def test_unfit_prompts_are_unavailable(tmp_path: Path, tokens: np.ndarray, sentence: str) -> None:
    folder = prompts(tmp_path, tokens)
    assert refused(lambda: read_prompts(folder), Exit.UNAVAILABLE) == f"{folder.prompts}: {sentence}"


def test_a_file_that_holds_no_prompts_is_unavailable(tmp_path: Path) -> None:
    folder = prompts(tmp_path, np.zeros((2, 4), np.int32))
    folder.prompts.write_bytes(b"not safetensors")
    assert "unreadable prompts" in refused(lambda: read_prompts(folder), Exit.UNAVAILABLE)
    header = b'{"\\n":{"dtype":"I32","shape":[1],"data_offsets":[0,8]}}'
    folder.prompts.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "unreadable prompts" in refused(lambda: read_prompts(folder), Exit.UNAVAILABLE)


# -------------------------------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_changes_with_every_byte_that_counts_and_with_nothing_else(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    first = weights_fingerprint(read_folder(path))
    moved = shutil.move(path, tmp_path / "moved")
    assert weights_fingerprint(read_folder(Path(moved))) == first
    weights = (tmp_path / "moved" / "model.safetensors").read_bytes()
    (tmp_path / "moved" / "README.md").write_text("a note")
    assert weights_fingerprint(read_folder(tmp_path / "moved")) == first
    (tmp_path / "moved" / "model.safetensors").write_bytes(weights[:-1] + b"z")
    changed = weights_fingerprint(read_folder(tmp_path / "moved"))
    assert changed != first
    assert weights_fingerprint(read_folder(make(tmp_path / "moved", TL | {"eps": 1e-6}))) not in (first, changed)


def test_the_tokens_fingerprint_is_of_ids_not_of_their_type() -> None:
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert tokens_fingerprint(tokens) == tokens_fingerprint(tokens.astype(np.int64))
    assert tokens_fingerprint(tokens) == tokens_fingerprint(np.asfortranarray(tokens))
    assert len({tokens_fingerprint(part) for part in (tokens, tokens[:2], tokens[::-1], tokens + 1)}) == 4
