"""Several processes, one result: who gets which texts, and sums over all of them. With one process all of it is plain.

Every process takes the same number of batches, because its forward and backward passes wait for the others'. A process
that has no texts left repeats one that counts for nothing, so that no text is ever counted twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from muscle.update.models import device
from muscle.update.tokenized import IGNORED

Item = dict[str, Tensor]
Collator = Callable[[list[Item]], Item]


def processes() -> PartialState:
    """What accelerate knows of the processes of this job; the first call, in each of them, makes them one."""
    return PartialState(cpu=device().type == "cpu")  # on CPUs they are one job only if it is told


def leave() -> None:
    """End the job of several processes in order: left to Python's shutdown, a process may abort after all is done."""
    if distributed.is_available() and distributed.is_initialized():
        processes().wait_for_everyone()
        distributed.destroy_process_group()


def process() -> tuple[int, int]:
    """Number of this process, counted from 0, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def over_processes(values: Sequence[float], where: torch.device) -> list[float]:
    """The sums of the values over all processes, each of which must call this.

    Args:
        values: This process's own.
        where: Where the processes exchange them: that of the model.
    """
    if process()[1] == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=where)
    distributed.all_reduce(sums)
    result: list[float] = sums.tolist()
    return result


def batch_count(items: int, batch_size: int, processes: int) -> int:
    """How many batches of so many items each process gets; the last ones may be smaller, or count for nothing."""
    return -(-items // (batch_size * processes))


class SharedLoader(DataLoader[Item]):
    """This process's batches of a data set: those of one process with as many times the batch size, dealt out.

    Items are dealt out, each with all of its texts; an item is one text where the data set says nothing else. Items of
    like length share a batch, so that it is padded less, where that changes no optimiser step: among the items of one
    step, those of a pool of steps, or all where there are no steps. The length of an item is that of its longest text.

    Args:
        data: The whole data set, the same in every process. The lengths of its texts are those of its `ids`, where it
            has them, and the texts of each item those of its `items`.
        batch_size: Items per process.
        collator: Turns items into a padded batch.
        seed: Decides, with the epoch, which items make up each step. None is for a data set that is only gone through:
            its items are sorted by length.
        accumulation: Batches per optimiser step.
        length_pool: Steps whose items are sorted by length together, then cut into steps in random order.
    """

    def __init__(
        self,
        data: Dataset[Item],
        batch_size: int,
        collator: Collator,
        seed: int | None = None,
        accumulation: int = 1,
        length_pool: int = 1,
    ) -> None:
        assert isinstance(data, Sized)
        ids = getattr(data, "ids", None)
        lengths = [0] * len(data) if ids is None else [len(text) for text in ids]
        items = getattr(data, "items", None) or [[text] for text in range(len(data))]
        longest = [max(lengths[text] for text in texts) for texts in items]
        self._batches = _Batches(longest, batch_size, seed, *process(), accumulation, length_pool, texts=items)
        super().__init__(
            _WithSilent(data),
            batch_sampler=self._batches,
            collate_fn=collator,
            pin_memory=torch.cuda.is_available(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0."""
        self._batches.epoch = epoch


@dataclass
class _Batches:
    """Positions of one process's texts, batch by batch; -1 - i is text i without targets."""

    lengths: Sequence[int]
    """Of each item."""
    batch_size: int
    seed: int | None
    process: int
    processes: int
    accumulation: int = 1
    length_pool: int = 1
    epoch: int = 0
    texts: Sequence[Sequence[int]] | None = None
    """Of each item; None: item i is text i."""

    def __len__(self) -> int:
        return batch_count(len(self.lengths), self.batch_size, self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for start in range(0, len(order), self.batch_size * self.processes):
            mine = start + self.process * self.batch_size
            texts = [text for item in order[mine : mine + self.batch_size] for text in self._texts(item)]
            yield texts or [-1 - self._texts(order[start])[0]]

    def _texts(self, item: int) -> Sequence[int]:
        return [item] if self.texts is None else self.texts[item]

    def _order(self) -> list[int]:
        """All items; which processes there are shows only in how many a step has."""
        if self.seed is None:
            return self._longest_first(range(len(self.lengths)))
        rng = np.random.default_rng((self.seed, self.epoch))
        order: list[int] = rng.permutation(len(self.lengths)).tolist()
        if self.accumulation * self.length_pool == 1:
            return order
        step = self.batch_size * self.processes * self.accumulation
        whole = len(order) - len(order) % step  # the last step, where items are left, stays as it was drawn
        steps: list[list[int]] = []
        for start in range(0, whole, step * self.length_pool):
            pool = self._longest_first(order[start : min(start + step * self.length_pool, whole)])
            cut = [pool[first : first + step] for first in range(0, len(pool), step)]
            steps += [cut[i] for i in rng.permutation(len(cut))]
        return [item for items in (*steps, self._longest_first(order[whole:])) for item in items]

    def _longest_first(self, items: Sequence[int]) -> list[int]:
        return sorted(items, key=lambda item: -self.lengths[item])


@dataclass
class _WithSilent(Dataset[Item]):
    data: Dataset[Item]

    def __getitem__(self, index: int) -> Item:
        if index >= 0:
            return self.data[index]
        item = self.data[-1 - index]
        return {**item, "labels": torch.full_like(item["labels"], IGNORED)}


def save_adapter(model: PeftModel, destination: Path) -> None:
    """Save the adapter, also one whose weights are sharded over the processes; each of them must call this.

    Only the main process writes, and it alone needs the destination.
    """
    weights: dict[str, Any] = {
        name: weight.full_tensor() if isinstance(weight, DTensor) else weight
        for name, weight in model.state_dict().items()
        if model.base_model.prefix in name  # the base stays in its shards
    }
    main = process()[0] == 0
    model.save_pretrained(str(destination), state_dict=weights, is_main_process=main)
    if main:
        _sort_targets(destination / "adapter_config.json")


def _sort_targets(file: Path) -> None:
    """PEFT writes a set in any order; the same training is to give the same bytes."""
    config = json.loads(file.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
