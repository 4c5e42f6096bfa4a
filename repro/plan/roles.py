"""Writer, erasers and adversarial examples of a subject: named in the spec, or read from what found them.

Reads the stored results of the experiments that find roles; `repro.stages.resolve` has those computed first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from repro.errors import ReproError
from repro.measures import MEASURES
from repro.measures.mine_examples import mined_from
from repro.measures.roles import ExampleTokens, Roles
from repro.spec.types import Example, Loaded
from repro.subjects.resolve import ResolvedSubject

ROLES = ("writer", "erasers", "examples")
"""In the order in which they are found: erasers and examples need a writer."""
ResultOf = Callable[[str, Roles], Path | None]
"""An experiment that finds roles, and the roles it is given -> its committed result; None where there is none."""


def is_named(subject: ResolvedSubject, role: str) -> bool:
    """Return whether the spec names this role of the subject itself."""
    return bool(getattr(subject.subject, role) != "auto")


def finder(loaded: Loaded, subject: ResolvedSubject, role: str) -> str:
    """Return the experiment that finds a role, the first where there are several.

    Raises ReproError (exit 2) naming the role where no experiment does.
    """
    for name, experiment in loaded.spec.experiment.items():
        if experiment.finds == role:
            return str(name)
    (measure,) = (get_args(kind.model_fields["measure"].annotation)[0] for kind in MEASURES if kind.finds == role)
    raise ReproError(
        f"[subject.{subject.name}] {role}: to be found, but no experiment of the spec does so; declare one with "
        f'measure = "{measure}", or name the {role}'
    )


def role_experiments(loaded: Loaded, subject: ResolvedSubject, names: Collection[str]) -> list[str]:
    """Return the experiments that find roles, of those that some experiments need and of those among them."""
    experiments = loaded.spec.experiment
    asked = {role for name in names for role in experiments[name].needs}
    asked |= {"writer"} if asked else set()
    found = [finder(loaded, subject, role) for role in ROLES if role in asked and not is_named(subject, role)]
    chosen = [name for name in names if (role := experiments[name].finds) is not None and not is_named(subject, role)]
    return list(dict.fromkeys((*found, *chosen)))


def writer_alone(roles: Roles) -> Roles:
    """Return the roles without the erasers: what an experiment is given that finds erasers or examples."""
    return replace(roles, erasers=(), examples=None)


def known_roles(loaded: Loaded, subject: ResolvedSubject, asked: Collection[str], result_of: ResultOf) -> Roles:
    """Return the roles as far as they are known.

    asked: the roles that anything needs; others are not looked up, since a spec need not declare what it does not use.
    Raises ReproError (exit 2) naming a role that is neither named nor found by any experiment.
    Agreement: tests/plan/test_plan.py.
    """
    roles = _named(subject)
    if "writer" in asked and not roles.writer:
        roles = _found(loaded, subject, "writer", roles, result_of) or roles
    given = writer_alone(roles)
    if "erasers" in asked and roles.writer and not roles.erasers:
        roles = _found(loaded, subject, "erasers", given, result_of) or roles
    if "examples" in asked:
        roles = replace(roles, examples=_examples(loaded, subject, given, result_of))
    return roles


def _named(subject: ResolvedSubject) -> Roles:
    declared = subject.subject
    if declared.writer == "auto":
        return Roles()
    if isinstance(declared.erasers, str):
        return Roles(declared.writer, source="auto")
    return Roles(declared.writer, declared.erasers)


def _found(loaded: Loaded, subject: ResolvedSubject, role: str, given: Roles, result_of: ResultOf) -> Roles | None:
    path = result_of(finder(loaded, subject, role), given)
    return None if path is None else Roles.from_attrs(_attrs(path))


def _examples(
    loaded: Loaded, subject: ResolvedSubject, given: Roles, result_of: ResultOf
) -> tuple[ExampleTokens, ...] | None:
    """Return the adversarial prompts, tokenised; None while they are not mined yet."""
    declared = subject.subject.examples
    if not isinstance(declared, str):
        return tuple(_tokenised(subject, item) for item in declared)
    if not given.writer:
        return None
    path = result_of(finder(loaded, subject, "examples"), given)
    return None if path is None else tuple(_mined(subject, item) for item in mined_from(_attrs(path)))


def _attrs(path: Path) -> Mapping[Any, Any]:
    from repro.store.result import read_summary

    return read_summary(path).attrs


def _tokenised(subject: ResolvedSubject, item: Example) -> ExampleTokens:
    tokenizer, n_ctx = subject.tokenizer, subject.folder.shape.n_ctx
    try:
        tokens = (int(subject.tokens[0, 0]), *tokenizer.encode(item.text))
        if len(tokens) > n_ctx:
            raise ReproError(f"text of {len(tokens)} tokens is longer than the model's context of {n_ctx}")
        answer, other = tokenizer.single(item.answer), tokenizer.single(item.other)
    except ReproError as error:
        raise error.at(f"[subject.{subject.name}] example {item.label!r}") from None
    return ExampleTokens(item.label, tokens, answer, other, item.text, item.answer, item.other, item.head)


def _mined(subject: ResolvedSubject, item: Mapping[str, Any]) -> ExampleTokens:
    tokenizer = subject.tokenizer
    row = subject.tokens[item["prompt"], : item["position"] + 1].tolist()
    answer = tokenizer.name(item["first"])
    return ExampleTokens(
        label=f"{answer!r} (prompt {item['prompt']})",
        tokens=tuple(row),
        answer=item["first"],
        other=item["second"],
        text=tokenizer.prompt(row),
        answer_text=answer,
        other_text=tokenizer.name(item["second"]),
        prompt=item["prompt"],
        right=item["right"],
    )
