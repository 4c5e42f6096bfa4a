"""Damaged and hostile model folders, made from good ones by a seeded random generator."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 24, 61, 2**15, 2**20, 2**31 - 1, 2**31, 2**63, 10**400),
    *(
        1.5,
        -0.0,
        float("nan"),
        float("inf"),
        1e308,
        "",
        "x",
        "64",
        "gelu",
        "relu",
        "LN",
        "../../x",
        "<b>",
        "\0",
        "a\nb",
    ),
    *("\ud800", "é" * 300, [], [1], [[]], {}, {"a": 1}, {"rope_type": "linear", "factor": 2}, "float64", "eager"),
]
FURTHER = [
    *(
        "act_fn",
        "eps",
        "rotary_dim",
        "rotary_base",
        "gated_mlp",
        "final_rms",
        "normalization",
        "attn_only",
        "attn_scale",
    ),
    *("positional_embedding_type", "parallel_attn_mlp", "n_key_value_heads", "num_key_value_heads", "head_dim"),
    *("hidden_size", "n_layer", "num_hidden_layers", "model_type", "architectures", "auto_map", "quantization_config"),
    *("dtype", "torch_dtype", "rope_scaling", "rope_theta", "rope_parameters", "tie_word_embeddings", "sliding_window"),
    *("layer_types", "hidden_act", "activation_function", "rms_norm_eps", "attention_bias", "n_inner", "pad_token_id"),
    *("scale_attn_weights", "attn_implementation", "is_encoder_decoder", "id2label", "pruned_heads", "device", "seed"),
]
SHAPES: list[Any] = [[10**15], [2**63], [2**32, 2**32], [-1], [], [0], [1.5], "x", None]
DTYPES: list[Any] = [
    "F64",
    "F16",
    "BF16",
    "I32",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "X",
    "",
    None,
    5,
]
OFFSETS: list[Any] = [
    [0, 0],
    [0, 4],
    [4, 0],
    [-4, 0],
    [0, 2**63],
    [2**64, 2**64],
    [0],
    [],
    None,
    "x",
    [10**400, 10**400],
]
LENGTHS = [0, 1, 7, 2**20, 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1]
RAW = [
    *(b"", b"[]", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"\xff", b"{}", b"\xef\xbb\xbf{}", b"NaN"),
    *(b'{"n_layers": 3, "n_layers": 1e400}', b'{"n_layers": ' + b"9" * 5000 + b"}"),
]


def flip(content: bytes, rng: random.Random, stop: int | None = None) -> bytes:
    """One to three bits, of the first `stop` bytes."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        found[rng.randrange(stop or len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def config(folder: Path, rng: random.Random) -> None:
    """config.json: keys lost, added, swapped, of other types and sizes; bits, ends, other files."""
    path = folder / "config.json"
    found = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        key, other = rng.choice(list(found)), rng.choice(list(found))
        sizes = [name for name, value in found.items() if type(value) is int]
        kind = rng.randrange(7)
        if kind == 0:
            del found[key]
        elif kind == 1:
            found[key], found[other] = found[other], found[key]
        elif kind == 2 and sizes:
            size = rng.choice(sizes)
            found[size] = max(0, found[size] + rng.choice([-1, 1, found[size], -found[size] // 2]))
        else:
            found[rng.choice([key, rng.choice(FURTHER)])] = deepcopy(rng.choice(VALUES))
    content = json.dumps(found).encode()
    damage = rng.random()
    if damage < 0.1:
        content = flip(content, rng)
    elif damage < 0.15:
        content = content[: rng.randrange(len(content))]
    elif damage < 0.2:
        content = rng.choice(RAW)
    path.write_bytes(content)


def safetensors(path: Path, rng: random.Random) -> None:
    """A safetensors file: shapes, types, offsets and names of its header, its length, its end, single values."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    kind = rng.randrange(12)
    if kind == 0:
        shape = entry["shape"]
        entry["shape"] = rng.choice([*SHAPES, shape[::-1], [*shape, 1], [int(np.prod(shape))], shape[1:]])
    elif kind == 1:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 2:
        entry["data_offsets"] = rng.choice([*OFFSETS, [0, len(data)], other["data_offsets"]])
    elif kind == 3:
        del header[rng.choice(names)]
    elif kind == 4:
        header[rng.choice(["x", "", "../x", "a" * 10_000, "\n", "__metadata__", "embed.W_E\0"])] = dict(entry)
    elif kind == 5:
        header["__metadata__"] = rng.choice([{"a": 1}, [], None, "x", {"format": "x"}, {"format": None}])
    elif kind == 6:
        entry["shape"], other["shape"] = other["shape"], entry["shape"]
    elif kind == 7:
        path.write_bytes(struct.pack("<Q", rng.choice([*LENGTHS, len(content)])) + content[8:])
        return
    elif kind == 8:
        path.write_bytes(content[: rng.randrange(len(content))])
        return
    elif kind == 9:
        path.write_bytes(flip(content, rng, 8 + size))
        return
    elif kind == 10:
        at = 4 * rng.randrange(len(data) // 4)
        data[at : at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), 3e38, 1e-45, 1e30, 0.0]))
    else:
        data = bytearray(flip(bytes(data), rng))
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + data)


def weights(folder: Path, rng: random.Random) -> None:
    """model.safetensors."""
    safetensors(folder / "model.safetensors", rng)


class Deed:
    """What a checkpoint must never do: unpickled freely, it calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.deed = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.deed


def deeds(folder: Path) -> list[Deed]:
    """Things that would be seen."""
    trace = str(folder / "pwned")
    act = f"import os; os.mkdir({trace!r})"
    return [Deed(os.mkdir, trace), Deed(os.system, f"touch {trace}"), Deed(os.symlink, trace, trace), Deed(exec, act)]


def checkpoint(folder: Path, rng: random.Random) -> None:
    """A `*final.pth`: pickles that act, other types, fewer tensors, archives that are none, bits, ends."""
    path = next(folder.glob("*final.pth"))
    content, state = path.read_bytes(), torch.load(path, weights_only=True)
    name = rng.choice(list(state))
    tensor, kind = state[name], rng.randrange(8)
    if kind == 0:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 1:
        path.write_bytes(flip(content, rng))
    elif kind == 2:
        torch.save({name: rng.choice(deeds(folder)), **state}, path)
    elif kind == 3:
        path.write_bytes(pickle.dumps(rng.choice(deeds(folder))) + bytes(100_000))
    elif kind == 4:
        others: list[Any] = [tensor.double(), tensor.half(), tensor.bfloat16(), tensor.int(), tensor[None], tensor[:0]]
        others += [tensor.to_sparse(), tensor * float("nan"), tensor + 0j, tensor > 0, torch.nn.Parameter(tensor), 5]
        torch.save(state | {name: rng.choice(others)}, path)
    elif kind == 5:
        strange: list[Any] = [[tensor], {1: tensor}, tensor, {"model": state}, None]
        torch.save([rng.choice(strange), torch.zeros(30_000)], path)
    elif kind == 6:
        with zipfile.ZipFile(path) as archive:
            parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
        with zipfile.ZipFile(path, "w") as archive:
            for part, bytes_ in rng.sample(parts, len(parts) - rng.randrange(2)):
                archive.writestr(part if rng.random() < 0.9 else f"../{part}", bytes_)
    else:
        torch.save({key: value for key, value in state.items() if key != name}, path)


def prompts(folder: Path, rng: random.Random) -> None:
    """prompts.safetensors: other types, sizes and ids; and whatever can happen to a safetensors file."""
    path = folder / "prompts.safetensors"
    if rng.random() < 0.5:
        safetensors(path, rng)
        return
    plain = np.zeros((3, 10), np.int32)
    types = (
        np.float32,
        np.float16,
        np.bool_,
        np.int8,
        np.uint8,
        np.uint16,
        np.uint32,
        np.int64,
        np.uint64,
        np.complex64,
    )
    found = [plain.astype(kind) for kind in types]
    found += [plain[0], plain[:0], plain[:, :0], plain[None], np.array(5), np.eye(10, dtype=np.int32)]
    found += [np.zeros((3, length), np.int32) for length in (1, 2, 5, 65, 1000)]
    found += [plain + 61, plain - 1, np.full((3, 10), 2**63, np.uint64), np.full((3, 10), -(2**63), np.int64)]
    save_file({rng.choice(["tokens"] * 9 + ["x"]): np.ascontiguousarray(rng.choice(found))}, path)


def tokenizer(folder: Path, rng: random.Random) -> None:
    """tokenizer.json: entries lost, added and of other types; bits, ends."""
    path = folder / "tokenizer.json"
    content = path.read_bytes()
    damage = rng.random()
    if damage < 0.3:
        path.write_bytes(flip(content, rng) if damage < 0.2 else content[: rng.randrange(len(content))])
        return
    found = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        inside = rng.choice([table for table in _tables(found) if table])
        key = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if rng.random() < 0.4:
            del inside[key]
        else:
            inside[key] = deepcopy(rng.choice([*VALUES, {"type": "Unigram", "unk_id": 0, "vocab": []}, 10**9]))
    path.write_text(json.dumps(found))


def _tables(value: Any) -> list[Any]:
    """Every table and array in a JSON value."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(table for item in inner for table in _tables(item))]
