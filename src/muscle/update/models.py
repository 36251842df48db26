"""Bases with adapters: loading, and the one place that knows how hidden states become logits."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from muscle.errors import MuscleError


def device() -> torch.device:
    """The accelerator of this machine, or its CPU: where the Trainer puts the student, and so where teachers belong."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def load_tokenizer(base: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a base: local folder or hub id."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(base))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(base: str | Path) -> PreTrainedModel:
    """Causal LM by local folder or hub id; safetensors only."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(base), use_safetensors=True)
    return model


def load_task_model(base: str | Path, adapter: str | Path, trainable: bool = False) -> PeftModel:
    """Base plus PEFT adapter, in evaluation mode unless `trainable`."""
    model: PeftModel = PeftModel.from_pretrained(load_base(base), str(adapter), is_trainable=trainable)
    return model.train(trainable)


@torch.no_grad()
def hidden_and_logits(model: nn.Module, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Final hidden states (B, T, H), as they enter the head, and logits (B, T, V)."""
    caught: list[Tensor] = []
    hook = output_head(model).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        hook.remove()
    return caught[0], logits


def output_head(model: nn.Module) -> nn.Module:
    """The layer that turns final hidden states into logits.

    Raises:
        MuscleError: the model has no such layer.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        raise MuscleError(f"{type(model).__name__} has no output head: use a causal language model")
    return head
