"""The method auto: trains candidates on a budget and keeps the one with fewest flips on the held-out items.

By successive halving: see `candidates`. Each training starts anew from the new task adapter and has its own whole
schedule, so that each ends in an adapter that may be kept.

Costs are counted in tokens through the student; one unit is one alignment as the settings have it, on gold texts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from tqdm import tqdm  # type: ignore[import-untyped]

from muscle.errors import MuscleError
from muscle.measure.report.files import replace_whole
from muscle.update.adapters import Size, train_compatibility_adapter, training_size
from muscle.update.backends import local_adapter
from muscle.update.candidates import ROUNDING, Candidate, candidates, halving, schedule
from muscle.update.distributed import processes
from muscle.update.judging import Figures, Judge, Watch
from muscle.update.models import load_tokenizer
from muscle.update.pipeline import CHECKPOINTS, Report, program_hash
from muscle.update.prompts import templates_compiled_once
from muscle.update.provenance import digests
from muscle.update.recipe import (
    AlignmentSettings,
    EvaluationSettings,
    LoraSettings,
    TaskModel,
    TrainingSettings,
    merged,
)
from muscle.update.report.search import SEARCH, TRIAL, TRIALS, search_record
from muscle.update.scoring import scores_of, validation_scores
from muscle.update.tasks import Task
from muscle.update.trainer import DivergedError, batches_per_epoch, check_warmup

JUDGED_EPOCHS = 10
"""The last epochs of a training, of which the best is kept: scoring the held-out items takes time, too."""
LENGTHS = {0.25: "a quarter of the length", 0.5: "half the length", 1.0: "full length"}

_T = TypeVar("_T")


class Trial(msgspec.Struct, frozen=True):
    """A candidate that was trained to some length."""

    name: str
    alignment: dict[str, Any]
    """Keys of `alignment` that it changes."""
    training: dict[str, Any]
    """Keys of `training` that it changes, its length among them."""
    length: float
    """Of the full training, in (0, 1]."""
    epochs: int
    best_epoch: int | None
    """None where it failed."""
    tokens: int
    """Through the student in training."""
    cost: float
    """The same in units of one alignment."""
    seconds: float
    """Of its training and evaluations, since it was last started."""
    figures: Figures | None
    """None where it failed."""
    admissible: bool
    score: float | None
    """By which trials are ranked, smaller is better: see `judging.Judge.score`; None where it failed."""
    folder: str
    failed: str | None = None
    """Why it came to nothing."""

    @property
    def rank(self) -> float:
        """Its score; of one that failed, infinite."""
        return math.inf if self.score is None else self.score

    @property
    def words(self) -> str:
        """What it is."""
        return f"{self.name}, {length_in_words(self.length)}"


def length_in_words(length: float) -> str:
    """A share of the full training."""
    return LENGTHS.get(length, f"{length:g} of the length")


def search_compatibility_adapter(
    old: TaskModel,
    new: TaskModel,
    task: Task,
    alignment: AlignmentSettings,
    lora: LoraSettings,
    settings: TrainingSettings,
    evaluation: EvaluationSettings,
    destination: Path,
    report: Report,
) -> None:
    """Train candidates for a compatibility adapter, and save the one that is best on the held-out items.

    Arguments as of `adapters.train_compatibility_adapter`; `alignment.search` says how to search. Trials that are done
    are kept under `destination`, whatever stops the search: it goes on from there, with `muscle align` also with
    another budget, while `muscle update` begins a stage with other settings anew. A diverged trial is never chosen.
    Where no trial has fewer flips above the floor, the new task adapter is saved as it is.
    All held-out items are scored, whatever `evaluation.limit`. Beside what a training leaves there is `search.json`.

    Raises:
        MuscleError: No item is held out; all trials diverge, or the warm-up is never over; or what a training raises.
    """
    processes()
    with _without_bars():
        _search(_Bench(old, new, task, alignment, lora, settings, evaluation, destination), report)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within it libraries show no progress bars of their own, of which a search would have hundreds."""
    begin = tqdm.__init__

    def begin_silent(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = begin_silent
    try:
        yield
    finally:
        tqdm.__init__ = begin


def _search(bench: _Bench, report: Report) -> None:
    search, task = bench.search, bench.task
    there, offsets = task.settings.unlabelled is not None, load_tokenizer(bench.new.base).is_fast
    found = bench.distinct(candidates(bench.alignment, _most_choices(task), there, offsets))
    pool = [candidate for candidate in found if bench.cost(candidate, 1.0) <= search.budget + ROUNDING]
    if not pool:
        raise MuscleError(f"search.budget: {search.budget:g} is less than any candidate costs; raise it")
    lengths = bench.lengths(pool)
    first, counts = schedule([[bench.cost(each, length) for each in pool] for length in lengths], search.budget)
    planned = sum(count * length for count, length in zip(counts, lengths, strict=True))
    trials: list[Trial] = []

    def run(place: int, candidate: Candidate) -> float:
        length, spent = lengths[place], sum(trial.length for trial in trials)
        words = f"trial {len(trials) + 1} of {sum(counts)}: {candidate.name}, {length_in_words(length)}"
        trial = bench.run(candidate, length, lambda share, _: report((spent + share * length) / planned, words))
        if all(trial.folder != other.folder for other in trials):  # a length of as many epochs is no other trial
            trials.append(trial)
        return trial.rank

    halving([pool[number] for number in first], counts, run)
    if all(trial.failed for trial in trials):
        if processes().is_main_process:
            shutil.rmtree(bench.root / TRIALS)  # so that nothing is in the way of other settings
        raise MuscleError(f"none of {len(trials)} trials can be kept; the first: {trials[0].failed}")
    best = min(range(len(trials)), key=lambda number: (trials[number].rank, trials[number].tokens))
    chosen = best if bench.new.adapter is None or trials[best].rank < bench.judge.score(bench.judge.new) else None
    if processes().is_main_process:
        _save(bench, trials[best].folder if chosen is not None else None)
        record = search_record(bench.judge, trials, chosen, bench.unit)
        replace_whole(bench.destination / SEARCH, json.dumps(record, indent=2).encode() + b"\n")
    processes().wait_for_everyone()


def _save(bench: _Bench, trial: str | None) -> None:
    """Copy a trial's adapter to where the search's is to be; without one, the new task adapter as it is."""
    assert trial is not None or bench.new.adapter is not None
    source = bench.root / TRIALS / trial if trial is not None else Path(local_adapter(str(bench.new.adapter)))
    for file in source.iterdir():
        own = (TRIAL, _JUDGED, "README.md", "stage.json", "stage.log")
        if file.is_file() and file.name not in own:
            shutil.copyfile(file, bench.destination / file.name)


def _most_choices(task: Task) -> int:
    """Of a held-out item; 0 where nothing is chosen from."""
    held_out = task.for_evaluation("validation")
    if held_out.OUTPUT_TYPE != "multiple_choice":
        return 0
    with templates_compiled_once():
        return max(len(held_out.doc_to_choice(doc)) for doc in held_out.eval_docs)


_JUDGED = "judged.json"
"""In the folder of a trial: what was measured after its epochs."""


@dataclass
class _Bench:
    """Trains candidates, each in a folder that is named by all that decides the outcome."""

    old: TaskModel
    new: TaskModel
    task: Task
    alignment: AlignmentSettings
    lora: LoraSettings
    settings: TrainingSettings
    evaluation: EvaluationSettings
    destination: Path

    def __post_init__(self) -> None:
        assert self.alignment.search is not None
        self.search, self.root = self.alignment.search, self.destination / CHECKPOINTS
        self.evaluation = msgspec.structs.replace(self.evaluation, limit=None)  # there are few enough to choose by
        self._sizes: dict[str, Size] = {}
        self._gold = self._size(Candidate("gold", {"texts": "gold", "unlabelled": False}))
        check_warmup(self.settings, batches_per_epoch(self.settings, self._gold.items))
        self.unit = self.settings.epochs * self._gold.tokens
        tokenizer = load_tokenizer(self.new.base)
        self._common = [
            *(part for each in (self.old, self.new) for part in (each.as_dict(), digests(each))),
            *(self.task.settings.as_dict(), self.task.data_hash(), self.lora.as_dict(), self.evaluation.as_dict()),
            self.task.unlabelled_hash(tokenizer) if self.task.settings.unlabelled is not None else None,
            program_hash(),
        ]
        before, after = (scores_of(model, self.task, self.evaluation) for model in (self.old, self.new))
        self.judge = Judge(before, after, self.search)
        self._scores = validation_scores(self.task, tokenizer, self.evaluation)

    def lengths(self, pool: Sequence[Candidate]) -> list[float]:
        """Those of the settings, less those at which nobody is trained differently than at the next."""
        all_lengths = self.search.lengths
        epochs = [[self._epochs(each, length) for each in pool] for length in all_lengths]
        return [
            length
            for place, length in enumerate(all_lengths)
            if place == len(all_lengths) - 1 or epochs[place] != epochs[place + 1]
        ]

    def distinct(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """The first of those that are trained alike."""
        found: dict[str, Candidate] = {}
        for candidate in pool:
            key = json.dumps([settings.as_dict() for settings in self._settings(candidate, 1.0)])
            found.setdefault(key, candidate)
        return list(found.values())

    def cost(self, candidate: Candidate, length: float) -> float:
        """In units of one alignment."""
        return self._epochs(candidate, length) * self._size(candidate).tokens / self.unit

    def run(self, candidate: Candidate, length: float, report: Report) -> Trial:
        """Train a candidate, or go on with it; one that is done is only read."""
        alignment, training = self._settings(candidate, length)
        decisive = [*self._common, alignment.as_dict(), training.as_dict(), self.search.aim, self.search.floor]
        key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
        slug = re.sub(r"[^a-z0-9.]+", "-", candidate.name.lower())
        folder = self.root / TRIALS / f"{slug}-{training.epochs}-{key}"
        trial = _agreed(_read(folder))
        if trial:
            return trial
        started, watch = time.monotonic(), Watch(self.judge, self._scores, folder / _JUDGED)
        failed = None
        try:
            train_compatibility_adapter(
                *(self.old, self.new, self.task, alignment, self.lora, training, self.evaluation, folder, report),
                states_root=self.root / "teachers",
                flips=watch,
                flips_last=JUDGED_EPOCHS,
            )
        except DivergedError as error:  # in all processes
            failed = str(error)
        clear_device_cache(garbage_collection=True)  # what was trained holds itself in cycles
        if processes().is_main_process:
            result = None if failed else json.loads((folder / "training.json").read_text())["result"]
            figures = watch.figures(min(result["validation_flips"])) if result else None
            tokens = training.epochs * self._size(candidate).tokens
            trial = Trial(
                name=candidate.name,
                alignment=dict(candidate.alignment),
                training={**candidate.training, "epochs": training.epochs, "warmup_steps": training.warmup_steps},
                length=length,
                epochs=training.epochs,
                best_epoch=result["best_epoch"] if result else None,
                tokens=tokens,
                cost=tokens / self.unit,
                seconds=round(time.monotonic() - started, 2),
                figures=figures,
                admissible=figures is not None and figures.admissible,
                score=self.judge.score(figures) if figures else None,
                folder=folder.name,
                failed=failed,
            )
            folder.mkdir(parents=True, exist_ok=True)
            replace_whole(folder / TRIAL, msgspec.json.encode(trial))
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        trial = _agreed(trial)
        assert trial is not None
        return trial

    def _settings(self, candidate: Candidate, length: float) -> tuple[AlignmentSettings, TrainingSettings]:
        """What a trial is trained with: its warm-up is as large a part of its steps as it is of the full training."""
        cache = "off" if self.alignment.teacher_cache == "off" else "disk"  # which all trials share
        alignment = merged(self.alignment, candidate.alignment, {"search": None, "teacher_cache": cache})
        epochs = self._epochs(candidate, length)
        share = epochs * self._steps(candidate) / (self.settings.epochs * self._steps())
        changes = {
            "epochs": epochs,
            "warmup_steps": int(self.settings.warmup_steps * share),
            "select_by": "flips",
            "early_stopping": None,
        }
        return alignment, merged(self.settings, candidate.training, changes)

    def _epochs(self, candidate: Candidate, length: float) -> int:
        return max(1, int(length * self.unit / self._size(candidate).tokens + 0.5))

    def _steps(self, candidate: Candidate | None = None) -> int:
        """Of an epoch."""
        size = self._size(candidate) if candidate else self._gold
        return -(-batches_per_epoch(self.settings, size.items) // self.settings.accumulation)

    def _size(self, candidate: Candidate) -> Size:
        alignment = merged(self.alignment, candidate.alignment, {"search": None})
        tokens = merged(self.settings, candidate.training).tokens
        kind = json.dumps([alignment.texts, alignment.unlabelled, tokens])
        if kind not in self._sizes:
            self._sizes[kind] = training_size(self.new.base, self.task, alignment, tokens)
        return self._sizes[kind]


def _read(folder: Path) -> Trial | None:
    """The trial of that folder, if it is done."""
    file = folder / TRIAL
    return msgspec.json.decode(file.read_bytes(), type=Trial) if file.exists() else None


def _agreed(value: _T) -> _T:
    """What the main process has, in all."""
    box = [value]
    broadcast_object_list(box)
    return box[0]
