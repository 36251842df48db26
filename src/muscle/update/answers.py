"""What both task models together answer to inputs without labels, kept as training texts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from lm_eval.api.instance import Instance
from msgspec import structs

from muscle.errors import MuscleError
from muscle.update.across.same_tokenizer import tokenizer_difference
from muscle.update.backends import LocalLM
from muscle.update.distributed import processes
from muscle.update.ensemble import Ensemble
from muscle.update.models import load_tokenizer
from muscle.update.prompts import Example
from muscle.update.provenance import folder_key, identity
from muscle.update.recipe import ANSWERING, EvaluationSettings, TaskModel
from muscle.update.tasks import Task
from muscle.update.two_models import Apart, Gated

ANSWERS = "answers.json"
"""The file of the texts: a list of objects."""
_SAMPLING = {"do_sample", "temperature", "top_k", "top_p", "min_p"}


def all_choices(inputs: Sequence[Sequence[Instance]]) -> list[Example]:
    """The texts with each choice of inputs of multiple choice, none of them right; items are numbered from -1 down."""
    return [
        Example(request.args[0], request.args[1], -1 - number, right=False)
        for number, asked in enumerate(inputs)
        for request in asked
    ]


class _Surer(Gated):
    """For answers that nobody evaluates."""

    asked_for, way_out = "`unlabelled`: two models", "set `unlabelled` under `alignment` to false"


def keep_answers(
    old: TaskModel, new: TaskModel, task: Task, settings: EvaluationSettings, folder: Path | None = None
) -> list[Example]:
    """One text for each input without a label of a task: what both task models together answer to it.

    Generated answers are decoded greedily from the mean of both models' logits, with the task's stop strings, and take
    the form of gold ones; where the tokenizers differ they are those of the model that is surer of its own. Of choices
    it is the one with the largest log-likelihood. Inputs are left out where the answer is empty or the task's first
    filter does not find it.

    Args:
        old: The old task model.
        new: The new task model, by whose chat template the inputs are asked.
        task: Its settings name the inputs.
        settings: Back end's arguments and batch size, where it is one of this process.
        folder: Where the texts are kept, and taken from if they are there already.

    Raises:
        MuscleError: There are no such inputs (`Task.unlabelled`), no answer is left, a model cannot be loaded,
            or the task decodes in a way that is not defined for both.
    """
    job = processes()
    if folder and (folder / ANSWERS).exists():
        return read_answers(folder)
    tokenizer = load_tokenizer(new.base)
    inputs = task.unlabelled(tokenizer)
    prompts = (part for asked in inputs for request in asked for part in request.args if isinstance(part, str))
    difference = tokenizer_difference(old.base, new.base, tokenizer, task, prompts)
    generated = inputs[0][0].request_type == "generate_until"
    ask = Ensemble if not difference else _Surer if generated else Apart
    both = ask(old, new, structs.replace(settings, draws=1))
    mine = range(job.process_index, len(inputs), job.num_processes)
    answered = _answers(both, task, [inputs[number] for number in mine])
    del both
    clear_device_cache(garbage_collection=True)
    pairs = [*zip(mine, answered, strict=True)]
    everything: list[tuple[int, tuple[str, str] | None]] = gather_object(pairs) if job.num_processes > 1 else pairs
    examples = [Example(text[0], text[1], -1 - number, right=False) for number, text in sorted(everything) if text]
    if not examples:
        raise MuscleError(
            f"task '{task.name}': both models together answer none of {len(inputs)} inputs without labels: set "
            "`unlabelled` under `alignment` to false"
        )
    if folder and job.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{ANSWERS}.partial"
        partial.write_bytes(msgspec.json.encode(examples) + b"\n")
        partial.replace(folder / ANSWERS)
    if folder:
        job.wait_for_everyone()
    return examples


def read_answers(folder: Path) -> list[Example]:
    """What `keep_answers` kept.

    Raises:
        MuscleError: The file is not there, or not whole.
    """
    try:
        return msgspec.json.decode((folder / ANSWERS).read_bytes(), type=list[Example])
    except (OSError, msgspec.DecodeError) as error:
        raise MuscleError(f"{folder / ANSWERS} cannot be read ({error}): remove {folder}") from error


def answers_folder(root: Path, old: TaskModel, new: TaskModel, task: Task, settings: EvaluationSettings) -> Path:
    """Where trainings keep answers while they are not finished: what decides them names the folder."""
    models = [identity(old), identity(new)]
    content = [models, task.unlabelled_hash(load_tokenizer(new.base)), [getattr(settings, name) for name in ANSWERING]]
    return root / f"answers-{folder_key(msgspec.json.encode(content))}"


def _answers(ensemble: LocalLM, task: Task, inputs: Sequence[Sequence[Instance]]) -> list[tuple[str, str] | None]:
    """Context and answer for each input; None where there is no answer."""
    flat = [request for asked in inputs for request in asked]
    if not flat:
        return []
    if flat[0].request_type == "generate_until":
        said = ensemble.generate_until([_greedy(request) for request in flat], disable_tqdm=True)
        answers = [task.answer_form(request, text) for request, text in zip(flat, said, strict=True)]
        return [
            None if answer is None else (request.args[0], answer) for request, answer in zip(flat, answers, strict=True)
        ]
    scores = iter(ensemble.loglikelihood(flat, disable_tqdm=True))
    best = [int(np.argmax([next(scores)[0] for _ in asked])) for asked in inputs]
    return [asked[choice].args[:2] for asked, choice in zip(inputs, best, strict=True)]


def _greedy(request: Instance) -> Instance:
    """A request to generate, without chance."""
    context, settings = request.args
    decoded = copy.copy(request)
    kept: dict[str, Any] = {name: value for name, value in settings.items() if name not in _SAMPLING}
    decoded.arguments = (context, kept | {"do_sample": False})
    return decoded
