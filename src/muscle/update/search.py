"""The method auto: trains candidates on a budget and keeps the one with fewest flips on the held-out items.

By successive halving: see `candidates`. Each training starts anew from the new task adapter and has its own whole
schedule, so that each ends in an adapter that may be kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.measure.report.files import replace_whole
from muscle.update.adapters import train_compatibility_adapter
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.backends import local_adapter
from muscle.update.candidates import ROUNDING, Candidate, candidates, halving, schedule
from muscle.update.costs import Costs
from muscle.update.distributed import processes
from muscle.update.judging import Judge, Scores, Watch
from muscle.update.models import load_tokenizer
from muscle.update.pipeline import CHECKPOINTS, Report, program_hash
from muscle.update.prompts import templates_compiled_once
from muscle.update.provenance import digests
from muscle.update.recipe import EvaluationSettings, LoraSettings, TaskModel, TrainingSettings
from muscle.update.report.search import SEARCH, TRIAL, TRIALS, search_record
from muscle.update.scoring import scores_of, validation_scores
from muscle.update.tasks import Task
from muscle.update.trainer import DivergedError
from muscle.update.trials import Trial, length_in_words, read_trial

JUDGED_EPOCHS = 10
"""The last epochs of a training, of which the best is kept: scoring the held-out items takes time, too."""
_JUDGED = "judged.json"
"""In the folder of a trial: what was measured after its epochs."""

_T = TypeVar("_T")


@dataclass
class Search:
    """Trains candidates for a compatibility adapter, and saves the one that is best on the held-out items.

    Fields as the arguments of `adapters.train_compatibility_adapter`; `alignment.search` says how to search. Trials
    that are done are kept under `destination`, whatever stops the search: it goes on from there, with `muscle align`
    also with another budget, while `muscle update` begins a stage with other settings anew. A trial that diverged is
    never chosen. Where no trial has fewer flips above the floor, the new task adapter is saved as it is; where there is
    none, the trial that falls short of the floor by least.
    All held-out items are scored, whatever `evaluation.limit`. Beside what a training leaves there is `search.json`.
    """

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
        self._search, self._root = self.alignment.search, self.destination / CHECKPOINTS
        self._held_out = msgspec.structs.replace(self.evaluation, limit=None)  # there are few enough to choose by

    def run(self, report: Report) -> None:
        """Search, or go on with it.

        Args:
            report: Called with the share of the budget that is spent, and what is tried.

        Raises:
            MuscleError: No item is held out; the budget is less than any candidate costs; all trials diverge, or the
                warm-up is never over; or what a training raises.
        """
        processes()
        with _without_bars():
            pool, judge = self._pool(), self._judge  # which all processes make together
            trials = self._tried(pool, report)
            if all(trial.failed for trial in trials):
                if processes().is_main_process:
                    shutil.rmtree(self._root / TRIALS)  # so that nothing is in the way of other settings
                raise MuscleError(f"none of {len(trials)} trials can be kept; the first: {trials[0].failed}")
            best = min(range(len(trials)), key=lambda number: (trials[number].rank, trials[number].tokens))
            better = self.new.adapter is None or trials[best].rank < judge.score(judge.new)
            chosen = best if better else None
            if processes().is_main_process:
                self._save(None if chosen is None else trials[chosen])
                record = msgspec.to_builtins(search_record(judge, trials, chosen, self._costs.unit))
                replace_whole(self.destination / SEARCH, json.dumps(record, indent=2).encode() + b"\n")
            processes().wait_for_everyone()

    def _pool(self) -> list[Candidate]:
        """What may be tried, the most promising first."""
        found = candidates(
            self.alignment,
            _most_choices(self.task),
            self.task.settings.unlabelled is not None,
            self._tokenizer.is_fast and load_tokenizer(self.old.base).is_fast,
        )
        costs, most = self._costs, self._search.budget + ROUNDING
        pool = [each for each in costs.distinct(found) if costs.cost(each, 1.0) <= most]
        if not pool:
            raise MuscleError(f"search.budget: {self._search.budget:g} is less than any candidate costs; raise it")
        return pool

    def _tried(self, pool: Sequence[Candidate], report: Report) -> list[Trial]:
        """Those that the budget is spent on, in the order of their training."""
        lengths = self._costs.lengths(pool, self._search.lengths)
        costs = [[self._costs.cost(each, length) for each in pool] for length in lengths]
        first, counts = schedule(costs, self._search.budget)
        planned = sum(count * length for count, length in zip(counts, lengths, strict=True))
        trials: list[Trial] = []

        def run(place: int, candidate: Candidate) -> float:
            length, spent = lengths[place], sum(trial.length for trial in trials)
            words = f"trial {len(trials) + 1} of {sum(counts)}: {candidate.name}, {length_in_words(length)}"
            trial = self._trial(candidate, length, lambda share, _: report((spent + share * length) / planned, words))
            if all(trial.folder != other.folder for other in trials):  # a length of as many epochs is no other trial
                trials.append(trial)
            return trial.rank

        halving([pool[number] for number in first], counts, run)
        return trials

    def _save(self, trial: Trial | None) -> None:
        """Copy a trial's adapter to where the search's is to be; without one, the new task adapter as it is."""
        if trial is not None:
            source = self._root / TRIALS / trial.folder
        else:
            assert self.new.adapter is not None
            source = Path(local_adapter(self.new.adapter, self.new.base.allow_pickle))
        own = (TRIAL, _JUDGED, "README.md", "stage.json", "stage.log")
        for file in source.iterdir():
            if file.is_file() and file.name not in own:
                shutil.copyfile(file, self.destination / file.name)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.new.base)

    @cached_property
    def _costs(self) -> Costs:
        return Costs(self.new.base, self.task, self.alignment, self.settings)

    @cached_property
    def _judge(self) -> Judge:
        before, after = (scores_of(model, self.task, self._held_out) for model in (self.old, self.new))
        return Judge(before, after, self._search)

    @cached_property
    def _scores(self) -> Callable[[nn.Module], Scores]:
        return validation_scores(self.task, self._tokenizer, self._held_out)

    @cached_property
    def _common(self) -> list[object]:
        """What decides the outcome of every trial."""
        unlabelled = self.task.settings.unlabelled is not None
        return [
            *(part for each in (self.old, self.new) for part in (each.as_dict(), digests(each))),
            *(self.task.settings.as_dict(), self.task.data_hash(), self.lora.as_dict(), self._held_out.as_dict()),
            self.task.unlabelled_hash(self._tokenizer) if unlabelled else None,
            *(self._search.aim, self._search.floor, program_hash()),
        ]

    def _trial(self, candidate: Candidate, length: float, report: Report) -> Trial:
        """Train a candidate, or go on with it; one that is done is only read."""
        alignment, training = self._costs.settings(candidate, length)
        decisive = [*self._common, alignment.as_dict(), training.as_dict()]
        key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
        slug = re.sub(r"[^a-z0-9.]+", "-", candidate.name.lower())
        folder = self._root / TRIALS / f"{slug}-{training.epochs}-{key}"
        trial = _agreed(read_trial(folder))
        if trial:
            return trial
        started, watch = time.monotonic(), Watch(self._judge, self._scores, folder / _JUDGED)
        failed = None
        try:
            train_compatibility_adapter(
                *(self.old, self.new, self.task, alignment, self.lora, training, self._held_out, folder, report),
                states_root=self._root / "teachers",
                flips=watch,
                flips_last=JUDGED_EPOCHS,
            )
        except DivergedError as error:  # in all processes
            failed = str(error)
        clear_device_cache(garbage_collection=True)  # what was trained holds itself in cycles
        if processes().is_main_process:
            result = None if failed else json.loads((folder / "training.json").read_text())["result"]
            figures = watch.figures(min(result["validation_flips"])) if result else None
            trial = Trial(
                name=candidate.name,
                alignment=dict(candidate.alignment),
                training={**candidate.training, "epochs": training.epochs, "warmup_steps": training.warmup_steps},
                length=length,
                epochs=training.epochs,
                best_epoch=result["best_epoch"] if result else None,
                tokens=self._costs.tokens(candidate, length),
                cost=self._costs.cost(candidate, length),
                seconds=round(time.monotonic() - started, 2),
                figures=figures,
                admissible=figures is not None and figures.admissible,
                score=self._judge.score(figures) if figures else None,
                folder=folder.name,
                failed=failed,
            )
            folder.mkdir(parents=True, exist_ok=True)
            replace_whole(folder / TRIAL, msgspec.json.encode(trial))
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        trial = _agreed(trial)
        assert trial is not None
        return trial


def _most_choices(task: Task) -> int:
    """Of a held-out item; 0 where nothing is chosen from."""
    held_out = task.for_evaluation("validation")
    if held_out.OUTPUT_TYPE != "multiple_choice":
        return 0
    with templates_compiled_once():
        return max(len(held_out.doc_to_choice(doc)) for doc in held_out.eval_docs)


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


def _agreed(value: _T) -> _T:
    """What the main process has, in all."""
    box = [value]
    broadcast_object_list(box)
    return box[0]
