"""Task adapters and compatibility adapters: trained, and saved as ordinary PEFT adapters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import parse_flag_from_env
from msgspec import to_builtins
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError, quoted
from muscle.update.distributed import processes, save_adapter
from muscle.update.lora import add_adapter
from muscle.update.models import load_base, load_task_model, load_tokenizer
from muscle.update.objectives import Objective, compatibility, task_objective
from muscle.update.pipeline import CHECKPOINTS, Report
from muscle.update.provenance import provenance
from muscle.update.recipe import (
    AlignmentSettings,
    Base,
    CacheDtype,
    EvaluationSettings,
    LoraSettings,
    SideName,
    TargetTokens,
    TaskModel,
    TrainingSettings,
)
from muscle.update.scoring import flips_on_validation
from muscle.update.tasks import PaddingCollator, Task, TokenizedExamples
from muscle.update.teacher_cache import Texts, check_room, compute_states, states_size
from muscle.update.teachers import Teachers
from muscle.update.trainer import Flips, train


def train_task_adapter(
    base: Base, task: Task, lora: LoraSettings, settings: TrainingSettings, destination: Path, report: Report
) -> None:
    """Train an adapter for a task on a base with plain cross-entropy and save the best epoch's to `destination`.

    Training goes on from the checkpoints under `destination` where there are some.

    Raises:
        MuscleError: The base or the task's data cannot be loaded, or training diverges.
    """
    processes()  # before any model: it says which device is this process's
    data = _TaskData(base, task, settings.tokens)
    loaded = load_base(base)
    data.check_fit(loaded, base)
    model = add_adapter(loaded, lora, settings.seed)
    record = {"lora": lora.as_dict(), "training": settings.as_dict()}
    _train_and_save(model, task_objective, settings, data, destination, report, [TaskModel(base=base)], record)


def train_compatibility_adapter(
    old: TaskModel | None,
    new: TaskModel,
    task: Task,
    alignment: AlignmentSettings,
    lora: LoraSettings,
    settings: TrainingSettings,
    evaluation: EvaluationSettings,
    destination: Path,
    report: Report,
    teacher_states: Mapping[SideName, Path] | None = None,
) -> None:
    """Train the new task adapter on, towards two frozen task models, and save the best epoch's (section 4).

    The old model's body is gone before the new base is loaded, unless its teacher is to run beside the student.

    Args:
        old: The old task model. Both bases must share one tokenizer. None where nothing reads it: no weight, and no
            selection by flips.
        new: The new task model; training starts from its adapter, or from a fresh one if it was fine-tuned whole.
        task: Its training split is learnt from.
        alignment: What to learn from. Without a weight no teacher is read: plain cross-entropy, the control.
        lora: Shape of a fresh adapter.
        settings: How long and how fast to learn.
        evaluation: How negative flips are counted, where they select the epoch.
        destination: Where the PEFT adapter is saved; training goes on from the checkpoints there.
        report: Told after every step.
        teacher_states: By teacher, the folder where `cache_teacher` has kept its states on disk.

    Raises:
        MuscleError: A model or the task's data cannot be loaded, the bases tokenize differently, the teachers' states
            do not fit, or training diverges.
    """
    processes()
    data = _TaskData(new.base, task, settings.tokens)
    teachers = flips = None
    if old and alignment.weight:
        check_same_tokenizer(old.base, new.base, data.tokenizer, task)
        texts = Texts(data.training, data.collator)
        folders = teacher_states or _state_folders(destination, {"old": old, "new": new}, texts, alignment)
        teachers = Teachers({"old": old, "new": new}, data.load, texts, alignment, folders, report)
    if old and settings.select_by == "flips":
        flips = flips_on_validation(old, task, data.tokenizer, evaluation)
    old_teacher = teachers.old() if teachers else None
    student = data.load(new, trainable=True)
    if new.adapter is None:
        student = add_adapter(student, lora, settings.seed)
    objective, models = task_objective, [old, new] if old and (teachers or flips) else [new]
    if teachers and old_teacher:
        objective = compatibility(old_teacher, teachers.new(student, _is_sharded(settings)), alignment)
    record = {
        "alignment": alignment.as_dict(),
        "lora": lora.as_dict() if new.adapter is None else None,
        "training": settings.as_dict(),
        "evaluation": evaluation.as_dict() if flips else None,
    }
    _train_and_save(student, objective, settings, data, destination, report, models, record, flips)


def cache_teacher(
    old: TaskModel | None,
    new: TaskModel,
    task: Task,
    tokens: TargetTokens,
    kept: CacheDtype,
    destination: Path,
    report: Report,
) -> None:
    """Keep on disk what a teacher says of a task's training texts, for all trainings that will ask.

    Args:
        old: The old task model, where it is the teacher.
        new: The new task model, whose tokenizer makes the texts; the teacher where no old one is given.
        task: Its training split is read.
        tokens: Which of its tokens are targets.
        kept: Precision of what is kept.
        destination: Folder of the files.
        report: Told how far it is.

    Raises:
        MuscleError: A model or the task's data cannot be loaded, the bases tokenize differently, or the states do not
            fit on the disk.
    """
    processes()
    data = _TaskData(new.base, task, tokens)
    texts, teacher = Texts(data.training, data.collator), old or new
    if old:
        check_same_tokenizer(old.base, new.base, data.tokenizer, task)
    check_room(states_size(teacher.base, texts, kept), destination)
    compute_states(data.load(teacher, trainable=not old), texts, kept, destination, report)


def check_same_tokenizer(old: Base, new: Base, new_tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Same means: identical ids on all training, validation and evaluation text, whatever else the tokenizers hold.

    Raises:
        MuscleError: There is a text that they tokenize differently.
    """
    old_tokenizer = load_tokenizer(old)
    definition = _definition(new_tokenizer)
    if definition and definition == _definition(old_tokenizer):
        return  # then the texts, shots and all, need not be rendered
    texts = list(_texts(task, new_tokenizer))
    for text, old_ids, new_ids in zip(
        texts, *(t(texts)["input_ids"] for t in (old_tokenizer, new_tokenizer)), strict=True
    ):
        if old_ids != new_ids:
            raise MuscleError(
                f"{old.base} and {new.base} tokenize {quoted(text)} differently: "
                "aligning needs two bases that share a tokenizer"
            )
    if old_tokenizer.eos_token_id != new_tokenizer.eos_token_id:
        raise MuscleError(
            f"{old.base} ends texts with token {old_tokenizer.eos_token_id}, {new.base} with "
            f"{new_tokenizer.eos_token_id}: aligning needs two bases that share a tokenizer"
        )


def _definition(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...] | None:
    """All that decides a tokenizer's ids, end of text included; None where not all of it can be seen.

    What a back end writes of itself holds only one of several words with one id, and not always the same.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return (backend.to_str(), tokenizer.get_vocab(), tokenizer.eos_token_id) if backend else None


def _texts(task: Task, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    for split in ("training", "validation"):
        yield from (row.context + row.answer for row in task.examples(split, tokenizer))
    yield from task.evaluation_texts(tokenizer)


class _TaskData:
    """Training and validation texts of a task in a base's tokens."""

    def __init__(self, base: Base, task: Task, tokens: TargetTokens) -> None:
        self.tokenizer = load_tokenizer(base)
        assert isinstance(self.tokenizer.pad_token_id, int)
        self.collator = PaddingCollator(self.tokenizer.pad_token_id)
        self.training, self.validation = (
            TokenizedExamples(task.examples(split, self.tokenizer), self.tokenizer, tokens)
            for split in ("training", "validation")
        )
        settings_of_texts = ("chat_template", "system_instruction", "validation_share", "train_limit", "seed")
        self.settings = {"name": task.name, **{name: getattr(task.settings, name) for name in settings_of_texts}}
        self.hash = task.data_hash()
        if not len(self.training):
            raise MuscleError(f"task {task.name}: nothing to train on: lower validation_share, or raise train_limit")
        if not len(self.validation) and task.settings.validation_share != 0:
            raise MuscleError(
                f"task {task.name}: no item can be held out for validation, since items with one prompt stay together: "
                "raise validation_share, or set it to 0 to keep the last epoch"
            )

    def load(self, model: TaskModel, trainable: bool = False) -> Any:
        """A task model that these texts fit, as `load_task_model` loads it."""
        loaded = load_task_model(model, trainable)
        self.check_fit(loaded, model.base)
        return loaded

    def check_fit(self, model: nn.Module, base: Base) -> None:
        """Refuse texts beyond the base's window, which evaluation cuts and training would not, or its vocabulary."""
        texts = [*self.training.ids, *self.validation.ids]
        longest, largest = max(map(len, texts)), max(map(max, texts))
        window = getattr(model.config, "max_position_embeddings", None)
        if isinstance(window, int) and longest > window:
            raise MuscleError(
                f"a training text has {longest} tokens, and {base.base} a window of {window}: leave such items out of "
                "the data, or choose a base with a longer window"
            )
        rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        if largest >= rows:
            raise MuscleError(
                f"the tokenizer gives token {largest}, and {base.base} knows {rows}: resize its embeddings to its "
                "tokenizer, or correct the tokenizer"
            )


def _state_folders(
    destination: Path, models: Mapping[SideName, TaskModel], texts: Texts, alignment: AlignmentSettings
) -> dict[SideName, Path]:
    """Where one training keeps states on disk while it is not finished: other models or texts have other folders."""
    folders: dict[SideName, Path] = {}
    for side, model in models.items():
        content = json.dumps([to_builtins(model), texts.digest, alignment.cache_dtype])
        name = f"{side}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        folders[side] = destination / CHECKPOINTS / "teachers" / name
    return folders


def _is_sharded(settings: TrainingSettings) -> bool:
    """Whether the job is to share out the weights of the model, known before a trainer does it."""
    launched = (parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED", "PARALLELISM_CONFIG"))
    return settings.deepspeed is not None or any(launched)


def _train_and_save(
    model: PeftModel,
    objective: Objective,
    settings: TrainingSettings,
    data: _TaskData,
    destination: Path,
    report: Report,
    models: Sequence[TaskModel],
    record: dict[str, Any],
    flips: Flips | None = None,
) -> None:
    validation = data.validation if len(data.validation) else None
    checkpoints = destination / CHECKPOINTS
    result = train(model, objective, settings, data.training, validation, data.collator, checkpoints, report, flips)
    save_adapter(model, destination)
    if processes().is_main_process:
        record |= {"task": data.settings, "result": to_builtins(result)}
        (destination / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        origins = provenance(models, {"data": data.hash}, record)
        (destination / "provenance.json").write_text(json.dumps(origins, indent=2) + "\n")
