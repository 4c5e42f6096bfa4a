"""What a model of transformers computes, told by hooks on its own layers and by nothing of the package."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WRITES = ("o_proj", "out_proj", "dense", "c_proj")
"""What an attention's last matrix is called."""


class Precise(TorchFunctionMode):
    """Computes in float64 what modules of transformers turn into float32 whatever the type of the weights.

    Norms and softmax of many architectures do. Tables of rotary positions begin in float32 and stay there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and torch.is_tensor(args[0]) and args[0].dtype is torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if each is torch.float32 else each for each in args)
            kwargs = {key: torch.float64 if each is torch.float32 else each for key, each in kwargs.items()}
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Truth:
    """One pass over tokens [B, P]: per layer what it reads, its heads' z [B, P, H K] and what its attention adds.

    z W_O factor is what the heads add, factor [B, P, D] what becomes of what the last matrix writes on its way to the
    stream: one over the scale of a norm after it, times the norm's weights; or a multiplier.
    """

    pre: list[Tensor]
    z: list[Tensor]
    attention: list[Tensor]
    W_O: list[Tensor]  # [H K, D]
    factor: list[Tensor]
    final: Tensor
    logits: Tensor


def truth(path: Path, tokens: Tensor) -> Truth:
    """The pass of the model in a directory, in float64, over tokens [B, P]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    B, P = tokens.shape
    pre, z, written, attention, post = [], [], [], [], []
    unembedded: list[Tensor] = []
    with ExitStack() as hooks, torch.no_grad(), Precise():
        unembeds = model.get_output_embeddings().register_forward_hook(lambda _, given, made: unembedded.append(made))
        hooks.callback(unembeds.remove)
        layers = layers_of(model)
        for layer in layers:
            out = output_matrix(layer)
            reads = layer.register_forward_pre_hook(
                lambda _, given, named: pre.append((given or (named["hidden_states"],))[0]), with_kwargs=True
            )
            ends = layer.register_forward_hook(
                lambda _, given, made: post.append(made if torch.is_tensor(made) else made[0])
            )
            inside = out.register_forward_pre_hook(lambda _, given: z.append(given[0].reshape(B, P, -1)))
            writes = out.register_forward_hook(lambda _, given, made: written.append(made.reshape(B, P, -1)))
            adds = norm_after(layer, out).register_forward_hook(lambda _, given, made: attention.append(made))
            for hook in (reads, ends, inside, writes, adds):
                hooks.callback(hook.remove)
        logits = model(tokens, use_cache=False).logits
    matrices = [matrix(output_matrix(layer)) for layer in layers]
    times = getattr(model.config, "residual_multiplier", 1.0)
    added = [times * made.reshape(B, P, -1) for made in attention]
    factor = [made / raw for made, raw in zip(added, written, strict=True)]
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:  # what is attributed are logits before the cap
        torch.testing.assert_close(logits, cap * torch.tanh(unembedded[0] / cap))
        logits = unembedded[0]
    return Truth(pre, z, added, matrices, factor, post[-1], logits)


def norm_after(layer: nn.Module, out: Any) -> Any:
    """The norm that reads what the heads of a layer write, by its name in four architectures, or else their matrix."""
    parts = dict(layer.named_children())
    if "post_feedforward_layernorm" in parts:
        return parts["post_attention_layernorm"]
    return parts.get("post_self_attn_layernorm", out)


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The list of a model's layers: the only one of several alike modules with an attention."""
    (found,) = [
        part
        for part in model.modules()
        if isinstance(part, nn.ModuleList)
        and len(part) > 1
        and any("att" in name for name, _ in part[0].named_children())
    ]
    return found


def output_matrix(layer: nn.Module) -> Any:
    """The matrix through which the heads of a layer write."""
    (found,) = [part for name, part in layer.named_modules() if "att" in name and name.split(".")[-1] in WRITES]
    return found


def matrix(part: Any) -> Tensor:
    """Its weight [in, out]; Conv1D stores it so, Linear transposed."""
    weight: Tensor = part.weight.detach()
    return weight if type(part).__name__ == "Conv1D" else weight.T
