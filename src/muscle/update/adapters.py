"""Task adapters and compatibility adapters: trained, and saved as ordinary PEFT adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accelerate.utils import parse_flag_from_env
from msgspec import to_builtins
from peft import PeftModel

from muscle.update.across.old_side import OldSide, way_across
from muscle.update.alignment_settings import Across, AlignmentSettings, CacheDtype
from muscle.update.answers import all_choices, answers_folder, keep_answers
from muscle.update.distributed import processes, save_adapter
from muscle.update.lora import add_adapter
from muscle.update.models import load_base, load_tokenizer
from muscle.update.objectives import Objective, OldTeacher, compatibility, task_objective
from muscle.update.pipeline import CHECKPOINTS, Report
from muscle.update.prompts import Example
from muscle.update.provenance import folder_key, identity, provenance
from muscle.update.recipe import Base, EvaluationSettings, LoraSettings, TaskModel, TrainingSettings
from muscle.update.scoring import flips_on_validation
from muscle.update.settings import SideName, TargetTokens
from muscle.update.tasks import Task
from muscle.update.teacher_cache import Texts, check_room, compute_states, states_size
from muscle.update.teachers import Teachers
from muscle.update.tokenized import TokenizedExamples
from muscle.update.trainer import Flips, train
from muscle.update.training_arguments import batches_per_epoch, check_warmup
from muscle.update.training_data import TaskData, unlabelled_texts


def train_task_adapter(
    base: Base, task: Task, lora: LoraSettings, settings: TrainingSettings, destination: Path, report: Report
) -> None:
    """Train an adapter for a task on a base with plain cross-entropy and save the best epoch's to `destination`.

    Training goes on from the checkpoints under `destination` where there are some.

    Raises:
        MuscleError: The base or the task's data cannot be loaded, or training diverges.
    """
    processes()  # before any model: it says which device is this process's
    data = TaskData(base, task, settings.tokens)
    check_warmup(settings, batches_per_epoch(settings, len(data.training.items)))
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
    states_root: Path | None = None,
    flips: Flips | None = None,
    flips_last: int | None = None,
    answers: Path | None = None,
) -> None:
    """Train the new task adapter on, towards two frozen task models, and save the best epoch's (section 4).

    The old model's body is gone before the new base is loaded, unless its teacher is to run beside the student.

    Args:
        old: The old task model. None where nothing reads it: not the weight, nor the selection by flips, nor the
            answers to inputs without labels.
        new: The new task model; training starts from its adapter, or from a fresh one if it was fine-tuned whole.
        task: Its training split is learnt from, and the inputs without labels that it names.
        alignment: What to learn from. Without a weight no teacher is read: plain cross-entropy on gold texts, the
            control.
        lora: Shape of a fresh adapter.
        settings: How long and how fast to learn.
        evaluation: How negative flips are counted, where they select the epoch, and both models answer.
        destination: Where the PEFT adapter is saved; training goes on from the checkpoints there.
        report: Told after every step.
        teacher_states: By teacher, the folder where `cache_teacher` has kept its states on disk.
        states_root: Where states are kept on disk otherwise, for all trainings with that folder; None: for this one.
        flips: What selects the epoch where flips do, in place of the negative flips on the validation items.
        flips_last: After how many epochs at the end they are counted; None: after each.
        answers: The folder where `answers.keep_answers` has kept what both models answer to inputs without labels;
            None: they are asked here, where gold texts and such inputs are to be learnt from.

    Raises:
        MuscleError: A model or the task's data cannot be loaded, the teachers' states do not fit, or training diverges.
    """
    processes()
    root = states_root or destination / CHECKPOINTS / "teachers"
    both: dict[SideName, TaskModel] = {"new": new} if old is None else {"old": old, "new": new}
    unlabelled: list[Example] = []
    if alignment.weight and alignment.unlabelled:
        unlabelled = _unlabelled_texts(old, new, task, alignment, evaluation, answers, root)
    data = TaskData(new.base, task, settings.tokens, alignment.texts if alignment.weight else "gold", unlabelled)
    check_warmup(settings, batches_per_epoch(settings, len(data.training.items)))  # before any teacher runs
    teachers, aligned = None, dict[str, float]()
    old_teacher: OldTeacher | None = None
    if alignment.weight:
        side = OldSide.where_needed(old, new, task, data, alignment, settings.tokens)
        texts = Texts(data.training, data.collator)
        folders = teacher_states or _state_folders(root, both, texts, side, alignment)
        teachers = Teachers(both, data.load, texts, alignment, folders, report, ("new",) if side else ("old", "new"))
        if side:
            old_teacher = said = side.teacher(texts, alignment, teachers.folder("old"), report, teachers.missing)
            aligned = {"aligned": round(said.aligned, 4)}
        else:
            old_teacher = teachers.old()
    if old and settings.select_by == "flips" and not flips:
        flips = flips_on_validation(old, task, data.tokenizer, evaluation)
    student = data.load(new, trainable=True)
    if new.adapter is None:
        student = add_adapter(student, lora, settings.seed)
    objective, models = task_objective, [old, new] if old and (teachers or flips) else [new]
    if teachers:
        new_teacher = teachers.new(student, _is_sharded(settings))
        objective = compatibility(old_teacher, new_teacher, alignment, data.scales)
    record = {
        "alignment": alignment.as_dict(),
        "lora": lora.as_dict() if new.adapter is None else None,
        "training": settings.as_dict(),
        "evaluation": evaluation.as_dict() if flips else None,
        "texts": data.counts | aligned,
    }
    _train_and_save(student, objective, settings, data, destination, report, models, record, flips, flips_last)


def cache_teacher(
    old: TaskModel | None,
    new: TaskModel,
    task: Task,
    tokens: TargetTokens,
    kept: CacheDtype,
    destination: Path,
    report: Report,
    texts: Literal["gold", "choices"] = "gold",
    unlabelled: bool = False,
    answers: Path | None = None,
    across: Across | None = None,
    level: str = "token",
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
        texts: What is learnt from an item, as in `AlignmentSettings`.
        unlabelled: Whether inputs without labels are read as well.
        answers: The folder where `answers.keep_answers` has kept texts of these; needed for gold texts.
        across: How an old teacher with another tokenizer is heard, as in `AlignmentSettings`.
        level: What is compared with it, likewise.

    Raises:
        MuscleError: A model or the task's data cannot be loaded, or the states do not fit on the disk.
    """
    processes()
    examples = unlabelled_texts(task, load_tokenizer(new.base), texts, answers) if unlabelled else []
    data = TaskData(new.base, task, tokens, texts, examples)
    rows, teacher = Texts(data.training, data.collator), old or new
    across = way_across(old, new, data, task, across, level) if old else None
    if old and across:
        OldSide(old, task, data, tokens, texts, across).keep(kept, destination, report)
        return
    check_room(states_size(teacher.base, rows, kept), destination)
    compute_states(data.load(teacher, trainable=not old), rows, kept, destination, report)


class Size(NamedTuple):
    """How much an epoch of training reads."""

    items: int
    """What a batch is made of: texts, or with all choices' texts the items that have them."""
    tokens: int
    """Of all their texts, without padding."""


def training_size(base: Base, task: Task, alignment: AlignmentSettings, tokens: TargetTokens) -> Size:
    """How much an alignment of a task reads in an epoch.

    Raises:
        MuscleError: The task's data cannot be loaded.
    """
    tokenizer, inputs, answers = load_tokenizer(base), list[Example](), 0.0
    if alignment.weight and alignment.unlabelled:
        asked = task.unlabelled(tokenizer)
        if alignment.texts == "choices":
            inputs = all_choices(asked)
        else:  # nobody has answered yet: they are taken to be as long as the gold answers are on average
            inputs = [Example(each[0].args[0], "", -1 - number, right=False) for number, each in enumerate(asked)]
            gold = task.examples("training", tokenizer)
            whole, bare = (
                TokenizedExamples(rows, tokenizer) for rows in (gold, [replace(row, answer="") for row in gold])
            )
            answers = (_tokens(whole) - _tokens(bare)) / max(1, len(gold)) * len(inputs)
    texts = TaskData(base, task, tokens, alignment.texts if alignment.weight else "gold", inputs).training
    return Size(len(texts.items), _tokens(texts) + round(answers))


def _tokens(texts: TokenizedExamples) -> int:
    return sum(map(len, texts.ids))


def _unlabelled_texts(
    old: TaskModel | None,
    new: TaskModel,
    task: Task,
    alignment: AlignmentSettings,
    evaluation: EvaluationSettings,
    answers: Path | None,
    root: Path,
) -> list[Example]:
    """Texts of the inputs without labels; what both models answer to them is kept under `root` if it is nowhere yet."""
    tokenizer = load_tokenizer(new.base)
    if alignment.texts == "gold" and not answers:
        assert old
        answers = answers_folder(root, old, new, task, evaluation)
        keep_answers(old, new, task, evaluation, answers)
    return unlabelled_texts(task, tokenizer, alignment.texts, answers)


def _state_folders(
    root: Path,
    models: Mapping[SideName, TaskModel],
    texts: Texts,
    old_side: OldSide | None,
    alignment: AlignmentSettings,
) -> dict[SideName, Path]:
    """Where trainings keep states on disk while they are not finished: other models or texts have other folders."""
    folders: dict[SideName, Path] = {}
    for side, model in models.items():
        digests = [old_side.texts.digest, alignment.across] if side == "old" and old_side else [texts.digest]
        content = json.dumps([*identity(model), *digests, alignment.cache_dtype])
        folders[side] = root / f"{side}-{folder_key(content.encode())}"
    return folders


def _is_sharded(settings: TrainingSettings) -> bool:
    """Whether the job is to share out the weights of the model, known before a trainer does it."""
    launched = (parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED", "PARALLELISM_CONFIG"))
    return settings.deepspeed is not None or any(launched)


def _train_and_save(
    model: PeftModel,
    objective: Objective,
    settings: TrainingSettings,
    data: TaskData,
    destination: Path,
    report: Report,
    models: Sequence[TaskModel],
    record: dict[str, Any],
    flips: Flips | None = None,
    flips_last: int | None = None,
) -> None:
    validation = data.validation if len(data.validation) else None
    checkpoints = destination / CHECKPOINTS
    texts = data.training, validation, data.collator
    result = train(model, objective, settings, *texts, checkpoints, report, flips, flips_last)
    save_adapter(model, destination)
    if processes().is_main_process:
        record |= {"task": data.settings, "result": to_builtins(result)}
        (destination / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        origins = provenance(models, data.hashes, record)
        (destination / "provenance.json").write_text(json.dumps(origins, indent=2) + "\n")
