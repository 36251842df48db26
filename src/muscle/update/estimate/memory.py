"""Bytes of a stage, from the shapes of its models and texts: nothing is run.

Training a task adapter, with P weights of b bytes in the base and A in the adapter (float32):

    P b + 16 A + S + head           16: weight, gradient and both moments of Adam
    S = what the forward pass saves for the backward pass, counted on the meta device at the largest batch
    head = 6 * 4 bytes * the logits that are taken at a time (losses.py)

Pretraining has A = P and no base beside. A compatibility adapter adds, by the teachers that its weight reads,

    teacher_cache memory            H bytes * width of a number * targets of all training texts; the old one's head
    disk                            the same on disk, mapped; the old one's head
    off                             the old one's base and adapter, P b + 4 A, and 4 A of the new one's

An old teacher with another tokenizer is never off, and leaves what it says of the targets in its own tokens: 9 bytes of
each where likelihoods alone are compared, and no head; else states as above.

The old model's body is gone before the student is loaded, and the new one is the student itself. Evaluation takes
P b + 4 A, keys and values of the positions that are read at once, what a layer makes of them, and some logits. All that
on top of what Python and the libraries take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from msgspec import convert
from transformers import PretrainedConfig

from muscle.update import stages
from muscle.update.alignment_settings import BY_LIKELIHOOD
from muscle.update.estimate.inputs import (
    Inputs,
    Items,
    Texts,
    across_of,
    alignment_of,
    sides_of,
    texts_per_batch,
)
from muscle.update.estimate.shapes import adapter_weights, saved_bytes, weights
from muscle.update.losses import LEAST_ROWS, LOGITS_AT_A_TIME
from muscle.update.packed import LOGITS, TOKENS
from muscle.update.pipeline import Stage
from muscle.update.recipe import LoraSettings
from muscle.update.settings import SideName
from muscle.update.teacher_cache import state_size

FLOAT = 4
ADAM = 4 * FLOAT
"""Bytes of a trained weight: itself, its gradient, two moments."""
LIKELIHOODS = 2 * FLOAT + 1
"""Bytes that `old_teachers.Likelihoods` has of a target."""
HEAD_COPIES = 6
"""Arrays of logits that live at once where a divergence of two teachers is computed, in float32."""
SMALLER: Mapping[str, Mapping[str, str]] = {
    "dtype: bfloat16": {"dtype": "bfloat16"},
    "quantization: 8bit": {"quantization": "8bit"},
    "quantization: 4bit": {"quantization": "4bit"},
}
"""What makes a base take less, in a recipe's words and in settings."""
QUANTIZED = {"8bit": 1.0, "4bit": 0.55}
"""Bytes of a quantized weight, its scales included."""


@dataclass(frozen=True)
class Bytes:
    """What a stage takes, and leaves."""

    memory: float
    """At its peak, where models compute, without Python and the libraries."""
    host: float = 0.0
    """What is kept in the machine's own memory wherever models compute: caches."""
    left: float = 0.0
    """On disk, when it is done."""
    passing: float = 0.0
    """On disk, while it runs: checkpoints, caches."""


def stage_bytes(stage: Stage, inputs: Inputs, counted: Texts | Items | None) -> Bytes:
    """What the models of a stage take.

    Args:
        stage: Which.
        inputs: What it reads.
        counted: Its texts or items; None where they are not counted, and only weights are to be.
    """
    settings = stage.settings
    if stage.function in (stages.evaluate, stages.evaluate_ensemble, stages.answer):
        if settings["evaluation"]["backend"] != "hf":
            return Bytes(0)  # a server, or an engine that takes what it is given
        sides = sides_of(stage)
        read = (_evaluated(inputs.config(stage, side), settings["evaluation"], counted) for side in sides)
        return Bytes(sum(_loaded(stage, inputs, side) for side in sides) + max(read))
    texts = counted if isinstance(counted, Texts) else None
    if stage.function is stages.adapt:
        return _training(stage, inputs, "model", settings["lora"], texts)
    if stage.function is stages.align:
        return _alignment(stage, inputs, texts)
    if stage.function is stages.teach:
        side = "old" if "old" in settings else "new"
        left = cache_bytes(stage, inputs, side, texts)
        if across_of(stage, texts) not in BY_LIKELIHOOD:
            left += head_bytes(stage, inputs, side)
        return Bytes(_loaded(stage, inputs, side), left=left)
    return Bytes(0)


def pretraining_bytes(config: PretrainedConfig, batch_size: int, length: int) -> Bytes:
    """What pretraining a base takes: all its weights are trained."""
    trained, _ = weights(config)
    memory = ADAM * trained + saved_bytes(config, None, batch_size, length) + _head(config, batch_size * length)
    return Bytes(memory, left=FLOAT * trained, passing=3 * FLOAT * trained)


def _alignment(stage: Stage, inputs: Inputs, texts: Texts | None) -> Bytes:
    alignment = alignment_of(stage)
    lora = stage.settings["lora"] or (inputs.lora(stage, "new") or LoraSettings()).as_dict()
    old = _loaded(stage, inputs, "old") if "old" in alignment.teachers else 0.0
    across, live = across_of(stage, texts), alignment.teacher_cache == "off"
    head = head_bytes(stage, inputs, "old") if old and across not in BY_LIKELIHOOD else 0.0
    kept: Sequence[SideName] = alignment.teachers
    if live:
        config = inputs.config(stage, "new")
        initial = FLOAT * adapter_weights(config, convert(lora, LoraSettings)) if "new" in alignment.teachers else 0
        if not across:
            return _training(stage, inputs, "new", lora, texts, beside=old + initial)
        head, kept = head + initial, ("old",)
    found = _training(stage, inputs, "new", lora, texts, beside=head)
    found = replace(found, memory=max(found.memory, old))  # whose body is freed before the student is loaded
    cache = sum(cache_bytes(stage, inputs, side, texts) for side in kept)
    if live or alignment.teacher_cache == "memory":
        return replace(found, host=cache)
    return found if "old_states" in stage.inputs else replace(found, passing=found.passing + cache)


def cache_bytes(stage: Stage, inputs: Inputs, side: str, texts: Texts | None) -> float:
    """What is kept of a teacher over its training texts: its states, or what stands for them across tokenizers."""
    if not texts:
        return 0.0
    kept, targets = stage.settings.get("kept") or alignment_of(stage).cache_dtype, texts.targets
    if side == "old" and (across := across_of(stage, texts)):
        targets = texts.old_targets or 0
        if across in BY_LIKELIHOOD:
            return float(LIKELIHOODS * targets)
    return float(targets * state_size(inputs.config(stage, side), inputs.base(stage, side), kept))


def head_bytes(stage: Stage, inputs: Inputs, side: str) -> float:
    """A copy of a base's head."""
    config = inputs.config(stage, side).get_text_config()
    return float(config.vocab_size * config.hidden_size * _dtype(stage.settings[side]["base"], config).itemsize)


def _training(
    stage: Stage, inputs: Inputs, side: str, lora: Mapping[str, Any], texts: Texts | None, beside: float = 0.0
) -> Bytes:
    """Bytes of training an adapter, and of what is there beside it."""
    config, shape, training = inputs.config(stage, side), convert(lora, LoraSettings), stage.settings["training"]
    kept, working = FLOAT * adapter_weights(config, shape), 0.0
    if texts:
        batch = min(texts_per_batch(stage, texts), texts.training)
        saved = saved_bytes(config, shape, batch, texts.longest)
        if training["gradient_checkpointing"]:
            layers = config.get_text_config().num_hidden_layers
            hidden = batch * texts.longest * config.get_text_config().hidden_size * FLOAT
            saved = saved / layers + layers * hidden
        if training["precision"] != "float32":
            saved *= 0.6  # half the bytes, but norms and softmaxes
        working = saved + _head(config, batch * texts.longest)
    memory = base_bytes(config, stage.settings[side]["base"]) + beside + ADAM // FLOAT * kept + working
    return Bytes(memory, left=kept, passing=2 * 3 * kept)  # the last and the best checkpoint, with Adam's moments


def _loaded(stage: Stage, inputs: Inputs, side: str) -> float:
    """A frozen task model."""
    config, lora = inputs.config(stage, side), inputs.lora(stage, side)
    return base_bytes(config, stage.settings[side]["base"]) + (FLOAT * adapter_weights(config, lora) if lora else 0)


def _evaluated(config: PretrainedConfig, evaluation: Mapping[str, Any], counted: Texts | Items | None) -> float:
    """Keys, values and layers of the positions that are read at once, and logits with their softmax."""
    if not isinstance(counted, Items):
        return 0.0
    text, batch = config.get_text_config(), evaluation["batch_size"]
    at_once = batch * counted.longest
    if counted.answer is None and _kind() == "cpu":  # choices are packed
        at_once = min(at_once, max(TOKENS, counted.longest))
    kept = batch * (counted.longest + counted.answer) if counted.answer else at_once
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    keys_and_values = 2 * text.num_hidden_layers * text.hidden_size * heads / text.num_attention_heads
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = 8 * text.hidden_size + 3 * wide
    return float(FLOAT * (kept * keys_and_values + at_once * layer + 3 * max(LOGITS, text.vocab_size)))


def _head(config: PretrainedConfig, rows: int) -> float:
    """Logits of the rows that are taken at a time."""
    at_a_time = max(LEAST_ROWS * config.get_text_config().vocab_size, LOGITS_AT_A_TIME[_kind()])
    return float(HEAD_COPIES * FLOAT * min(rows * config.get_text_config().vocab_size, at_a_time))


def _kind() -> str:
    return "gpu" if torch.cuda.is_available() else "cpu"


def _dtype(base: Mapping[str, Any], config: PretrainedConfig) -> torch.dtype:
    named = (base["dtype"] if base["dtype"] != "auto" else config.dtype) or torch.float32
    found: torch.dtype = getattr(torch, named) if isinstance(named, str) else named  # a configuration may have either
    return found


def base_bytes(config: PretrainedConfig, base: Mapping[str, Any]) -> float:
    """Bytes of a base's weights as they are loaded."""
    total, quantized = weights(config)
    size = _dtype(base, config.get_text_config()).itemsize
    if base["quantization"]:
        return (total - quantized) * 2 + quantized * QUANTIZED[base["quantization"]]
    return float(total * size)
