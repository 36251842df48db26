"""Final hidden states of a frozen task model where its texts have targets: computed once, in memory or on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig

from muscle.errors import MuscleError
from muscle.update.alignment_settings import CacheDtype
from muscle.update.distributed import Collator, Item, processes
from muscle.update.heads import Head, head_is_known, read_states, unknown_head
from muscle.update.models import device, evaluating, load_config, move
from muscle.update.pipeline import Report
from muscle.update.recipe import Base
from muscle.update.room import free_disk, free_memory, in_words
from muscle.update.tokenized import IGNORED

ROWS, HEAD, RECORD = "states.bin", "head.safetensors", "states.json"
"""Files of a cache on disk. The record is written last: without it there is no cache."""
TOKENS = 2048
"""Of a forward pass, padding included; more are read no faster, and take more memory. One text may have more."""


class Texts:
    """Training texts, and which rows of a cache are whose: those of text i run from `starts[i]` to `starts[i + 1]`.

    Args:
        data: Items with `input_ids` and `labels` (T,), and `index`, their position in the data set.
        collator: Pads as the trainer does.
    """

    def __init__(self, data: Dataset[Item], collator: Collator) -> None:
        self.data, self.collator = data, collator
        self.starts, self.lengths, digest = [0], list[int](), hashlib.sha256()
        for position in range(len(data)):  # type: ignore[arg-type]
            ids, labels = data[position]["input_ids"], data[position]["labels"]
            self.starts.append(self.starts[-1] + int((labels[1:] != IGNORED).sum()))
            self.lengths.append(len(ids))
            digest.update(b"%d " % len(ids) + ids.numpy().tobytes() + labels.numpy().tobytes())
        self.digest = digest.hexdigest()

    def batches(self) -> list[list[int]]:
        """The texts by length, longest first: little padding, and what does not fit on the device fails at once."""
        order = sorted(range(len(self.lengths)), key=lambda text: -self.lengths[text])
        batches = []
        while order:
            size = max(1, TOKENS // self.lengths[order[0]])
            batches.append(order[:size])
            order = order[size:]
        return batches


@dataclass(frozen=True)
class States:
    """What is kept of a teacher beside its head."""

    rows: Tensor
    """(N, H), on the CPU or mapped from a file."""
    starts: Sequence[int]
    """As in `Texts`."""
    dtype: torch.dtype
    """Of the states as the teacher made them, and as its head takes them."""

    def of(self, batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
        """States (n, H) at the counted positions of a batch, on its device; of a text either all or none count."""
        texts = [text for text, some in zip(batch["index"].tolist(), counted.any(1).tolist(), strict=True) if some]
        rows = [self.rows[self.starts[text] : self.starts[text + 1]] for text in texts]
        return (torch.cat(rows) if rows else self.rows[:0]).to(counted.device, self.dtype)


def states_size(base: Base, texts: Texts, kept: CacheDtype) -> int:
    """Bytes that the states of a task model on a base take, by the base's configuration: nothing is loaded or run."""
    return texts.starts[-1] * state_size(load_config(base), base, kept)


def state_size(config: PreTrainedConfig, base: Base, kept: CacheDtype) -> int:
    """Bytes of the state from which a task model on a base of this configuration predicts one target."""
    text = config.get_text_config()
    names = (kept, "float32" if base.quantization else base.dtype, text.dtype or torch.float32)
    found = next(name for name in names if name != "auto")
    dtype: torch.dtype = getattr(torch, found) if isinstance(found, str) else found
    return int(text.hidden_size) * dtype.itemsize


def check_room(size: int, folder: Path | None, way_out: str | None = None) -> None:
    """Refuse caches that this machine cannot hold, rather than be killed when its memory or disk is full.

    With several processes each of them must call this: where one lacks room all refuse, and none waits for it.

    Args:
        size: Bytes of all of them; 0 where all are there.
        folder: Where they are to lie; None is the main memory, where each process of this machine has its own.
        way_out: What to do where they do not fit, if that is not to keep them elsewhere.

    Raises:
        MuscleError: They do not fit; or they are to be written by several machines, whose writes into one file a
            network's file system does not keep apart.
    """
    here, everywhere = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if folder and size and here and everywhere != here:
        raise MuscleError(
            "the processes of several machines cannot write what the teachers say into one file: set `teacher_cache` "
            "under `alignment` to `memory` or `off`"
        )
    needed, free = (size, free_disk(folder)) if folder else (size * int(here or 1), free_memory())
    processes()  # makes them one job
    needed, free = min(gather_object([(needed, free)]), key=lambda found: found[1] - found[0])
    if needed > free:
        where, elsewhere = (f"in {folder}", "`off`") if folder else ("of memory", "`disk` or `off`")
        raise MuscleError(
            f"what the teachers say of the training texts takes {in_words(needed)} {where}, where {in_words(free)} "
            f"are free: {way_out or f'set `teacher_cache` under `alignment` to {elsewhere}'}"
        )


def compute_states(model: nn.Module, texts: Texts, kept: CacheDtype, folder: Path | None, report: Report) -> States:
    """Run a task model once over its training texts.

    In memory, each process of a job has all of them. On disk, each writes its share into one file, which all must see
    under one path, and then waits for the others.

    Args:
        model: The task model; its modes are as before afterwards.
        texts: What it reads.
        kept: Precision of what is kept.
        folder: Of the files; None keeps the states in memory.
        report: Told how far this process is.

    Raises:
        MuscleError: The model makes logits in a way that `Head` does not know, or the folder cannot be written.
    """
    move(model, device())
    with evaluating(model):
        if not head_is_known(model):
            raise unknown_head(model)
        like = read_states(model, lambda hidden, _: hidden, input_ids=torch.tensor([[0, 1]], device=device()))
        dtype = like.dtype if kept == "auto" else getattr(torch, kept)
        if folder is None:
            rows = torch.empty(texts.starts[-1], like.shape[-1], dtype=dtype)
            for first, states in _computed(model, texts, texts.batches(), report):
                rows[first : first + len(states)] = states
            return States(rows, texts.starts, like.dtype)
        try:
            _write_states(model, texts, like, dtype, folder, report)
        except OSError as error:
            raise MuscleError(
                f"what a teacher says cannot be written to {folder} ({error.strerror}): make room, or set "
                "`teacher_cache: off` under `alignment`"
            ) from None
    written = open_states(folder, texts)
    if not written:
        raise MuscleError(
            f"{folder} is not the same folder in all processes: let them share it, or set `teacher_cache: memory`"
        )
    return written


def open_states(folder: Path, texts: Texts) -> States | None:
    """What `compute_states` kept on disk, mapped into memory page by page as it is read; None if it is not whole.

    Raises:
        MuscleError: It is of other texts.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    if record["texts"] != texts.digest:
        raise MuscleError(f"{folder} holds what a teacher says of other texts: remove it")
    shape = texts.starts[-1], record["width"]
    rows = torch.from_file(
        str(folder / ROWS), shared=False, size=shape[0] * shape[1], dtype=getattr(torch, record["dtype"])
    )
    return States(rows.view(shape), texts.starts, getattr(torch, record["own_dtype"]))


def _write_states(
    model: nn.Module, texts: Texts, like: Tensor, dtype: torch.dtype, folder: Path, report: Report
) -> None:
    """This process's share of the rows; then, of the main process, the head, and last the record."""
    job = processes()
    folder.mkdir(parents=True, exist_ok=True)
    mine = texts.batches()[job.process_index :: job.num_processes]
    (folder / ROWS).touch()
    with (folder / ROWS).open("r+b") as file:  # other processes write into it, too
        for first, states in _computed(model, texts, mine, report):
            file.seek(first * like.shape[-1] * dtype.itemsize)
            file.write(states.to(dtype).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    job.wait_for_everyone()
    if job.is_main_process:
        Head.of(model).save(folder / HEAD, like)
        record = {"texts": texts.digest, "width": like.shape[-1], "dtype": _name(dtype), "own_dtype": _name(like.dtype)}
        partial = folder / f"{RECORD}.partial"
        partial.write_text(json.dumps(record) + "\n")
        partial.replace(folder / RECORD)
    job.wait_for_everyone()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _computed(
    model: nn.Module, texts: Texts, batches: Sequence[list[int]], report: Report
) -> Iterator[tuple[int, Tensor]]:
    """Of each text its first row and its states (n, H), on the CPU."""
    loader = DataLoader(texts.data, batch_sampler=batches, collate_fn=texts.collator)
    for done, (numbers, batch) in enumerate(zip(batches, loader, strict=True), start=1):
        batch = {name: tensor.to(device()) for name, tensor in batch.items()}
        states = counted_states(model, batch, batch["labels"][:, 1:] != IGNORED).cpu()
        sizes = [texts.starts[text + 1] - texts.starts[text] for text in numbers]
        yield from zip((texts.starts[text] for text in numbers), torch.split(states, sizes), strict=True)
        report(done / len(batches), "teachers read the training texts")


def counted_states(model: nn.Module, batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
    """A model's final hidden states (n, H) from which the counted tokens (B, T - 1) of a batch are predicted."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return read_states(model, lambda hidden, _: hidden[:, :-1][counted], **inputs, use_cache=False)
