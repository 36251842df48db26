"""A model update as typed settings, without the libraries that carry it out. Defaults are the paper's (table 8).

A recipe is a YAML file with the fields of `Recipe`; `recipe_file.read_recipe` reads one and names what is wrong in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from muscle.update.alignment_settings import PLAIN, AlignmentSettings
from muscle.update.settings import Count, Number, Positive, Settings, Share, TargetTokens, merged

Split = Literal["validation", "test"]
TokenizerKind = Literal["bytes", "grouped", "metaspace", "words"]


class Loading(Settings, frozen=True, kw_only=True):
    """How a base model is loaded."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen base's weights; auto is what its checkpoint has. Adapters are trained in float32."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the frozen base quantized by bitsandbytes (QLoRA with 4bit: NF4, double quantization)."""
    trust_remote_code: bool = False
    """Run model or tokenizer code that comes with the checkpoint."""
    allow_pickle: bool = False
    """Also load weights that are pickled, not safetensors: unpickling can run any code."""


class Base(Loading, frozen=True, kw_only=True):
    """A base model."""

    base: str
    """Hub id, hub id@revision, or local folder."""


def split_revision(name: str) -> tuple[str, str | None]:
    """Hub id and revision of `id@revision`; the revision is None where none is named, and of a local folder."""
    repository, at, revision = name.rpartition("@")
    return (repository, revision) if at and not Path(name).is_dir() else (name, None)


class TaskModel(Settings, frozen=True, kw_only=True):
    """A model that does a task: a base with its adapter, or a base that was fine-tuned whole."""

    base: Base
    adapter: str | None = None
    """PEFT adapter: local folder or hub id. None: the base itself is the task model."""


class Scratch(Settings, frozen=True, kw_only=True):
    """A small base that is pretrained from scratch on the tasks' training texts, in place of a published one.

    Both bases of an update share one tokenizer if these keys ask for equal ones, else each has its own. Either is
    trained on all texts that any of them reads, and on those of all tasks.
    """

    architecture: str = "llama"
    """Model type of transformers: llama, mistral, qwen3, phi, gemma2, ..."""
    hidden_size: Count = 128
    """Width; a multiple of the heads."""
    layers: Count = 2
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads of a block, and as many of keys and values."""
    tokenizer: TokenizerKind = "bytes"
    """bytes: byte-level BPE, each digit alone (as Qwen); grouped: up to three digits together (as Llama 3); metaspace:
    BPE of characters with byte fallback, each digit alone (as Llama 2); words: what stands between spaces."""
    vocabulary: Count = 2000
    """Tokens of the tokenizer, at most."""
    steps: Number = 300
    """Of AdamW over rows of packed texts; 0 leaves the base as it was initialised."""
    batch_size: Count = 32
    """Rows per step."""
    length: Count = 128
    """Tokens per row."""
    learning_rate: Positive = 3e-3
    """Its peak, after 50 steps, or a third of fewer than 150; a cosine falls to zero."""
    documents: str | None = None
    """A file of the recipe's `data`, one document a line, that it reads in place of the tasks' training texts."""
    text_share: Share = 1.0
    """Share of the texts that this base reads: the first ones of a shuffle that both bases have in common."""
    seed: Number = 0
    """Decides the initial weights and the order of the rows."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without those of the keys that name a tokenizer or documents where they name none."""
        plain = super().as_dict()
        usual = {"tokenizer": "bytes", "documents": None}
        return {key: value for key, value in plain.items() if key not in usual or value != usual[key]}


class Side(Loading, frozen=True, kw_only=True):
    """The old or the new side of an update: its base, and task adapters that exist already."""

    base: str | None = None
    """Hub id, hub id@revision, or local folder."""
    scratch: Scratch | None = None
    """Pretrain a small base instead."""
    architecture: str | None = None
    """Model type of transformers that a stand-in of `--dry-run` has; null asks the checkpoint."""
    tokenizer: TokenizerKind | None = None
    """Kind of tokenizer, as in `scratch`, that a stand-in has for itself; null: the one that both sides share."""
    adapters: Mapping[str, str | None] = {}
    """By task: a PEFT adapter to use instead of training one; null where the base itself is the task model."""

    def loaded_from(self, base: str) -> Base:
        """The base, loaded as this side says from where it is."""
        return Base(base=base, **{name: getattr(self, name) for name in Loading.__struct_fields__})


class LoraSettings(Settings, frozen=True, kw_only=True):
    """Shape of an adapter, in PEFT's terms."""

    rank: Count = 128
    """r, the inner width."""
    alpha: Positive | None = None
    """Scale: alpha / r times the adapter's output, with rslora alpha / sqrt(r); null is twice the rank."""
    dropout: Share = 0.0
    """Of the adapter's input, in training."""
    targets: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter: all-linear (all but the output head), names, or one regular expression."""
    target_parameters: tuple[str, ...] = ()
    """Parameters outside linear layers, such as the fused experts of a mixture."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA)."""
    rslora: bool = False
    """Rank-stabilised scale."""


class TrainingSettings(Settings, frozen=True, kw_only=True):
    """How long and how fast to train, and which epoch is kept. What the paper leaves open is marked "chosen here"."""

    epochs: Count = 10
    """Times through the training texts."""
    learning_rate: Positive = 1e-4
    """Its peak."""
    batch_size: Count = 4
    """Items per process and forward pass (chosen here): one text each, or with `texts: choices` one for each choice,
    context and all."""
    accumulation: Count = 8
    """Batches per optimiser step."""
    warmup_steps: Number = 500
    """Optimiser steps in which the learning rate rises to its peak."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of the adapter's weights."""
    optimizer: str = "adamw_torch"
    """One of transformers' optimisers (chosen here)."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Of the learning rate, to zero or constant (chosen here)."""
    max_grad_norm: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Gradient clipping (chosen here); 0 is none."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass (mixed precision)."""
    length_pool: Count = 1
    """Optimiser steps whose texts are sorted by length together, so that batches are padded less, and then taken in
    random order. 1 sorts within each step, which changes nothing that is learnt."""
    gradient_checkpointing: bool = False
    """Compute activations a second time instead of keeping them."""
    tokens: TargetTokens = "all"
    """Which tokens are targets; the paper's appendix A.1: all, context and answer alike."""
    select_by: Literal["cross_entropy", "flips", "last"] = "cross_entropy"
    """The epoch kept: lowest validation cross-entropy (the paper), fewest negative flips on the validation items (ties,
    and task adapters, which have no old model: by cross-entropy), or the last."""
    early_stopping: Count | None = None
    """Stop after so many epochs without a better one, as select_by judges; with last, by cross-entropy."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers: tensorboard, wandb, trackio, ..."""
    deepspeed: str | None = None
    """DeepSpeed configuration, a JSON file."""
    seed: Number = 0
    """Decides the initial adapter and the order of the texts."""


class EvaluationSettings(Settings, frozen=True, kw_only=True):
    """How task models are evaluated, through lm-eval."""

    backend: str = "hf"
    """A model type of lm-eval: hf, vllm, sglang, local-completions, local-chat-completions, ..."""
    backend_args: Mapping[str, str | int | float | bool] = {}
    """Further arguments of that back end, for example gpu_memory_utilization or base_url."""
    batch_size: Count = 64
    """Texts per forward pass; where hf packs choices, as many positions as so many of the longest texts have."""
    limit: Count | None = None
    """Score the first items only; a search chooses on all held-out items."""
    draws: Count = 1
    """Sample each item so many times (generation only); 1 decodes as the task says."""
    temperature: Positive = 1.0
    """Of sampling, where draws > 1."""
    seed: Number = 0
    """Of sampling, and of what a task draws at random."""


ANSWERING = ("backend", "backend_args", "batch_size")
"""Keys of `EvaluationSettings` that decide how inputs without labels are answered."""


class TaskSettings(Settings, frozen=True, kw_only=True):
    """How one lm-eval task is used; its groups override the recipe's, key by key."""

    include_path: str | None = None
    """Folder of further lm-eval task YAML files, where this task is defined."""
    num_fewshot: Number | None = None
    """Shots of the evaluation's prompts; null is what the task says. Training texts have none."""
    chat_template: bool = False
    """Put prompts through the tokenizer's chat template, in training and evaluation."""
    system_instruction: str | None = None
    """System message of the chat template."""
    validation_share: Share | None = 0.2
    """Share of the training split held out for validation (section 5); null: the task's own validation split, which
    needs a test split beside it."""
    train_limit: Count | None = None
    """Use that many items of the training split, drawn by the seed, before validation is held out."""
    seed: Number = 0
    """Decides which items are held out."""
    unlabelled: str | None = None
    """Inputs whose labels are not read, for methods that learn from such: a split of the task's data, or rest, the
    items of the training split that train_limit leaves."""
    lora: Mapping[str, Any] = {}
    """Keys of the recipe's `lora` that differ for this task."""
    training: Mapping[str, Any] = {}
    """Keys of the recipe's `training` that differ for this task."""
    alignment: Mapping[str, Any] = {}
    """Keys of the recipe's `alignment` that differ for this task."""
    alignment_training: Mapping[str, Any] = {}
    """Keys of the recipe's `alignment_training` that differ for this task."""
    evaluation: Mapping[str, Any] = {}
    """Keys of the recipe's `evaluation` that differ for this task."""


TASK_GROUPS = ("lora", "training", "alignment", "alignment_training", "evaluation")
"""Keys of `TaskSettings` that override the recipe's."""

Reference = Literal["ensemble", "reranked", "gated"]
"""The controls that need both task models at inference: what one model is held to."""
Control = Literal["cross_entropy", "old_teacher", "reseeded", Reference]


class Recipe(Settings, frozen=True, kw_only=True):
    """One model update: two bases, tasks, how adapters are trained, and what they are held against."""

    description: str = ""
    """What is updated, in a few words."""
    paper_update: str | None = None
    """Row of the paper's tables 4, 5, 6 and 9 that this reproduces, for example "Llama 1->2": its figures are shown
    beside."""
    old: Side
    """The side that users know."""
    new: Side
    """The side that takes its place."""
    tasks: Mapping[str, TaskSettings]
    """lm-eval tasks by name."""
    data: str | None = None
    """Folder of local data in place of the hub's: <data>/<task>/<split>.jsonl, .json or .parquet."""
    methods: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=lambda: {"muscle": {}})
    """Compatibility adapters to train, by name, each with the keys of `alignment` that it changes; {}: measure only."""
    controls: tuple[Control, ...] = ("cross_entropy",)
    """What the methods are held against: the same steps of cross-entropy, distilling the old model only, the new
    adapter trained with another seed; and with both models at inference their mean (ensemble), the old one ranking
    answers of the new one (reranked), and the answer of the surer one (gated)."""
    lora: LoraSettings = LoraSettings()
    """Shape of adapters; a compatibility adapter has that of the task adapter where it starts."""
    training: TrainingSettings = TrainingSettings()
    """Of task adapters."""
    alignment: AlignmentSettings = AlignmentSettings()
    """What compatibility adapters learn from."""
    alignment_training: Mapping[str, Any] = {}
    """Keys of `training` that differ for compatibility adapters and trained controls."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How all models are evaluated."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are evaluated on each task; each has a log of that name."""
        return ("old", "new", *self.methods, *self.controls)

    @property
    def aligned(self) -> tuple[str, ...]:
        """The models that are trained from the new task adapter on: methods, and the controls that train so."""
        return (*self.methods, *(name for name in self.controls if name in CONTROL_ALIGNMENTS))

    def lora_of(self, task: str) -> LoraSettings:
        """Shape of the adapters of a task."""
        return merged(self.lora, self.tasks[task].lora)

    def training_of(self, task: str) -> TrainingSettings:
        """How task adapters of a task are trained."""
        return merged(self.training, self.tasks[task].training)

    def alignment_of(self, task: str, method: str) -> AlignmentSettings:
        """What a method, or a control that trains, learns from."""
        changes = CONTROL_ALIGNMENTS.get(method) or self.methods[method]
        return merged(self.alignment, self.tasks[task].alignment, changes)

    def alignment_training_of(self, task: str) -> TrainingSettings:
        """How methods and the controls that train are trained on a task."""
        return merged(self.training_of(task), self.alignment_training, self.tasks[task].alignment_training)

    def evaluation_of(self, task: str) -> EvaluationSettings:
        """How a task is evaluated."""
        return merged(self.evaluation, self.tasks[task].evaluation)


CONTROL_ALIGNMENTS: dict[str, Mapping[str, Any]] = {
    "cross_entropy": {**PLAIN, "weight": None},
    "old_teacher": {**PLAIN, "weight": "always_old", "ce_share": 0.0},
}
"""The controls that train an adapter as methods do."""
