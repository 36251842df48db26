"""One alignment, trained three ways: a plain script, the best that published parts give, and this project.

All of them minimise the paper's eq. 1 with its mask (`student_wrong`) and temperature, by AdamW on the LoRA adapter of
the new model, 32 texts per optimiser step, the same texts in the same steps. `training.py` measures them on CPUs and
`gpu.py` on a GPU, each in a process of its own.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from texts import Texts
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.optim import optimizer as optimizers
from transformers import PreTrainedModel

from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.heads import Head
from muscle.update.lora import add_adapter
from muscle.update.models import device
from muscle.update.objectives import Objective, Read, compatibility
from muscle.update.recipe import Base, LoraSettings, TaskModel, TrainingSettings
from muscle.update.rows import Outcome
from muscle.update.settings import SideName
from muscle.update.teacher_cache import Texts as Sources
from muscle.update.teachers import Teacher, Teachers
from muscle.update.tokenized import IGNORED
from muscle.update.trainer import train

TEXTS_PER_STEP = 32
TEMPERATURE = 2.0
LEARNING_RATE = 1e-4
OLD, NEW = 0, 1  # seeds of the two bases and their adapters

Batch = dict[str, Tensor]
Loss = Callable[[Batch], Tensor]
"""Of a batch: the sum over its targets."""


@dataclass(frozen=True)
class Work:
    """What each variant is given."""

    base: Callable[[int], PreTrainedModel]
    """Makes a base of a seed, on the device."""
    rank: int
    """Of the adapters."""
    data: Texts
    """What to train on."""
    batch_size: int
    """Texts per forward pass."""
    epochs: int

    def student(self) -> PeftModel:
        """The new task model, whose adapter trains."""
        return task_model(self.base(NEW), self.rank, NEW)

    def teacher(self, seed: int) -> PeftModel:
        """A frozen task model of its own."""
        return task_model(self.base(seed), self.rank, seed).eval().requires_grad_(False)


def task_model(base: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """A base with an adapter that changes what it says, as a trained one does."""
    model = add_adapter(base, LoraSettings(rank=rank), seed)
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(0.02 * torch.randn(weight.shape, generator=random))
    return model


@dataclass
class Watch:
    """Clock and witness of one training run: whoever owns the loop, torch tells of every optimiser step.

    Building the models is no part of the time: every variant has to, whatever it does next.
    """

    names: dict[int, str] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first optimiser step, by the parameter's name."""
    before: float = 0.0
    """Seconds spent once, before training."""
    training: float = 0.0
    """Seconds of the whole training run, whatever it does around its steps included."""
    marks: list[float] = field(default_factory=list)
    """When each step ended."""

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around what is done once, before training."""
        start = _now()
        yield
        self.before += _now() - start

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what does not count, in the midst of what is done once."""
        start = _now()
        yield
        self.before -= _now() - start

    @contextmanager
    def watching(self, student: PeftModel) -> Iterator[None]:
        """Around training."""
        self.names = {id(weight): name for name, weight in student.named_parameters() if weight.requires_grad}
        hooks = (
            optimizers.register_optimizer_step_pre_hook(self._before_step),
            optimizers.register_optimizer_step_post_hook(self._after_step),
        )
        start = _now()
        yield
        self.training = _now() - start
        for hook in hooks:
            hook.remove()

    def seconds(self, epochs: int) -> dict[str, float]:
        """Seconds of an epoch, of what is done once, and of 1 and 10 epochs with it."""
        steps = len(self.marks) // epochs
        ends = self.marks[steps - 1 :: steps]
        epoch = float(np.median(np.diff(ends))) if epochs > 1 else self.training
        once = self.before + max(0.0, self.training - epochs * epoch)
        return {"epoch": epoch, "once": once, "epochs_1": once + epoch, "epochs_10": once + 10 * epoch}

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self.marks:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            self.gradients = {self.names[id(weight)]: weight.grad.float().cpu().clone() for weight in weights}

    def _after_step(self, *_: Any) -> None:
        self.marks.append(_now())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def naive(work: Work, watch: Watch) -> list[float]:
    """The script that one writes first: three models, all logits of all positions, the two terms of eq. 1.

    Returns:
        The loss of each optimiser step, as from all variants.
    """
    old, new, student = work.teacher(OLD), work.teacher(NEW), work.student()

    def loss(batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = student(**inputs, use_cache=False).logits[:, :-1].float()
        with torch.no_grad():
            old_logits, new_logits = (m(**inputs, use_cache=False).logits[:, :-1].float() for m in (old, new))
        targets = batch["labels"][:, 1:]
        wrong = logits.argmax(-1) != targets
        says = F.log_softmax(logits / TEMPERATURE, -1)
        to_old, to_new = (
            F.kl_div(says, F.log_softmax(teacher / TEMPERATURE, -1), reduction="none", log_target=True).sum(-1)
            for teacher in (old_logits, new_logits)
        )
        by_position: Tensor = wrong * to_old + ~wrong * to_new
        return (by_position * (targets != IGNORED)).sum()

    return _train(work, watch, student, loss)


def trl(work: Work, watch: Watch) -> list[float]:
    """The strong peer, on TRL's fused kernel: no logits of positions that are no targets, and none kept.

    The new teacher is an adapter on the student's own base.
    """
    old, student = work.teacher(OLD), work.student()
    student.add_adapter("new", student.peft_config["default"])
    set_peft_model_state_dict(student, get_peft_model_state_dict(student), adapter_name="new")
    old_head, head = (model.get_output_embeddings().weight for model in (old, student))

    def states(model: PeftModel, batch: Batch) -> Tensor:
        """Final hidden states (n, H) at the targets."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden: Tensor = model.get_base_model().model(**inputs, use_cache=False).last_hidden_state
        rows: Tensor = hidden[:, :-1][batch["labels"][:, 1:] != IGNORED]
        return rows

    def loss(batch: Batch) -> Tensor:
        targets = batch["labels"][:, 1:]
        with torch.no_grad():
            old_states = states(old, batch)
            student.set_adapter("new", inference_mode=True)
            new_states = states(student, batch)
            student.set_adapter("default")
        teachers = ((old_states, old_head), (new_states, head))
        return _trl_divergence(states(student, batch), head, targets[targets != IGNORED], teachers)

    return _train(work, watch, student, loss)


def _trl_divergence(own: Tensor, head: Tensor, gold: Tensor, teachers: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Eq. 1 by TRL's kernel, one call per teacher, over the student's states (n, H) at the targets (n,).

    What the mask needs is one more product with the head: the kernel does not say which token is the first choice.
    """
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    with torch.no_grad():
        wrong = torch.cat([(some.to(head.dtype) @ head.T).argmax(-1) for some in torch.split(own, 256)]) != gold
    total = own.new_zeros((), dtype=torch.float32)
    for chosen, (states, teacher_head) in zip((wrong, ~wrong), teachers, strict=True):
        if chosen.any():
            arguments = (own[chosen], head, None, states[chosen], teacher_head, None, 0.0, TEMPERATURE)
            total = total + ChunkedDivergenceFunction.apply(*arguments)[0].sum()
    return total


def ours(
    work: Work, watch: Watch, cache: Literal["memory", "disk", "off"] = "memory", trl_kernel: bool = False
) -> list[float]:
    """This project: what `muscle align` does between loading the data and saving the adapter.

    Args:
        work: What to do.
        watch: How long it takes.
        cache: Where the teachers' states are kept.
        trl_kernel: Put TRL's kernel in place of this project's loss.
    """
    alignment = AlignmentSettings(temperature=TEMPERATURE, teacher_cache=cache)
    config = Base(base=str(work.data.base))  # its sizes; the weights are those of `work`
    models: dict[SideName, TaskModel] = {"old": TaskModel(base=config), "new": TaskModel(base=config)}
    work_dir = Path(tempfile.mkdtemp(dir=work.data.base.parent))  # another run's would be resumed
    folders: dict[SideName, Path] = {"old": work_dir / "old-states", "new": work_dir / "new-states"}

    def load(_: TaskModel) -> PeftModel:
        with watch.aside():
            return work.teacher(OLD)

    with watch.preparing():
        teachers = Teachers(models, load, Sources(work.data, work.data.collator), alignment, folders, _silent)
        old = teachers.old()
        with watch.aside():
            student = work.student()
        new = teachers.new(student, sharded=False)
        assert old
        assert new
        objective = _trl_objective(student, old, new) if trl_kernel else compatibility(old, new, alignment)
    settings = TrainingSettings(
        epochs=work.epochs,
        learning_rate=LEARNING_RATE,
        batch_size=work.batch_size,
        accumulation=TEXTS_PER_STEP // work.batch_size,
        warmup_steps=0,
        schedule="constant",
        max_grad_norm=0.0,
        select_by="last",
    )
    with watch.watching(student):
        train(student, objective, settings, work.data, None, work.data.collator, work_dir / "checkpoints", _silent)
    lines = (work_dir / "log.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def _trl_objective(student: PeftModel, old: Teacher, new: Teacher) -> Objective:
    """Eq. 1 for the project's trainer, of its cached states, by TRL's kernel."""
    head = student.get_output_embeddings().weight  # the new teacher's too

    def objective(batch: Mapping[str, Tensor]) -> Read:
        targets = batch["labels"][:, 1:]
        counted = targets != IGNORED
        (old_states, old_head), (new_states, _) = (teacher.states(batch, counted) for teacher in (old, new))
        teachers = ((old_states, next(old_head.parameters())), (new_states, head))

        def read(hidden: Tensor, _: Head) -> Outcome:
            total = _trl_divergence(hidden[:, :-1][counted], head, targets[counted], teachers)
            return total, counted.sum(), {}

        return read

    return objective


def _silent(share: float, words: str) -> None:
    """Report nothing."""


def _train(work: Work, watch: Watch, student: PeftModel, loss: Loss) -> list[float]:
    """A plain loop: texts in random order, batches padded to their longest, the mean over a step's targets."""
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=0.0)
    losses = []
    with watch.watching(student):
        for epoch in range(work.epochs):
            order = np.random.default_rng((0, epoch)).permutation(len(work.data)).tolist()
            for first in range(0, len(order), TEXTS_PER_STEP):
                texts = [work.data[index] for index in order[first : first + TEXTS_PER_STEP]]
                targets = sum(int((text["labels"][1:] != IGNORED).sum()) for text in texts)
                total = 0.0
                for start in range(0, len(texts), work.batch_size):
                    batch = work.data.collator(texts[start : start + work.batch_size])
                    mean = loss({name: tensor.to(device()) for name, tensor in batch.items()}) / targets
                    torch.autograd.backward(mean)
                    total += float(mean.detach())
                optimizer.step()
                optimizer.zero_grad()
                losses.append(total)
    return losses


VARIANTS: dict[str, Callable[[Work, Watch], list[float]]] = {
    "naive": naive,
    "trl": trl,
    "ours": ours,
    "ours, states on disk": partial(ours, cache="disk"),
    "ours, no cache": partial(ours, cache="off"),
    "ours, TRL's kernel": partial(ours, trl_kernel=True),
}
