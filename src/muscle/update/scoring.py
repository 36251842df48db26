"""Evaluation through lm-eval, written as its own samples logs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import lm_eval
import msgspec
import numpy as np
import requests
import torch
from accelerate.utils import broadcast_object_list
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.huggingface import HFLM
from torch import nn
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.update.backends import LocalLM, in_process, load_on_device, one_line, task_model_lm
from muscle.update.ensemble import Ensemble
from muscle.update.models import device, load_tokenizer
from muscle.update.prompts import templates_compiled_once
from muscle.update.recipe import EvaluationSettings, Split, TaskModel
from muscle.update.tasks import Task

__all__ = ["Ensemble", "evaluate", "flips_on_validation", "scores_of", "task_model_lm", "validation_scores"]

REFUSED = (400, 422, 501)
"""How a server says that it does not know `echo` or `logprobs`."""


def evaluate(lm: LM, name: str, task: Task, split: Split, destination: Path, settings: EvaluationSettings) -> None:
    """Evaluate one task and write `results_*.json` and `samples_*.jsonl` under `destination`.

    With several draws each item has that many rows under its `doc_id`, the first draws of all items first: what
    `muscle compare --duplicates draws` reads. The figures in `results_*.json` are then means over the draws.

    Args:
        lm: The model behind lm-eval's interface. Where it runs in several processes, the first one writes.
        name: What the log calls the model.
        task: The task, with its few-shot and chat-template settings.
        split: Which of the task's splits to score; "validation" are the items held out from training.
        destination: Folder to write to.
        settings: Limit, draws, temperature and seed.

    Raises:
        MuscleError: the back end cannot do what the task needs, a server fails, or the log could not be written.
    """
    with _server_errors_explained(lm):
        _refuse_impossible(lm, task, split, settings)
        draws = [_run(lm, task, split, settings, draw) for draw in range(settings.draws)]
    if lm.rank == 0:
        _write([results for results in draws if results], name, task, lm, destination, settings)
    if lm.world_size > 1:
        lm.barrier()  # no process goes on to read a log that is not there yet


def _run(lm: LM, task: Task, split: Split, settings: EvaluationSettings, draw: int = 0) -> dict[str, Any] | None:
    """What lm-eval returns for one decoding of all items; None in all processes but the first."""
    evaluated = task.for_evaluation(split)
    seed = _seed_everything(settings.seed, draw, lm.rank)
    if settings.draws > 1:
        _sample(lm, evaluated, settings, seed)
    # Not simple_evaluate, which spends seconds on each call describing the machine.
    with templates_compiled_once():
        results: dict[str, Any] | None = lm_eval.evaluate(
            lm,
            {"tasks": {task.name: evaluated}},
            limit=settings.limit,
            bootstrap_iters=0,
            system_instruction=task.settings.system_instruction,
            apply_chat_template=task.settings.chat_template,
            fewshot_as_multiturn=task.settings.chat_template,
        )
    return results


@contextmanager
def _server_errors_explained(lm: LM) -> Iterator[None]:
    try:
        yield
    except (requests.RequestException, aiohttp.ClientError) as error:
        raise MuscleError(
            f"{getattr(lm, 'base_url', 'the server')} failed ({one_line(error)}): start it, or correct backend_args"
        ) from error


def _seed_everything(seed: int, draw: int, rank: int) -> int:
    """Seed all generators apart for each draw and process, and return the seed of the draw."""
    mixed = int(np.random.SeedSequence([seed, draw, rank]).generate_state(1)[0]) >> 1  # servers take 31 bits
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
    return mixed


def _sample(lm: LM, evaluated: Any, settings: EvaluationSettings, seed: int) -> None:
    """Make the task sample from the whole vocabulary, unless its own generation_kwargs cut that down."""
    kwargs = {**evaluated.config.generation_kwargs, "do_sample": True, "temperature": settings.temperature}
    if isinstance(lm, HFLM):
        kwargs = {"top_k": 0, "top_p": 1.0, **kwargs}  # transformers keeps 50 tokens where nothing is said
    elif isinstance(lm, TemplateAPI):
        lm._seed = seed  # each request carries it, in the words of its API
    elif settings.backend == "vllm":
        kwargs["seed"] = seed
    evaluated.set_config("generation_kwargs", kwargs)


def _refuse_impossible(lm: LM, task: Task, split: Split, settings: EvaluationSettings) -> None:
    generated = task.for_evaluation(split).OUTPUT_TYPE == "generate_until"
    if settings.draws > 1 and not generated:
        raise MuscleError(f"task '{task.name}' compares log-probabilities and has nothing to sample: leave draws at 1")
    if "chat" in settings.backend and not task.settings.chat_template:
        raise MuscleError(f"back end '{settings.backend}' takes chats: set chat_template for task '{task.name}'")
    if isinstance(lm, HFLM):
        task.chat_template(lm.tokenizer)
    elif not generated:
        _require_log_probabilities(lm, task, split, settings)


def _require_log_probabilities(lm: LM, task: Task, split: Split, settings: EvaluationSettings) -> None:
    """One item tells. A server that ignores `echo` returns nothing about the prompt, which lm-eval sums up to 0."""
    try:
        results = _run(lm, task, split, msgspec.structs.replace(settings, limit=1))
        assert results is not None
        responses = [response for (response,) in results["samples"][task.name][0]["resps"]]
        if any(float(each[0] if isinstance(each, list | tuple) else each) < 0 for each in responses):
            return
        answer = "every log-probability is 0"
    except (NotImplementedError, AssertionError, LookupError, TypeError) as error:
        answer = one_line(error)
    except (requests.HTTPError, aiohttp.ClientResponseError) as error:
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        if status not in REFUSED:
            raise
        answer = one_line(error)
    raise MuscleError(
        f"task '{task.name}' needs log-probabilities of the prompt, which back end '{settings.backend}' does not give "
        f"({answer}): use hf or vllm, or a server whose completions know echo and logprobs"
    )


def _write(
    draws: list[dict[str, Any]],
    name: str,
    task: Task,
    lm: LM,
    destination: Path,
    settings: EvaluationSettings,
) -> None:
    results = {key: value for key, value in draws[0].items() if key != "samples"}
    results["results"] = {task.name: _mean([draw["results"][task.name] for draw in draws])}
    results["config"] = {"model": settings.backend, "model_args": {"pretrained": name}, **settings.as_dict()}
    rows = [row for draw in draws for row in _ordered(draw["samples"][task.name])]
    tracker = EvaluationTracker(output_path=str(destination))
    template = lm.chat_template(True) if task.settings.chat_template else None
    tracker.general_config_tracker.log_experiment_args(
        settings.backend,
        {"pretrained": name},
        task.settings.system_instruction,
        template,
        task.settings.chat_template,
    )
    tracker.save_results_aggregated(results=results, samples={task.name: rows})
    tracker.save_results_samples(task.name, rows)
    written = sum(len(file.read_bytes().splitlines()) for file in destination.rglob("samples_*.jsonl"))
    if written != len(rows) or not any(destination.rglob("results_*.json")):  # lm-eval only warns
        raise MuscleError(f"the log could not be written to {destination}: is the disk full, or the folder not empty?")


def _mean(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """One draw's figures, or their means over several."""
    if len(draws) == 1:
        return draws[0]
    return {
        key: sum(draw[key] for draw in draws) / len(draws) if isinstance(value, float) else value
        for key, value in draws[0].items()
    }


def _ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by filter and item, in whatever order the processes handed them in."""
    filters = list(dict.fromkeys(row["filter"] for row in rows))
    return sorted(rows, key=lambda row: (filters.index(row["filter"]), row["doc_id"]))


def flips_on_validation(
    old: TaskModel, task: Task, tokenizer: PreTrainedTokenizerBase, settings: EvaluationSettings
) -> Callable[[nn.Module], float]:
    """How much worse than the old task model another one is on the validation items, as lm-eval scores them.

    Both are evaluated in this process, the old one once and now. With a metric that is right or wrong the result is
    the negative flip rate; with a grade it is the share of items whose grade fell.

    Args:
        old: The old task model.
        task: The task; its first metric counts, after its first filter.
        tokenizer: The tokenizer of the models that the result is called with.
        settings: Batch size, limit and seed.

    Returns:
        A function of a model, which may be in training: its modes and all random generators are as before afterwards.

    Raises:
        MuscleError: the task has no metric that is one number per item.
    """
    before = scores_of(old, task, settings)
    scores = validation_scores(task, tokenizer, settings)

    def flips(model: nn.Module) -> float:
        after = scores(model)
        return sum(after[item] < score for item, score in before.items()) / len(before)

    return flips


def validation_scores(
    task: Task, tokenizer: PreTrainedTokenizerBase, settings: EvaluationSettings
) -> Callable[[nn.Module], Mapping[int, float]]:
    """How models score on the validation items: lm-eval in this process, with packed texts where they can be.

    Args:
        task: The task; its first metric counts, after its first filter.
        tokenizer: That of the models.
        settings: Batch size, limit and seed.

    Returns:
        A function of a model, which may be in training: its modes and all random generators are as before afterwards.
        It returns the score of each item by its number, larger is better, the same in all processes, and raises
        `MuscleError` where the task has no metric that is one number per item.
    """
    settings = msgspec.structs.replace(in_process(settings), draws=1)

    def scores(model: nn.Module) -> Mapping[int, float]:
        with _undisturbed(model):
            return _scores(LocalLM(model, tokenizer, settings), task, settings)

    return scores


def scores_of(model: TaskModel, task: Task, settings: EvaluationSettings) -> Mapping[int, float]:
    """What `validation_scores` finds of a task model, which is loaded for it and then freed.

    Raises:
        MuscleError: The model cannot be loaded, or the task has no metric that is one number per item.
    """
    with _undisturbed():
        return validation_scores(task, load_tokenizer(model.base), settings)(load_on_device(model))


def _scores(lm: LocalLM, task: Task, settings: EvaluationSettings) -> Mapping[int, float]:
    """Score of each validation item by the task's first metric, larger is better; the same in all processes."""
    results = _run(lm, task, "validation", settings)
    box = [_first_metric(results, task.name) if results else {}]
    broadcast_object_list(box)
    return box[0]


def _first_metric(results: Mapping[str, Any], task: str) -> dict[int, float]:
    rows = results["samples"][task]
    rows = [row for row in rows if row["filter"] == rows[0]["filter"]]
    metric = next((key for key in rows[0]["metrics"] if isinstance(rows[0][key], bool | int | float)), None)
    if metric is None:
        raise MuscleError(
            f"no metric of task '{task}' is one number per item: select_by cross_entropy instead, and in place of a "
            "search choose --method muscle"
        )
    sign = 1 if results["higher_is_better"][task].get(metric, True) else -1
    return {row["doc_id"]: sign * float(row[metric]) for row in rows}


@contextmanager
def _undisturbed(model: nn.Module | None = None) -> Iterator[None]:
    """Leave every random generator, and each module's training mode, as they were."""
    modes = [(module, module.training) for module in model.modules()] if model is not None else []
    python, arrays, here = random.getstate(), np.random.get_state(), device()
    accelerators = [] if here.index is None else [here.index]
    with torch.random.fork_rng(accelerators, device_type="cuda" if here.type == "cpu" else here.type):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            for module, training in modes:
                module.training = training
