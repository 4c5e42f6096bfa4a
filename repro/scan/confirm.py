"""Real forwards against claims: does the component stop opposing when the writer is taken away?

(a) direct patch: h_w is taken out of the component's input alone (the value input of a head, whose pattern is held; the
    input of an MLP, its gates recomputed), with the clean norm scale and with the scale of what is left.
(b) ablation: h_w is taken out of the stream where it was written (zero, its mean over the other prompts at each
    position, or another prompt's), and everything after it runs anew. The mean does not hold the prompt's own
    activations: of three prompts they would leave a third of the writer in place.

The clean share k of the component's output onto the clean h_w is measured before and after, over positions 1 and later
of a few prompts. A claim says that |p| of the writer is taken back because it was written, so both interventions should
move k towards positive by |p|: *kept* if each moves it by at least |p| / 2, *refuted* if one moves it by less than
|p| / 5, else *weakened*. How much of k remains after ablation is reported beside it, not judged: part of k may be
opposition in parallel, which was never claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from repro.labels import head_index, is_head, layer_of, step_of
from repro.model.ablate import output_of
from repro.model.attention import weights
from repro.model.decoder import Model
from repro.model.forward import Trace, attend, attention_gain, attn_out, mlp, mlp_gain, mlp_of_normed, read_scale, trace
from repro.model.paths import centred
from repro.scan.confirmation import Confirmation

PROMPTS = 3
"""Prompts that claims are confirmed on."""
_ALL = slice(None)


def confirm(model: Model, tokens: Tensor, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Confirmation]:
    """Return what real forwards say of pairs (writer, component), on prompts `tokens` [B, P].

    Agreement: tests/scan/test_confirm.py, against a forward by hand and on planted pairs.
    """
    clean = trace(model, tokens)
    wanted: dict[str, list[str]] = {}
    for writer, component in pairs:
        wanted.setdefault(writer, []).append(component)
    found = {}
    for writer, components in wanted.items():
        h = output_of(model, clean, tokens, _ALL, writer)
        before = {c: _share(output_of(model, clean, tokens, _ALL, c), h) for c in components}
        ablated = [
            _rerun(model, clean, writer, components, h, instead)
            for instead in (torch.zeros_like(h), mean_of_others(h), h.roll(1, 0))
        ]
        for c in components:
            patched, rescaled = (_share(output_without(model, clean, c, h, own), h) for own in (False, True))
            found[writer, c] = Confirmation(before[c], patched, rescaled, *(after[c] for after in ablated))
    return found


def mean_of_others(h: Tensor) -> Tensor:
    """Return the mean over the other prompts at every position of h [B, P, D]; NaN where there is no other."""
    return (h.sum(0) - h) / (len(h) - 1)


def _share(out: Tensor, h: Tensor) -> float:
    """Return sum <out, h> / sum |h|² over positions 1 and later of all prompts."""
    return float((out * h)[:, 1:].sum() / h[:, 1:].square().sum())


def output_without(model: Model, run: Trace, component: str, h: Tensor, own_scale: bool = False) -> Tensor:
    """Return what a component writes when h [B, P, D] is taken out of its input alone (a direct patch): [B, P, D].

    run: the clean pass; h: what an earlier node wrote, such as `output_of` gives. A head keeps its pattern and loses h
    in its value input; an MLP forms its gates anew. own_scale: the norm has the scale of what is left, else that of the
    clean pass. In activation units, without what the norm ignores. Agreement: tests/scan/test_confirm.py.
    """
    layer = layer_of(component)
    if is_head(component):
        return _patched_head(model, run, component, h, own_scale)
    resid = run.sites[model.mlp_site(layer)]
    if own_scale:
        return centred(model, mlp(model, layer, resid - h))
    read = centred(model, resid - h) / read_scale(model, resid)[..., None]
    return centred(model, mlp_of_normed(model, layer, read, mlp_gain(model, layer, resid)))


def _patched_head(model: Model, run: Trace, component: str, h: Tensor, own_scale: bool) -> Tensor:
    """Return a head's output with h taken out of its value input, its pattern held: [B, P, D]."""
    layer, head = head_index(component)
    shape, seen, block = model.shape, run.attention[layer], model.blocks[layer]
    group = head * shape.n_kv_heads // shape.n_heads
    resid = run.sites[2 * layer]
    left = resid - h
    scale = read_scale(model, left if own_scale else resid)
    values = centred(model, left) / scale[..., None] @ block.W_V[group]
    scores = seen.q[:, :, head] @ seen.k[:, :, group].transpose(1, 2) * model.softmax_scale
    mix = weights(model, layer, scores, torch.arange(scores.shape[-1])) @ values
    gain = seen.gain
    if own_scale and block.attn_post is not None:  # the other heads of the layer as they were
        everything = seen.z / seen.gain[..., None, None]
        everything[:, :, head] = mix
        gain = attention_gain(model, layer, everything)
    return (mix * gain[..., None]) @ centred(model, block.W_O[head])


def _rerun(
    model: Model, run: Trace, writer: str, components: list[str], h: Tensor, instead: Tensor
) -> Mapping[str, float]:
    """Return the components' shares of the clean h when the writer writes something else and all runs anew."""
    site = step_of(writer)
    last = max(step_of(c) for c in components)
    sites = {site - 1: run.sites[site - 1] if site else run.sites[0], site: run.sites[site] - h + instead}
    found: dict[str, float] = {}
    for step in range(site + 1, last + 1):
        layer, is_mlp = divmod(step - 1, 2)
        if is_mlp:
            # Of parallel blocks it reads the stream before the layer, which may lie before the writer.
            read = model.mlp_site(layer)
            out = mlp(model, layer, sites[read] if read in sites else run.sites[read])
            found |= {c: _share(centred(model, out), h) for c in components if step_of(c) == step}
        else:
            z = attend(model, layer, sites[step - 1]).z
            out = attn_out(model, layer, z)
            for c in components:
                if step_of(c) == step:
                    head = head_index(c)[1]
                    found[c] = _share(z[:, :, head] @ centred(model, model.blocks[layer].W_O[head]), h)
        sites[step] = sites[step - 1] + out
    return found
