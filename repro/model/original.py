"""The original model of a folder, and what its own modules compute: TransformerLens' native one or Hugging Face's.

TransformerLens knows the parts of every architecture by common names and takes joint matrices apart. Its processing of
weights and its own attention are not used: neither is the original's in all cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repro.model.decoder import Rotary, Scales
from repro.model.folder import Folder
from repro.model.native import native_bridge
from repro.model.precise import Precise
from repro.model.refusals import refuse_misfits, refuse_not_finite, refuse_settings, unrunnable
from repro.model.rotary import rotary_of_module, rotary_of_native, unrotated_layers
from repro.model.windows import windows

LOGITS = 64
"""Positions, the last ones, whose logits are compared: those of a whole prompt may be larger than the model."""


@dataclass(frozen=True)
class Seen:
    """What the original model computed on some tokens [B, P].

    parts: by name, `resid_pre0` (what the first norm of a layer reads), `resid_mid0` (what the second reads; absent
    where blocks are parallel), `z0` (what the output matrix reads: [B, P, H K]), `attention0` and `MLP0` (what is added
    to the stream, but for a multiplier of all of it), `final` (what the last norm reads). logits [B, P or 64, V];
    unembedded: what the unembedding writes, from which a model may make its logits by a scale or a cap.
    """

    tokens: Tensor
    parts: dict[str, Tensor]
    logits: Tensor
    unembedded: Tensor


@dataclass(frozen=True)
class Original:
    """An original model that has been seen at work, taken apart by TransformerLens into parts of common names."""

    bridge: Any
    rotary: Rotary | None
    seen: tuple[Seen, ...]
    changed: dict[str, Any]
    """Settings of config.json that are not the architecture's defaults."""
    scales: Scales = field(default_factory=Scales)
    """That of what is looked up not counted: the part that looks it up has it (`processing`)."""
    unrotated: frozenset[int] = frozenset()
    """Layers without rotary positions (SmolLM3, Cohere 2)."""
    rotary_local: Rotary | None = None
    """Rotary positions of layers with a window, where they have their own (Gemma 3)."""
    windows: Mapping[int, int] = field(default_factory=dict)
    """By layer, how far back its heads read, where that is not everything."""
    score_cap: float | None = None
    logit_cap: float | None = None
    """Caps of attention scores and of logits (Gemma 2)."""


def read_original(folder: Folder, dtype: torch.dtype, tokens: Sequence[Tensor], whole: bool) -> Original:
    """Return the original model of a folder, its weights in `dtype`, after one pass over each of some tokens [B, P].

    whole: whether the model may be given longer prompts than these. Raises ReproError (exit 4) naming what is
    unreadable, not finite, or set to what is not computed here. Agreement: tests/model/test_architectures.py.
    """
    if folder.is_hugging_face:
        return _hugging_face(folder, dtype, tokens, whole)
    bridge = native_bridge(folder, dtype)
    parts = _Parts(bridge.get_submodule, folder.shape.n_layers, parallel=False)
    return Original(bridge, rotary_of_native(bridge), tuple(parts.watch(bridge, each) for each in tokens), {})


def _hugging_face(folder: Folder, dtype: torch.dtype, tokens: Sequence[Tensor], whole: bool) -> Original:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import AutoModelForCausalLM

    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            str(folder.path),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # transformers raises many kinds, most of them symptoms of a setting
        raise unrunnable(folder, error, "load") from error
    module, report = loaded
    module.eval()
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    kinds = {"missing": report["missing_keys"], "unexpected": report["unexpected_keys"], "mismatched": mismatched}
    refuse_misfits(folder, kinds)
    refuse_not_finite(folder, dict(module.named_parameters()))
    refuse_settings(folder, module.config, whole)
    rotary, local = rotary_of_module(folder, module)
    seen: list[Seen] = []

    def run(given: Tensor) -> Any:
        try:
            return module(given, use_cache=False)
        except Exception as error:  # as above
            raise unrunnable(folder, error, "run") from error

    def look(adapter: Any) -> None:
        """See the module at work before the bridge takes it apart."""
        find = partial(_find, module, adapter.component_mapping)
        layer = adapter.component_mapping["blocks"].submodules
        parallel, before, after = bool(adapter.cfg.parallel_attn_mlp), "ln1" in layer, "ln1_post" in layer
        parts = _Parts(find, folder.shape.n_layers, parallel, before, after)
        seen.extend(parts.watch(run, each) for each in tokens)

    name = type(module).__name__
    bridge = build_bridge_from_module(
        module, architecture=name, hf_config=module.config, dtype=dtype, model_name=name, post_adapter_hook=look
    )
    default = type(module.config)().to_dict()
    changed = {key: value for key, value in module.config.to_dict().items() if value != default.get(key)}
    config = module.config
    return Original(
        bridge.eval(),
        rotary,
        tuple(seen),
        changed,
        scales=Scales(
            embedding=float(getattr(config, "embedding_multiplier", 1.0)),
            residual=float(getattr(config, "residual_multiplier", 1.0)),
            logits=float(getattr(config, "logit_scale", 1.0)) / float(getattr(config, "logits_scaling", 1.0)),
            initial=_initial(config),
        ),
        unrotated=unrotated_layers(config),
        rotary_local=local,
        windows=windows(config),
        score_cap=getattr(config, "attn_logit_softcapping", None),
        logit_cap=getattr(config, "final_logit_softcapping", None),
    )


def _initial(config: Any) -> float:
    """Return the standard deviation of a configuration's initialiser; 0.02 where it names none or a strange one."""
    for name in ("initializer_range", "init_std"):  # OPT's is the second
        found = getattr(config, name, None)
        if isinstance(found, int | float) and 0 < found < 1:
            return float(found)
    return Scales.initial


def _find(module: nn.Module, mapping: Any, name: str) -> nn.Module:
    """Return the part of a module that TransformerLens calls by a name, such as `blocks.0.attn.o`."""
    first, *rest = name.split(".")
    node, path = mapping[first], [mapping[first].name]
    for word in rest:
        if word.isdigit():
            path.append(word)
        else:
            node = node.submodules[word]
            # Without a name of its own a part lies in its parent: OPT has no module of the whole MLP.
            path += [node.name] if node.name else []
    return module.get_submodule(".".join(path))


@dataclass(frozen=True)
class _Parts:
    """The modules of a model whose inputs or outputs are compared, found by TransformerLens' names."""

    find: Callable[[str], nn.Module]
    n_layers: int
    parallel: bool
    before: bool = True
    """Whether attention and MLP read through norms."""
    after: bool = False
    """Whether what they write goes through norms."""

    def watch(self, model: Callable[[Tensor], Any], tokens: Tensor) -> Seen:
        """Return what the modules see and write in one pass over tokens [B, P]."""
        seen: dict[str, Tensor] = {}
        batch, length = tokens.shape

        def keep(name: str, tensor: Tensor) -> None:
            # OPT's MLP sees all positions of all prompts in one row.
            seen[name] = tensor.reshape(batch, length, -1)

        with ExitStack() as hooks:
            for name, part, reads in self._watched():
                if reads:
                    hook = part.register_forward_pre_hook(lambda _, given, name=name: keep(name, given[0]))
                else:
                    hook = part.register_forward_hook(lambda _, given, out, name=name: keep(name, out))
                hooks.callback(hook.remove)
            unembed = self.find("unembed")
            cut = unembed.register_forward_pre_hook(lambda _, given: (given[0][:, -LOGITS:], *given[1:]))
            made: list[Tensor] = []
            kept = unembed.register_forward_hook(lambda _, given, out: made.append(out))
            hooks.callback(cut.remove)
            hooks.callback(kept.remove)
            with Precise():
                logits = model(tokens)
        return Seen(tokens, seen, getattr(logits, "logits", logits), made[0])

    def _watched(self) -> Iterator[tuple[str, nn.Module, bool]]:
        """Yield what is compared: its name, its module, and whether it is what that reads or what it writes."""
        for layer in range(self.n_layers):
            at = f"blocks.{layer}"
            yield f"resid_pre{layer}", self.find(f"{at}.{'ln1' if self.before else 'attn.q'}"), True
            if not self.parallel:
                yield f"resid_mid{layer}", self.find(f"{at}.{'ln2' if self.before else 'mlp.in'}"), True
            yield f"z{layer}", self.find(f"{at}.attn.o"), True
            yield f"attention{layer}", self.find(f"{at}.{'ln1_post' if self.after else 'attn.o'}"), False
            yield f"MLP{layer}", self.find(f"{at}.{'ln2_post' if self.after else 'mlp.out'}"), False
        yield "final", self.find("ln_final"), True
