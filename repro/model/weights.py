"""Which files hold a model's weights, and what beside them would make it another model."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from repro.errors import listing, plain, unavailable
from repro.model.contents import is_pointer, read_header, refuse_other_content

INDEX = "model.safetensors.index.json"
_OTHERS = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".npz", ".gguf", ".ggml", ".h5", ".onnx", ".tflite")
"""Of weights in other formats."""
_CONVERT = (
    "load it with transformers and call save_pretrained, or write the state dict with safetensors.torch.save_file to "
    "model.safetensors"
)


def weight_files(path: Path, hugging_face: bool) -> tuple[Path, ...]:
    """Return the files with the weights of a model directory, in name order: safetensors, or one `*final.pth`.

    hugging_face: whether the configuration is in Hugging Face's keys. Raises ReproError (exit 4) for no weights, for
    weights in two places, for an adapter, and for a file that is cut off or is another one.
    Agreement: tests/model/test_folder_files.py.
    """
    names = {file.name for file in path.iterdir() if is_file(file)}
    _refuse_adapter(path, names)
    safe = sorted(name for name in names if name.startswith("model") and name.endswith(".safetensors"))
    pth = sorted(name for name in names if name.endswith("final.pth"))
    if not safe and (hugging_face or len(pth) != 1):
        raise unavailable(f"{path}: {_lack(names, pth, hugging_face)}")
    own = safe or pth
    _refuse_second(path, own, names, pth if safe else [], hugging_face)
    files = tuple(path / name for name in own)
    for file in files:
        read_header(file) if safe else refuse_other_content(file)
    return files


def is_file(path: Path) -> bool:
    """Return whether a path is a file; a name that the system cannot even look up is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _refuse_adapter(path: Path, names: Collection[str]) -> None:
    found = sorted(name for name in names if name.startswith(("adapter_config.", "adapter_model.")))
    if found:
        raise unavailable(
            f"{path / found[0]}: an adapter beside the weights would be left out; merge it (peft: merge_and_unload, "
            "then save_pretrained) and give the merged directory, or move the adapter's files away to study the base "
            "model alone"
        )


def _lack(names: Collection[str], pth: list[str], hugging_face: bool) -> str:
    """Return why there are no weights to read, naming what lies there instead."""
    if pth and hugging_face:
        return (
            f"no model.safetensors; {listing(pth)} is read with a configuration in TransformerLens' keys, and this "
            "config.json is in Hugging Face's"
        )
    if pth:
        return f"{len(pth)} files *final.pth; one model.safetensors or one *final.pth is expected"
    others = sorted(name for name in names if name.endswith(_OTHERS))
    models = [name for name in others if name.startswith("pytorch_model")] or others
    if models:
        return f"no model.safetensors, only {listing(models, 3)}; {_CONVERT}"
    tensors = sorted(name for name in names if name.endswith(".safetensors") and name != "prompts.safetensors")
    if tensors:
        return f"no model.safetensors, only {listing(tensors, 3)}; rename it if those are the weights"
    return "no weights; one model.safetensors or one *final.pth is expected"


def _refuse_second(path: Path, own: list[str], names: Collection[str], pth: list[str], hugging_face: bool) -> None:
    """Refuse weights in two places, and shards that are not all of one model."""
    listed = _listed(path) if INDEX in names else None
    whole = own == [f"model-{number:05}-of-{len(own):05}.safetensors" for number in range(1, len(own) + 1)]
    if pth or ("model.safetensors" in own and len(own) > 1):
        raise _twice(path, [*own, *pth])
    if own == ["model.safetensors"] or own[0].endswith(".pth"):
        pass
    elif listed is not None:
        strange = next((name for name in listed if name not in own), None)
        if strange is not None:
            raise unavailable(f"{path / INDEX}: {plain(repr(strange), 80)} is not a file of weights in this directory")
        unlisted = [name for name in own if name not in listed]
        if unlisted:
            raise unavailable(f"{path / unlisted[0]}: not a file of {INDEX}; move it away if it is not of this model")
    elif not whole:
        raise unavailable(
            f"{path}: {listing(own, 4)} are not one model.safetensors nor all of model-00001-of-0000N.safetensors; "
            "weights are missing, or of two models"
        )
    elif hugging_face:
        raise unavailable(f"{path}: {INDEX} is missing; download it to the same directory")
    others = [name for name in sorted(names) if name not in own and _rivals(path / name)]
    if others:
        raise _twice(path, [*own[:1], *others])


def _rivals(file: Path) -> bool:
    """Return whether a file holds weights in another place: a copy for PyTorch is compared later.

    Exports for TensorFlow, Flax, Rust and ONNX lie beside the weights in many repositories, and transformers does not
    read them where there are safetensors. A GGUF file is as often another model, or another quantisation.
    """
    if file.suffix in (".gguf", ".ggml"):
        return not is_pointer(file)
    if file.suffix == ".pth":
        return file.name.startswith("consolidated")
    if file.suffix != ".safetensors" or file.name == "prompts.safetensors" or is_pointer(file):
        return False
    return not {"tokens", "input_ids"} & set(read_header(file))


def _twice(path: Path, names: list[str]) -> Exception:
    return unavailable(
        f"{path}: weights in two places: {listing(names, 4)}; keep those you mean and move the rest away"
    )


def _listed(path: Path) -> list[object]:
    """Return the files that an index of weights names."""
    try:
        found = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(found.values()), key=str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise unavailable(f"{path / INDEX}: not an index of weights; download it again") from None


def refuse_other_copy(files: Collection[Path]) -> None:
    """Refuse a `pytorch_model*.bin` beside safetensors whose tensors of the same names differ.

    Every tensor is read, so only where weights are read anyway. Raises ReproError (exit 4).
    """
    folder = next(iter(files)).parent
    copies = [file for file in sorted(folder.glob("pytorch_model*.bin")) if is_file(file) and not is_pointer(file)]
    if not copies or not all(file.suffix == ".safetensors" for file in files):
        return
    import torch
    from safetensors.torch import load_file

    from repro.model.checkpoint import read_checkpoint

    own = {name: tensor for file in files for name, tensor in load_file(str(file)).items()}
    for copy in copies:
        for name, tensor in read_checkpoint(copy).items():
            if name in own and not torch.equal(own[name].to(tensor.dtype), tensor):
                raise _twice(folder, [*(file.name for file in files), f"{copy.name} (its {name} differs)"])
