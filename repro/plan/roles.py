"""Writer, erasers and adversarial examples of a subject: named in the spec, or read from what found them.

Reads what is stored of the experiments that find roles; `repro.stages.resolve` has those computed first. Named writer
and erasers are put to the same test where their scan is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from repro.errors import ReproError
from repro.measures import MEASURES
from repro.measures.base import Measure
from repro.measures.mine_examples import mined_from
from repro.measures.roles import ExampleTokens, Roles
from repro.scan.record import load, named_pairs
from repro.spec.types import Example, Loaded
from repro.subjects.resolve import ResolvedSubject

ROLES = ("writer", "erasers", "examples")
"""In the order in which they are found: erasers and examples need a writer."""
ResultOf = Callable[[str, Roles], Path | None]
"""An experiment that finds roles, and the roles it is given -> its committed result; None where there is none."""


def is_named(subject: ResolvedSubject, roles: Collection[str]) -> bool:
    """Return whether the spec names all of these roles of the subject itself."""
    return all(getattr(subject.subject, role) != "auto" for role in roles)


def finder(loaded: Loaded, subject: ResolvedSubject, role: str) -> str:
    """Return the experiment that finds a role, the first where there are several.

    Raises ReproError (exit 2) naming the role where no experiment does.
    """
    for name, experiment in loaded.spec.experiment.items():
        if role in experiment.finds:
            return str(name)
    (measure,) = (get_args(kind.model_fields["measure"].annotation)[0] for kind in MEASURES if role in kind.finds)
    raise ReproError(
        f"[subject.{subject.name}] {role}: to be found, but no experiment of the spec does so; declare one with "
        f'measure = "{measure}", or name the {role}'
    )


def finders(loaded: Loaded, subject: ResolvedSubject, roles: Collection[str]) -> list[str]:
    """Return the experiments that find those of some roles which the spec does not name."""
    return [finder(loaded, subject, role) for role in ROLES if role in roles and not is_named(subject, (role,))]


def left_out(subject: ResolvedSubject, experiment: Measure) -> bool:
    """Return whether an experiment would only find again what the spec names, or test names where there are none."""
    if experiment.named_only:
        return not is_named(subject, ("writer", "erasers"))
    return bool(experiment.finds) and not experiment.answers and is_named(subject, experiment.finds)


def role_experiments(loaded: Loaded, subject: ResolvedSubject, names: Collection[str]) -> list[list[str]]:
    """Return the experiments that find roles, of those that some experiments need and of those among them.

    Those that find a writer come first: others may wait for what they find.
    """
    experiments = loaded.spec.experiment
    asked = {role for name in names for role in experiments[name].needs}
    asked |= {"writer"} if asked else set()
    chosen = [name for name in names if experiments[name].finds and not left_out(subject, experiments[name])]
    found = dict.fromkeys((*finders(loaded, subject, asked), *chosen))
    first = [name for name in found if "writer" in experiments[name].finds]
    return [together for together in (first, [name for name in found if name not in first]) if together]


def writer_alone(subject: ResolvedSubject, roles: Roles) -> Roles:
    """Return the roles without the erasers: what an experiment is given that finds examples.

    Of a named writer it is the same whatever is known of its erasers, and so is the key of what is mined.
    """
    named = is_named(subject, ("writer",))
    return Roles(roles.writer) if named else Roles(roles.writer, found=roles.found, source=roles.source)


def known_roles(loaded: Loaded, subject: ResolvedSubject, asked: Collection[str], result_of: ResultOf) -> Roles:
    """Return the roles as far as they are known.

    asked: the roles that anything needs; others are not looked up, since a spec need not declare what it does not use.
    Raises ReproError (exit 2) naming a role that is neither named nor found by any experiment.
    Agreement: tests/plan/test_plan.py.
    """
    roles = Roles()
    if {"writer", "erasers"} & set(asked):
        roles = _writer_and_erasers(loaded, subject, asked, result_of)
    if "examples" in asked:
        if not roles.writer and subject.subject.writer != "auto":
            roles = Roles(subject.subject.writer)
        given = writer_alone(subject, roles)
        roles = replace(roles, examples=_examples(loaded, subject, given, result_of))
    return roles


def _writer_and_erasers(loaded: Loaded, subject: ResolvedSubject, asked: Collection[str], result_of: ResultOf) -> Roles:
    declared = subject.subject
    if is_named(subject, ("writer", "erasers")):
        named = Roles(declared.writer, tuple(declared.erasers))
        # The whole model's scan has the last word, then the one through the named erasers alone.
        tests = [name for name, experiment in loaded.spec.experiment.items() if experiment.answers]
        tests.sort(key=lambda name: loaded.spec.experiment[name].named_only)
    else:
        named = Roles() if declared.writer == "auto" else Roles(declared.writer, source="auto")
        tests = finders(loaded, subject, asked)
    paths = (result_of(name, named) for name in tests)
    kept = next((found for path in paths if path is not None and (found := load(path)) is not None), None)
    pairs = frozenset(named_pairs(declared.writer, declared.erasers))
    # Where the erasers of a named writer are to be found, its claims must have been confirmed first.
    if kept is None or (not named.erasers and not pairs <= kept.asked):
        return named
    try:
        return kept.roles(declared.writer, declared.erasers)
    except ReproError as error:
        raise error.at(f"[subject.{subject.name}]") from None


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
    if path is None:
        return None
    from repro.store.result import read_summary

    return tuple(_mined(subject, item) for item in mined_from(read_summary(path).attrs))


def _tokenised(subject: ResolvedSubject, item: Example) -> ExampleTokens:
    """Return an adversarial prompt as token ids, and as words for the axes, whichever of them the spec gives."""
    tokenizer, n_ctx = subject.tokenizer, subject.folder.shape.n_ctx
    try:
        ids = tokenizer.encode(item.text) if isinstance(item.text, str) else _known(subject, item.text)
        tokens = (int(subject.tokens[0, 0]), *ids)
        if len(tokens) > n_ctx:
            raise ReproError(f"text of {len(tokens)} tokens is longer than the model's context of {n_ctx}")
        (answer, answer_text), (other, other_text) = (_answer(subject, token) for token in (item.answer, item.other))
    except ReproError as error:
        raise error.at(f"[subject.{subject.name}] example {item.label!r}") from None
    text = item.text if isinstance(item.text, str) else tokenizer.prompt(tokens)
    return ExampleTokens(item.label, tokens, answer, other, text, answer_text, other_text, item.head)


def _answer(subject: ResolvedSubject, token: str | int) -> tuple[int, str]:
    """Return a prediction as a token id and as words."""
    if isinstance(token, str):
        return subject.tokenizer.single(token), token
    return _known(subject, (token,))[0], subject.tokenizer.name(token)


def _known(subject: ResolvedSubject, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return token ids that the model has. Raises ReproError (exit 2) for another one, or none."""
    d_vocab = subject.folder.shape.d_vocab
    if not ids:
        raise ReproError("text without a token; give at least one token id")
    for token in ids:
        if not 0 <= token < d_vocab:
            raise ReproError(f"token id {token} is not one of the model's {d_vocab:,}, which are 0 to {d_vocab - 1}")
    return ids


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
