"""What the configuration of a base tells: its weights, an adapter's, what its forward pass keeps. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from muscle.errors import MuscleError
from muscle.update.heads import output_head
from muscle.update.load_errors import first_line
from muscle.update.lora import add_adapter
from muscle.update.models import load_config
from muscle.update.recipe import Base, LoraSettings

R = TypeVar("R")


class UncountableError(MuscleError):
    """A base whose code does not run without weights; that says nothing of how it runs with them."""


@contextmanager
def countable(config: PretrainedConfig) -> Iterator[None]:
    """Around code of a model, which may be anybody's and raise anything."""
    try:
        yield
    except Exception as error:
        raise UncountableError(
            f"base {config.name_or_path}: what it takes cannot be told, since its code does not run without weights "
            f"({type(error).__name__}: {first_line(error)}): run it without --estimate"
        ) from error


def cut(config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """The configuration with fewer layers."""
    if layers is None:
        return config
    config = type(config).from_dict(config.to_dict())
    text = config.get_text_config()
    text.num_hidden_layers = min(layers, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    return config


@lru_cache
def config_of(base: Base) -> PretrainedConfig:
    """With the names of code of its own only where that may run."""
    config = load_config(base)
    if not base.trust_remote_code and hasattr(config, "auto_map"):
        del config.auto_map
    return config


def build(config: PretrainedConfig, **how: Any) -> PreTrainedModel:
    """A model with random weights."""
    trusted = bool(getattr(config, "auto_map", None))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted, **how)  # type: ignore[no-untyped-call]
    return model


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """A model without storage, which has the shapes of its weights alone.

    Raises:
        UncountableError: Its code does more than that allows.
    """
    with countable(config), torch.device("meta"):
        return build(config).requires_grad_(False)


def _once(function: Callable[..., R]) -> Callable[..., R]:
    """Count nothing twice: a configuration cannot be hashed, but its text can."""
    known: dict[Any, R] = {}

    @wraps(function)
    def once(config: PretrainedConfig, *rest: Any) -> R:
        key = config.to_json_string(), rest
        if key not in known:
            known[key] = function(config, *rest)
        return known[key]

    return once


@_once
def weights(config: PretrainedConfig) -> tuple[int, int]:
    """Weights in all, tied ones once, and those of linear layers but the head, which bitsandbytes quantizes."""
    model = on_meta(config)
    head = output_head(model)
    linear = (each.weight.numel() for each in model.modules() if isinstance(each, nn.Linear) and each is not head)
    return sum(weight.numel() for weight in model.parameters()), sum(linear)


@_once
def adapter_weights(config: PretrainedConfig, lora: LoraSettings) -> int:
    """Weights of an adapter, as PEFT makes it."""
    return sum(weight.numel() for weight in _adapted(config, lora).parameters() if weight.requires_grad)


def _adapted(config: PretrainedConfig, lora: LoraSettings) -> PeftModel:
    with torch.device("meta"):
        return add_adapter(on_meta(config), lora, 0)


@_once
def saved_bytes(config: PretrainedConfig, lora: LoraSettings | None, batch: int, length: int) -> float:
    """Bytes that the body's forward pass keeps for the backward pass, by running it on the meta device.

    Args:
        config: Of the base.
        lora: Shape of the adapter that is trained; None trains the whole base.
        batch: Texts.
        length: Tokens of each, padding included.
    """
    model = _adapted(config, lora).get_base_model() if lora else on_meta(config).requires_grad_(True)
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, Tensor] = {}
    fused = getattr(config.get_text_config(), "_attn_implementation", "sdpa") != "eager"

    def pack(tensor: Tensor) -> Tensor:
        attention = fused and tensor.dim() == 4 and tensor.shape[-2:] == (length, length)  # no fused kernel keeps it
        if tensor.untyped_storage()._cdata not in own and not attention:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    body: Any = model.base_model
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with countable(config), torch.device("meta"), hooks:
        mask = torch.ones(batch, 1, length, length, dtype=torch.bool)
        body.train()(input_ids=torch.zeros(batch, length, dtype=torch.long), attention_mask=mask, use_cache=False)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
