"""An old teacher whose tokenizer is not the student's: what is kept of it, and how batches find it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from muscle.errors import MuscleError
from muscle.measure.statistics import BoolArray
from muscle.update.across.chunks import NONE, Chunks
from muscle.update.across.translations import Translation
from muscle.update.distributed import processes
from muscle.update.heads import Head
from muscle.update.losses import chunks as row_chunks
from muscle.update.models import device
from muscle.update.pipeline import Report
from muscle.update.rows import ChunkRows, TranslatedRows
from muscle.update.teacher_cache import States, Texts
from muscle.update.teachers import Teacher
from muscle.update.tokenized import IGNORED

LIKELIHOODS, RECORD = "likelihoods.safetensors", "likelihoods.json"
"""Files of what is kept on disk. The record is written last."""


@dataclass(frozen=True)
class Likelihoods:
    """What an old task model says of its M targets, text by text: a few numbers of each in place of a state."""

    gold: Tensor
    """Log-likelihood in nats, float32 (M,)."""
    right: Tensor
    """Whether the target is its most likely token, bool (M,)."""
    begins: Tensor
    """Its probability that a new word begins at the target, or the text ends, float32 (M,)."""


def read_likelihoods(
    teacher: Teacher, texts: Texts, begins: Tensor, folder: Path | None, report: Report
) -> Likelihoods:
    """Ask the old task model once about the training texts in its own tokens; processes share them out.

    Args:
        teacher: The task model, or its states over these texts.
        texts: What it reads.
        begins: Which of its tokens begin a new word, or end the text, bool (V,).
        folder: Where the numbers are kept; None: nowhere.
        report: Told how far it is.

    Raises:
        MuscleError: The folder cannot be written.
    """
    job, batches = processes(), texts.batches()
    mine = batches[job.process_index :: job.num_processes]
    found = list[tuple[int, Tensor]]()
    for done, (numbers, batch) in enumerate(
        zip(mine, DataLoader(texts.data, batch_sampler=mine, collate_fn=texts.collator), strict=True), start=1
    ):
        batch = {name: tensor.to(device()) for name, tensor in batch.items()}
        said = _said(teacher, batch, begins)
        sizes = [texts.starts[text + 1] - texts.starts[text] for text in numbers]
        parts = (part.clone() for part in torch.split(said, sizes))  # views would be sent with all that they are of
        found += zip((texts.starts[text] for text in numbers), parts, strict=True)
        report(done / len(mine), "the old teacher reads the training texts")
    everything = gather_object(found) if job.num_processes > 1 else found
    table = torch.empty(texts.starts[-1], 3)
    for first, rows in everything:
        table[first : first + len(rows)] = rows
    likelihoods = Likelihoods(table[:, 0].contiguous(), table[:, 1] > 0.5, table[:, 2].contiguous())
    if folder and job.is_main_process:
        _keep(likelihoods, texts, folder)
    if folder:
        job.wait_for_everyone()
    return likelihoods


@torch.no_grad()
def _said(teacher: Teacher, batch: Mapping[str, Tensor], begins: Tensor) -> Tensor:
    """(n, 3) on the CPU: log-likelihood, whether right, and how likely a word begins."""
    following = batch["labels"][:, 1:]
    counted = following != IGNORED
    states, head = teacher.states(batch, counted)
    gold, columns = following[counted], list[Tensor]()
    size = head(states[:0]).shape[-1]
    word = functional.pad(begins, (0, max(0, size - len(begins))))[:size].to(states.device)
    for rows in row_chunks(states, size):
        logits = head(states[rows])
        likelihoods = functional.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        columns.append(
            torch.stack(
                [
                    likelihoods.gather(-1, gold[rows, None])[:, 0].float(),
                    (logits.argmax(-1) == gold[rows]).float(),
                    (likelihoods.exp() @ word.to(likelihoods.dtype)).float(),
                ],
                dim=1,
            )
        )
    return torch.cat(columns).cpu()


def open_likelihoods(folder: Path, texts: Texts) -> Likelihoods | None:
    """What `read_likelihoods` kept; None if it is not whole.

    Raises:
        MuscleError: It is of other texts.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    if record["texts"] != texts.digest:
        raise MuscleError(f"{folder} holds what a teacher says of other texts: remove it")
    return Likelihoods(**load_file(folder / LIKELIHOODS))


def _keep(likelihoods: Likelihoods, texts: Texts, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(vars(likelihoods), folder / LIKELIHOODS)
        partial = folder / f"{RECORD}.partial"
        partial.write_text(json.dumps({"texts": texts.digest}) + "\n")
        partial.replace(folder / RECORD)
    except (OSError, SafetensorError) as error:
        raise MuscleError(
            f"what the old teacher says cannot be written to {folder} ({error}): make room, or set `teacher_cache: "
            "memory` under `alignment`"
        ) from None


@dataclass(frozen=True)
class ChunkTeacher:
    """What an old teacher says of stretches of the training texts."""

    starts: list[int]
    """Of the student's texts, as in `Texts`."""
    chunk: Tensor
    """Number of the chunk of each target of the student's, (N,), rising; -1: none."""
    likelihood: Tensor
    """Of each chunk, in nats, (C,)."""
    right: Tensor
    """Bool (C,)."""
    alone: TranslatedTeacher | None = None
    """What it says of all tokens where a chunk is one token on both sides, if that is heard."""

    @classmethod
    def by_chunk(
        cls, said: Likelihoods, parts: Chunks, texts: Texts, alone: TranslatedTeacher | None = None
    ) -> ChunkTeacher:
        """Of the given chunks."""
        return cls._of(said, torch.from_numpy(parts.old), parts.count, torch.from_numpy(parts.student), texts, alone)

    @classmethod
    def by_text(cls, said: Likelihoods, old: Texts, texts: Texts) -> ChunkTeacher:
        """Each text is one chunk, whatever of it is a target on one side alone."""
        theirs, ours = (
            torch.arange(len(side.lengths)).repeat_interleave(torch.tensor(side.starts).diff()) for side in (old, texts)
        )
        return cls._of(said, theirs, len(old.lengths), ours, texts)

    @classmethod
    def _of(
        cls,
        said: Likelihoods,
        old: Tensor,
        count: int,
        student: Tensor,
        texts: Texts,
        alone: TranslatedTeacher | None = None,
    ) -> ChunkTeacher:
        inside = old >= 0
        likelihood = torch.zeros(count).index_add(0, old[inside], said.gold[inside])
        wrong = torch.zeros(count).index_add(0, old[inside], (~said.right[inside]).float())
        return cls(texts.starts, student, likelihood, wrong == 0, alone)

    @property
    def aligned(self) -> float:
        """Share of the student's targets of which it says something."""
        return float((self.chunk >= 0).float().mean())

    def of(self, batch: Mapping[str, Tensor], counted: Tensor) -> ChunkRows:
        """What it says of a batch, whose texts are counted whole or not at all; on the batch's device."""
        chunk = _of_batch(self.chunk, self.starts, batch, counted)
        inside = chunk >= 0
        # those of a text follow each other, so that where the number changes the next chunk of the batch begins
        numbers, local = torch.unique_consecutive(chunk[inside], return_inverse=True)
        places = torch.full_like(chunk, -1)
        places[inside] = local
        alone, where = self.alone.of(batch, counted) if self.alone else None, counted.device
        return ChunkRows(places.to(where), self.likelihood[numbers].to(where), self.right[numbers].to(where), alone)


@dataclass(frozen=True)
class TranslatedTeacher:
    """An old teacher's states at the tokens that both tokenizations have alone, and their way into the student's."""

    starts: list[int]
    """Of the student's texts, as in `Texts`."""
    place: Tensor
    """The old target that belongs to each target of the student's, (N,); -1: none."""
    states: States
    """Of the old texts."""
    head: Head
    translation: Translation

    @classmethod
    def over(
        cls, parts: Chunks, alone: BoolArray, texts: Texts, states: States, head: Head, translation: Translation
    ) -> TranslatedTeacher:
        """On chunks that are the same token on both sides, which `Chunks.alone` tells."""
        heard = np.append(alone, False)  # NONE is the last
        target = np.full(parts.count + 1, NONE)
        target[parts.old] = np.arange(len(parts.old))
        place = np.where(heard[parts.student], target[parts.student], NONE)
        return cls(texts.starts, torch.from_numpy(place), states, head, translation)

    @property
    def aligned(self) -> float:
        """Share of the student's targets of which it says something."""
        return float((self.place >= 0).float().mean())

    def of(self, batch: Mapping[str, Tensor], counted: Tensor) -> TranslatedRows:
        """What it says of a batch, whose texts are counted whole or not at all; on the batch's device."""
        place = _of_batch(self.place, self.starts, batch, counted)
        states = self.states.rows[place[place >= 0]].to(counted.device, self.states.dtype)
        local = torch.where(place >= 0, (place >= 0).cumsum(0) - 1, -1).to(counted.device)
        return TranslatedRows(local, states, self.head.to(counted.device), self.translation.logits)


def _of_batch(numbers: Tensor, starts: list[int], batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
    """What belongs to the counted rows of a batch, (n,), of numbers by target of the training set."""
    texts = [text for text, some in zip(batch["index"].tolist(), counted.any(1).tolist(), strict=True) if some]
    rows = [numbers[starts[text] : starts[text + 1]] for text in texts]
    return torch.cat(rows) if rows else numbers[:0]


def joined(parts: Chunks, said: Likelihoods, texts: Texts, threshold: float, alone: BoolArray | None = None) -> Chunks:
    """Chunks that end where the old model finds the start of a new word likelier than the threshold (debiasing of ALM).

    Others are joined to the one that follows. Where the old model says "token" in two tokens and the student in one,
    "to" is a chunk with "to" only if what follows is unlikely to go on with the word.

    Args:
        parts: The chunks between all common boundaries.
        said: What the old model says of its targets.
        texts: The student's.
        threshold: With 0 nothing is joined; with infinity a text is one chunk, but for what only one side reads.
        alone: Chunks that are compared as tokens, (C,): two of them are never joined, since both sides cut there.
    """
    if not threshold or not parts.count:
        return parts
    ends = []
    for side in (parts.student, parts.old):
        places = np.flatnonzero(side >= 0)
        chunk, first = np.unique(side[places], return_index=True)
        assert len(chunk) == parts.count
        last = np.append(first[1:] - 1, len(places) - 1)
        ends.append((places[first], places[last]))
    (first, last), (old_first, old_last) = ends
    text = np.searchsorted(texts.starts, first, side="right")
    follows = (first[1:] == last[:-1] + 1) & (old_first[1:] == old_last[:-1] + 1) & (text[1:] == text[:-1])
    if alone is not None:
        follows &= ~(alone[1:] & alone[:-1])
    goes_on = np.append(False, follows & (said.begins.numpy()[old_first[1:]] <= threshold))
    numbers = np.append(np.cumsum(~goes_on) - 1, NONE)  # NONE is the last
    return replace(parts, student=numbers[parts.student], old=numbers[parts.old], count=int(numbers.max()) + 1)
