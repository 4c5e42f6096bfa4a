"""A subject whose model lies on the hub: fetched once, pinned in the lock, and from then on a local folder."""

from __future__ import annotations

from repro.model.folder import Folder, read_folder, read_shape
from repro.spec.types import HubPrompts, Loaded, Subject
from repro.subjects.access import Access


def fetch_subject(loaded: Loaded, name: str, subject: Subject, access: Access) -> Folder:
    """The folder of a hub subject and its frozen prompts, pinned in `<spec stem>.lock.json`.

    Raises ReproError: exit 4 in one sentence if model or prompts cannot be had, exit 2 if there are no prompts.
    Agreement: tests/subjects/test_hub_paper.py.
    """
    from repro.subjects.hub import fetch_model
    from repro.subjects.lock import Lock
    from repro.subjects.prompts import freeze_prompts

    lock = Lock.beside(loaded.path).subject(name)
    offline = access.offline or not access.ask
    model = fetch_model(
        subject.model,
        tokenizer=subject.tokenizer,
        cache=access.cache,
        lock=lock,
        offline=offline,
        force=access.insist,
    )
    if isinstance(subject.prompts, str):
        return read_folder(model, loaded.folder / subject.prompts)
    if not isinstance(subject.prompts, HubPrompts):
        return read_folder(model)
    prompts = freeze_prompts(
        subject.prompts,
        d_vocab=read_shape(model).d_vocab,
        cache=access.cache,
        lock=lock,
        offline=offline,
        force=access.insist,
    )
    return read_folder(model, prompts)
