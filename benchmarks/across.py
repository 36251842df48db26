"""Time learning from an old model of another tokenizer against learning from one of the same tokenizer, token by token.

    python benchmarks/across.py [--quick] [--runs 5] [--texts 16]

All are this project: `across: combined` (the default), `across: likelihood` (chunk by chunk, ALM) and, as their peer,
the divergence of tokens that the paper has, on the same texts, student, new teacher and settings, teachers cached, in
one process that lets them take turns. The student's tokenizer is byte-level; the other old model's keeps the space
before a word and has half the vocabulary. Timed are loss and gradient of an epoch's batches, the student's states
given; whole trainings; and what comes once: what the old model says of all texts. Loss and gradient are first asserted
to be those of a plain script with autograd. Models have random weights and every second target is the student's own
first choice, as in `training.py`. Seconds are those of the processor, one thread; the details have those of the clock.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from chunking import old_tokenizer
from common import Bar, ModelName, model, write_results
from texts import Texts, Tokens, _rows, prepare
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)
from variants import LEARNING_RATE, NEW, OLD, TEMPERATURE, _silent, task_model

from muscle.update.across.chunks import Chunks
from muscle.update.across.old_teachers import ChunkTeacher, TranslatedTeacher, read_likelihoods
from muscle.update.across.translations import shared_tokens
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.heads import Head, read_states
from muscle.update.objectives import Objective, OldTeacher, compatibility
from muscle.update.recipe import TrainingSettings
from muscle.update.rows import Targets
from muscle.update.teacher_cache import Texts as Sources
from muscle.update.teacher_cache import compute_states
from muscle.update.teachers import CachedTeacher, LiveTeacher
from muscle.update.tokenized import IGNORED, PaddingCollator, TokenizedExamples
from muscle.update.trainer import train

RANK, BATCH_SIZE = 16, 8
TOLERANCE = 1e-4  # of loss and gradient against the plain script's
WEIGHTS = {"the paper's weight": {}, "mixture": {"weight": "mixture"}}
SAME = "same tokenizer, token by token"
WAYS = ("combined", "likelihood")
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Turns:
    """Seconds of each competitor, in turn."""

    cpu: dict[str, list[float]]
    clock: dict[str, list[float]]

    @classmethod
    def of(cls, competitors: Mapping[str, Callable[[], object]], runs: int) -> "Turns":
        """After one of each that does not count."""
        turns = cls({name: [] for name in competitors}, {name: [] for name in competitors})
        for run in range(runs + 1):
            for name, compete in competitors.items():
                start = time.process_time(), time.perf_counter()
                compete()
                if run:
                    turns.cpu[name].append(time.process_time() - start[0])
                    turns.clock[name].append(time.perf_counter() - start[1])
        return turns

    def bars(self, work: str, goal: str | None, runs: int) -> list[Bar]:
        """Of the processor's seconds."""
        medians = {name: statistics.median(seconds) for name, seconds in self.cpu.items()}
        named = {way: f"across tokenizers ({way}), {work}" for way in WAYS}
        return [Bar.time(named[way], medians[way], medians[SAME], SAME, goal, runs) for way in WAYS]


class Contest:
    """The texts of both sides, and what both old models say of them.

    Args:
        folder: With what `texts.prepare` wrote; what is kept of teachers goes there.
        name: Of the model.
        tokens: Which are targets.
    """

    def __init__(self, folder: Path, name: ModelName, tokens: Tokens) -> None:
        self._name, self._folder = name, folder
        self.data = Texts(folder, tokens)
        everything = [context + answer for context, answer in _rows()]
        theirs = old_tokenizer(everything)
        self.old_data = TokenizedExamples(self.data.rows, theirs, tokens)
        self.texts = Sources(self.data, self.data.collator)
        self.old_texts = Sources(self.old_data, PaddingCollator(theirs.eos_token_id))
        self.parts = Chunks.of(self.data, self.old_data)
        self.student = self.model(NEW)
        frozen = self.model(NEW).eval().requires_grad_(False)
        self._new = CachedTeacher(compute_states(frozen, self.texts, "auto", None, _silent), Head.of(frozen))
        del frozen
        old = self.model(OLD).eval().requires_grad_(False)
        self._same = CachedTeacher(compute_states(old, self.texts, "auto", None, _silent), Head.of(old))
        self._old, self._translation = old, shared_tokens(self.data.tokenizer, theirs)
        self._across = {way: self._heard(way) for way in WAYS}

    def _heard(self, way: str) -> ChunkTeacher:
        """What the old model with the other tokenizer says. It knows no words: every common boundary ends a chunk."""
        words = torch.zeros(0, dtype=torch.bool)
        if way == "likelihood":
            said = read_likelihoods(LiveTeacher(self._old), self.old_texts, words, None, _silent)
            return ChunkTeacher.by_chunk(said, self.parts, self.texts)
        states, head = compute_states(self._old, self.old_texts, "auto", None, _silent), Head.of(self._old)
        said = read_likelihoods(CachedTeacher(states, head), self.old_texts, words, None, _silent)
        alone = self.parts.alone(self.data.gold, self.old_data.gold, self._translation.same)
        translated = TranslatedTeacher.over(self.parts, alone, self.texts, states, head, self._translation)
        return ChunkTeacher.by_chunk(said, self.parts, self.texts, translated)

    def model(self, seed: int) -> Any:
        """A task model."""
        return task_model(model(self._name, seed), RANK, seed)

    def objectives(self, settings: Mapping[str, Any]) -> dict[str, Objective]:
        """Of both, by name."""
        alignment = AlignmentSettings(temperature=TEMPERATURE, **settings)
        teachers: dict[str, OldTeacher] = {SAME: self._same, **self._across}
        return {name: compatibility(old, self._new, alignment) for name, old in teachers.items()}

    def steps(self, settings: Mapping[str, Any], runs: int) -> Turns:
        """Loss and gradient of all batches of an epoch, the student's states given."""
        head, order = Head.of(self.student), range(len(self.data))
        batches = [
            self.data.collator([self.data[i] for i in order[first : first + BATCH_SIZE]])
            for first in order[::BATCH_SIZE]
        ]
        with torch.no_grad():
            kept = ("input_ids", "attention_mask")
            states = [read_states(self.student, lambda h, _: h, **{k: batch[k] for k in kept}) for batch in batches]
        objectives = self.objectives(settings)

        def step(objective: Objective) -> None:
            for batch, hidden in zip(batches, states, strict=True):
                loss_and_gradient(objective, batch, hidden, head)

        for way in WAYS:
            self._check(way, objectives[way], "weight" in settings, batches[0], states[0], head)
        return Turns.of({name: partial(step, objective) for name, objective in objectives.items()}, runs)

    def _check(self, way: str, objective: Objective, mixed: bool, batch: Batch, hidden: Tensor, head: Head) -> None:
        (loss, gradient), states = loss_and_gradient(objective, batch, hidden, head), hidden.clone().requires_grad_()
        counted = batch["labels"][:, 1:] != IGNORED
        new_states, new_head = self._new.states(batch, counted)
        plain = plain_loss(states, head, new_head(new_states), self._across[way], batch, mixed)
        torch.autograd.backward(plain)
        assert states.grad is not None
        assert abs(loss / plain.item() - 1) < TOLERANCE, f"a loss of {loss}, and the plain script's is {plain.item()}"
        assert (gradient - states.grad).norm() < TOLERANCE * states.grad.norm(), (
            "other gradients than the plain script's"
        )

    def trainings(self, runs: int) -> Turns:
        """A whole training of one epoch, its teachers there already."""
        objectives = self.objectives({})
        settings = TrainingSettings(
            epochs=1,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH_SIZE,
            accumulation=max(1, len(self.data) // BATCH_SIZE),
            warmup_steps=0,
            schedule="constant",
            max_grad_norm=0.0,
            select_by="last",
        )

        def training(objective: Objective) -> None:
            folder = Path(tempfile.mkdtemp(dir=self._folder)) / "checkpoints"
            train(self.student, objective, settings, self.data, None, self.data.collator, folder, _silent)

        return Turns.of({name: partial(training, objective) for name, objective in objectives.items()}, runs)

    def once(self, runs: int) -> Turns:
        """The old model read over all texts, which are cut into chunks first."""

        def across(way: str) -> None:
            Chunks.of(self.data, self.old_data)
            self._heard(way)

        def same() -> None:
            compute_states(self._old, self.texts, "auto", None, _silent)

        return Turns.of({SAME: same, **{way: partial(across, way) for way in WAYS}}, runs)

    def facts(self) -> dict[str, Any]:
        """Of the texts."""
        return {
            **self.data.facts(),
            "old_tokens": sum(map(len, self.old_data.ids)),
            "old_targets": self.old_texts.starts[-1],
            "chunks": self.parts.count,
            "aligned": self.parts.aligned,
            "alone": self._across["combined"].alone.aligned,  # type: ignore[union-attr]
        }


def loss_and_gradient(objective: Objective, batch: Batch, hidden: Tensor, head: Head) -> tuple[float, Tensor]:
    """Of a batch, with respect to the student's states."""
    states = hidden.clone().requires_grad_()
    total, _, _ = objective(batch)(states, head)
    torch.autograd.backward(total)
    assert states.grad is not None
    return float(total.detach()), states.grad


def plain_loss(states: Tensor, head: Head, new: Tensor, old: ChunkTeacher, batch: Batch, mixed: bool) -> Tensor:
    """What ours minimises, of all logits at once by autograd: the paper's weight, or the mixture of equal shares."""
    targets, said = Targets.of(batch), old.of(batch, batch["labels"][:, 1:] != IGNORED)
    logits = head(targets.of_states(states))
    inside, count = said.chunk >= 0, len(said.likelihood)
    chunk = said.chunk[inside]
    gold = F.log_softmax(logits, -1).gather(-1, targets.gold[:, None])[:, 0]
    likelihood = torch.zeros(count).index_add(0, chunk, gold[inside])
    wrong = torch.zeros(count).index_add(0, chunk, (logits.argmax(-1) != targets.gold)[inside].float())
    w_chunk = torch.full((count,), 0.5) if mixed else (wrong > 0).float()
    w = torch.zeros(len(gold)).index_copy(0, inside.nonzero()[:, 0], w_chunk[chunk])
    tau = 100.0
    p, q = (torch.exp(each.clamp(max=-1e-6).double() / tau) for each in (said.likelihood, likelihood))
    matching = tau * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    told, share = new, 1 - w
    if said.alone:
        alone = said.alone.place >= 0
        old_logits = said.alone.logits(logits.detach(), slice(None), TEMPERATURE)
        told = torch.where(alone[:, None], w[:, None] * old_logits + (1 - w)[:, None] * new, new)
        share = torch.where(alone, torch.ones_like(w), 1 - w)
        w_chunk = w_chunk.index_fill(0, said.chunk[alone], 0.0)
    says, heard = (F.log_softmax(each / TEMPERATURE, -1) for each in (logits, told))
    apart = F.kl_div(says, heard, reduction="none", log_target=True).sum(-1)
    return (w_chunk * matching).sum() / TEMPERATURE**2 + (share * apart).sum()


def measure(folder: Path, name: ModelName, texts: int, runs: int) -> tuple[list[Bar], dict[str, Any]]:
    """All bars and their details."""
    prepare(folder, texts, task_model(model(name, NEW), RANK, NEW).eval())
    bars, details = list[Bar](), dict[str, Any]()
    for tokens, targets in (("all", "all tokens"), ("answer", "answers' tokens")):
        contest = Contest(folder, name, tokens)  # type: ignore[arg-type]
        details[tokens] = {"texts": contest.facts()}
        for words, settings in WEIGHTS.items():
            turns = contest.steps(settings, runs)
            bars += turns.bars(f"loss and gradient, {targets}, {words}, {name} model", None, runs)
            details[tokens][words] = vars(turns)
            tell(bars[-len(WAYS) :])
    fewer = max(1, runs // 2)
    for work, take, goal in (
        ("the old model read once", contest.once, None),
        ("an epoch of training, answers' tokens", contest.trainings, ">= 1"),
    ):
        turns = take(fewer)
        bars += turns.bars(f"{work}, {name} model", goal, fewer)
        details[work] = vars(turns)
        tell(bars[-len(WAYS) :])
    return bars, details


def tell(bars: list[Bar]) -> None:
    """Print some bars."""
    for bar in bars:
        print(f"{bar.name}: {bar.ours:.3g} s, {bar.peer:.3g} s, ratio {bar.ratio:.3g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="model S and a few texts")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--texts", type=int, default=16, help="of an epoch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name: ModelName = "S" if arguments.quick else "D"
    texts, runs = (8, 1) if arguments.quick else (arguments.texts, arguments.runs)
    with tempfile.TemporaryDirectory(prefix="muscle-across-") as folder:
        bars, details = measure(Path(folder), name, texts, runs)
    write_results(__file__, bars, {"threads": 1, "rank": RANK, **details}, ("torch", "transformers"))


if __name__ == "__main__":
    main()
