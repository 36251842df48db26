"""Comparisons of invented items, for the tests of the page: any size, with and without each of its parts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from muscle.measure.measures import Pool, Settings, measure
from muscle.measure.pairing import Item, PairedTask
from muscle.measure.predictions import Texts
from muscle.measure.repeats import Repeats
from muscle.measure.results import Comparison, Input, Measures, Slice

Answer = Callable[[str, str, int], Texts]
"""Role, id and correct (1, 0, -1) -> the texts of an item in a log."""

SUBJECTS = ("algebra", "law", "history", None)
_SETTINGS = Settings(confidence=0.95, seed=0, tolerance=0.0)


def plain(role: str, item: str, correct: int) -> Texts:
    """Texts that tell what they are of."""
    verdict = {1: "right", 0: "wrong", -1: "unscored"}[correct]
    return Texts(
        f"The following are questions.\n\nQuestion {item}: what is {item} plus one?\nAnswer:",
        f"target of {item}",
        f"The {role} model thinks long about {item} and gives a {verdict} answer.",
    )


def make_comparison(
    n: int = 200,
    *,
    tasks: Sequence[str] = ("sums", "scenes"),
    compatible: bool = False,
    smooth: bool = False,
    scored: bool = True,
    slices: bool = False,
    controls: bool = False,
    repeats: bool = False,
    draws: int = 1,
    notes: Sequence[str] = (),
    answer: Answer = plain,
    path: str = "logs/{role}.jsonl",
    ids: Callable[[int], str] = str,
    measured: int | None = None,
) -> Comparison:
    """`n` items per task and draw, with flips in both directions and, of many items, each kind of alignment.

    Only `measured` of them decide the rates, where so many would take long.
    """
    names = ("reseeded", "old teacher") if controls else ()
    roles = ["old", "new", *(["compatible"] if compatible else []), *(["repeat"] if controls else []), *names]
    items, total, by_task, by_subject = _measured(n, tuple(tasks), tuple(roles), names, draws, smooth, scored, measured)
    keys = [ids(i) for i in range(n) for _ in range(draws)]
    paired = [dataclasses.replace(task, ids=keys) for task in items]
    correct = {
        (task.task, item, role): int(task.correct[role][row])
        for task in paired
        for row, item in enumerate(task.items(np.arange(len(task.ids))))
        for role in roles
    }

    def texts(wanted: Mapping[str, set[Item]]) -> Mapping[str, Mapping[tuple[str, Item], Texts]]:
        return {
            role: {
                (task, item): answer(role, item[0], correct[task, item, role])
                for task, items in wanted.items()
                for item in items
            }
            for role in roles
        }

    def source(role: str) -> Input:
        metric, score = dict.fromkeys(tasks, "acc"), dict.fromkeys(tasks, "f1" if smooth else None)
        return Input(path.format(role=role), "table", len(keys), "0123456789abcdef" * 4, metric, {}, score)

    return Comparison(
        total=total,
        tasks=by_task,
        slices=by_subject if slices else [],
        repeats=Repeats(n, 8, 0.08, 0.1, 0.06, float("nan"), 3, 4, 9, 11, 0.625) if repeats else None,
        inputs={role: source(role) for role in roles},
        cluster="id" if draws > 1 else None,
        clusters=n if draws > 1 else None,
        missing="drop",
        confidence=_SETTINGS.confidence,
        seed=_SETTINGS.seed,
        resamples=10_000,
        notes=tuple(notes),
        items=paired,
        texts=texts,
        settings={},
        reliable={},
    )


@cache
def _measured(
    n: int,
    tasks: Sequence[str],
    roles: Sequence[str],
    controls: Sequence[str],
    draws: int,
    smooth: bool,
    scored: bool,
    measured: int | None,
) -> tuple[list[PairedTask], Measures, dict[str, Measures], list[Slice]]:
    """The items, without their ids, and the measures of all, by task and by subject; kept, as these take long."""
    random = np.random.default_rng(0)
    paired = [_task(task, n, draws, roles, random, smooth=smooth, scored=scored) for task in tasks]
    pools = [Pool.of([task], None) for task in paired]
    pool = Pool.of(paired, None)
    if measured:
        pool, *pools = [whole.part(np.arange(measured)) for whole in (pool, *pools)]
    subjects = np.array([str(subject) for task in paired for subject in task.labels["subject"]])[:measured]
    parts = [(value, pool.part(np.flatnonzero(subjects == str(value)))) for value in SUBJECTS]
    return (
        paired,
        measure(pool, controls, _SETTINGS),
        {task.task: measure(part, controls, _SETTINGS) for task, part in zip(paired, pools, strict=True)},
        [
            Slice("subject", value, measure(part, controls, _SETTINGS), 0.01 if value == "law" else 0.4)
            for value, part in parts
        ],
    )


def _task(
    name: str,
    items: int,
    draws: int,
    roles: Sequence[str],
    random: np.random.Generator,
    *,
    smooth: bool,
    scored: bool,
) -> PairedTask:
    n = items * draws
    right = {"old": random.random(n) < 0.6}
    right["new"] = np.where(random.random(n) < 0.7, right["old"], random.random(n) < 0.75)
    right["compatible"] = np.where(random.random(n) < 0.5, right["new"], right["old"] | right["new"])
    right["compatible"] = right["compatible"] != (random.random(n) < 0.15)
    for role in roles:
        right.setdefault(role, right["old"] != (random.random(n) < 0.1))
    answers = {role: np.where(right[role], 1, random.integers(2, 5, n)) for role in roles}
    if "compatible" in roles:  # half of what it gets wrong it gets wrong as before
        same = ~right["old"] & ~right["compatible"] & (random.random(n) < 0.5)
        answers["compatible"] = np.where(same, answers["old"], answers["compatible"])
    correct = {role: (right[role] if scored else np.full(n, -1)).astype(np.int8) for role in roles}
    if scored:
        correct["new"][random.random(n) < 0.01] = -1
        correct["new"][1:2] = -1
    graded = np.where(np.arange(n) > 0, 1.0 if smooth else np.nan, np.nan)  # all but the first, or nothing
    scores = {role: graded * np.clip(0.3 + 0.4 * right[role] + random.normal(0, 0.15, n), 0, 1) for role in roles}
    scores["new"] = np.where(random.random(n) < 0.4, scores["old"], scores["new"])
    return PairedTask(
        task=name,
        ids=[],
        draws=np.tile(np.arange(draws, dtype=np.int32), items),
        correct=correct,
        answers=answers,
        scores=scores,
        labels={"subject": [SUBJECTS[row % len(SUBJECTS)] for row in range(n)]},
        only=dict.fromkeys(roles[1:], (0, 3)),
        changed=dict.fromkeys(roles[1:], 0),
        asked_ids=[],
        asked={},
    )
