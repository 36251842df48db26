"""Bases with adapters: how they are loaded, and where they run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from peft.utils import CONFIG_NAME as PEFT_CONFIG_NAME
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash, has_file

from muscle.errors import MuscleError
from muscle.update.load_errors import explained
from muscle.update.recipe import Base, TaskModel, split_revision

SAFE_BASE = ("model.safetensors", "model.safetensors.index.json")
PICKLED_BASE = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SAFE_ADAPTER, PICKLED_ADAPTER = ("adapter_model.safetensors",), ("adapter_model.bin",)


def device() -> torch.device:
    """The accelerator of this process, or its CPU: where the Trainer puts the student, and so where teachers belong."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


def move(model: nn.Module, where: torch.device) -> None:
    """To a device; quantized models were loaded where they belong, and refuse to move."""
    if model.device != where and not getattr(model, "is_quantized", False):
        model.to(where)


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Tokenizer of a base; where it has no padding token, the end-of-text token pads.

    That is safe since attention masks and labels come from the lengths of texts, never from token ids.

    Raises:
        MuscleError: It cannot be loaded, or has no end-of-text token, which closes every training text.
    """
    name, revision = split_revision(base.base)
    with explained("the tokenizer of", base.base):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=base.trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise MuscleError(
            f"the tokenizer of {base.base} has no end-of-text token: name one as eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(base: Base) -> PreTrainedConfig:
    """What a base says of its shape, without its weights.

    Raises:
        MuscleError: It cannot be loaded.
    """
    name, revision = split_revision(base.base)
    with explained("base", base.base):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=base.trust_remote_code
        )
    return config


def load_base(base: Base) -> PreTrainedModel:
    """Causal language model by local folder, hub id or `id@revision`: frozen, in evaluation mode.

    Raises:
        MuscleError: It cannot be loaded: the message says why, and which setting or command helps.
    """
    name, revision = split_revision(base.base)
    with explained("base", base.base):
        revision = _pinned(name, revision, CONFIG_NAME)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=base.trust_remote_code)
        if not base.allow_pickle:
            _refuse_pickle(name, revision, SAFE_BASE, PICKLED_BASE)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype="auto" if base.dtype == "auto" else getattr(torch, base.dtype),
            trust_remote_code=base.trust_remote_code,
            use_safetensors=None if base.allow_pickle else True,
            output_loading_info=True,
            **_quantization(base),
        )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise MuscleError(
            f"base {base.base} lacks {len(missing)} weights, {missing[0]} among them: "
            "choose the complete checkpoint of a causal language model"
        )
    model.config._commit_hash = revision  # where earlier versions of transformers keep it; it is not saved
    model.requires_grad_(False)
    return model


def commit(model: nn.Module) -> str | None:
    """The hub's commit that a base was loaded from; None for a local folder."""
    found: str | None = getattr(model.config, "_commit_hash", None)
    return found


def load_task_model(model: TaskModel, trainable: bool = False) -> PreTrainedModel | PeftModel:
    """Base plus PEFT adapter, in evaluation mode; where `trainable`, the adapter trains, in float32.

    Without an adapter it is the base, fine-tuned whole, and frozen all the same: `lora.add_adapter` gives it an adapter
    to train.

    Raises:
        MuscleError: Base or adapter cannot be loaded, or the adapter is made for another base.
    """
    base = prepare_quantized(load_base(model.base)) if trainable else load_base(model.base)
    if model.adapter is None:
        return base
    name, revision = split_revision(model.adapter)
    with explained("adapter", model.adapter), peft_warnings():
        revision = _pinned(name, revision, PEFT_CONFIG_NAME)
        if not model.base.allow_pickle:
            _refuse_pickle(name, revision, SAFE_ADAPTER, PICKLED_ADAPTER)
        loaded: PeftModel = PeftModel.from_pretrained(base, name, revision=revision, is_trainable=trainable)
    if loaded.active_peft_config.is_prompt_learning:
        raise MuscleError(f"adapter {model.adapter} is a learnt prompt, which shifts tokens: choose a LoRA adapter")
    return loaded.train(trainable)


def prepare_quantized(base: PreTrainedModel) -> PreTrainedModel:
    """Make a base ready for training an adapter: where it is quantized, what is left in 16 bits becomes float32."""
    if not getattr(base, "is_quantized", False):
        return base
    prepared: PreTrainedModel = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    return prepared


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; afterwards each module in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def peft_warnings() -> Iterator[None]:
    """While PEFT makes or loads an adapter: weights missing in its file are an error, not a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        # PEFT itself sets these patterns for fused experts, where they match a parameter, and misses a module.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        yield


def _quantization(base: Base) -> dict[str, Any]:
    """Arguments of from_pretrained; quantized weights are made where they are used."""
    if base.quantization is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise MuscleError(
            f"{base.quantization} quantization of {base.base} needs bitsandbytes: `pip install bitsandbytes`, or leave "
            "`quantization` out"
        )
    nf4 = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    settings: dict[str, Any] = {"load_in_8bit": True} if base.quantization == "8bit" else {"load_in_4bit": True, **nf4}
    config = BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]
    return {"quantization_config": config, "device_map": {"": str(device())}}


def _pinned(name: str, revision: str | None, file: str) -> str | None:
    """The commit behind a revision, for all files to be of one: a branch may move between two downloads."""
    return extract_commit_hash(cached_file(name, file, revision=revision), None) or revision


def _refuse_pickle(name: str, revision: str | None, safe: tuple[str, ...], pickled: tuple[str, ...]) -> None:
    """Raise MuscleError where there are weights, but only pickled ones."""

    def there(files: tuple[str, ...]) -> bool:
        return any(has_file(name, file, revision=revision) for file in files)

    if not there(safe) and there(pickled):
        raise MuscleError(
            f"{name} has only pickled weights, and unpickling can run any code: set `allow_pickle: true` if you trust "
            "where they come from, or choose a safetensors checkpoint"
        )
