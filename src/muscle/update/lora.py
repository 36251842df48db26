"""A fresh LoRA adapter on a base, with the options of PEFT that a recipe can set."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from muscle.errors import MuscleError, quoted
from muscle.update.load_errors import first_line
from muscle.update.models import commit, peft_warnings, prepare_quantized
from muscle.update.recipe import LoraSettings


def add_adapter(base: PreTrainedModel, lora: LoraSettings, seed: int) -> PeftModel:
    """Put a fresh adapter on a base (in place), as the identity, in float32; the base's weights are frozen.

    `all-linear` is every linear layer but the output head. PEFT counts as such what was one before transformers 5
    fused it: the experts and the router of Mixtral and Qwen mixtures. Other fused experts are `target_parameters`.

    Args:
        base: A model without adapter.
        lora: The adapter's shape.
        seed: Decides its initial weights.

    Returns:
        The model in training mode; only the adapter's weights are trainable.

    Raises:
        MuscleError: A target matches nothing, or PEFT cannot adapt it as asked.
    """
    modules, parameters = _linear_names(base), _parameter_names(base)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        target_parameters=list(lora.target_parameters) or None,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        revision=commit(base),
    )
    torch.manual_seed(seed)
    try:
        with peft_warnings():
            warnings.filterwarnings("ignore", r"target_\w+=.* were set but no")  # an error below
            model: PeftModel = get_peft_model(prepare_quantized(base), config)
        _require(config.target_modules, model.targeted_module_names, "lora.targets", modules)
        _require(config.target_parameters, model.targeted_parameter_names, "lora.target_parameters", parameters)
    except NoMatchingPeftModuleError:
        _require(lora.targets, [], "lora.targets", modules)
        _require(lora.target_parameters, [], "lora.target_parameters", parameters)
        raise MuscleError("lora.targets is empty: name modules, or leave it out for all linear layers") from None
    except re.error as error:
        raise MuscleError(f"lora.targets: {quoted(lora.targets)} is no regular expression ({error}): mend it") from None
    except ValueError as error:
        raise MuscleError(
            f"PEFT refuses these lora settings for {type(base).__name__}: {first_line(error)}: change them"
        ) from None
    return model.train()


def _require(targets: str | Iterable[str] | None, matched: list[str], setting: str, known: list[str]) -> None:
    """Raise MuscleError for a target that is no suffix of a matched name, or an expression that matched none."""
    if isinstance(targets, str):
        if not matched:
            raise MuscleError(
                f"{setting}: no module's whole name matches the regular expression {quoted(targets)}: "
                f"give a list of names, of {', '.join(known)}"
            )
        return
    for target in sorted(targets or ()):
        if not any(f".{name}".endswith(f".{target}") for name in matched):
            near = difflib.get_close_matches(target, known, n=1)
            way_out = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
            raise MuscleError(f"{setting}: the base has no {quoted(target)}: {way_out}")


def _linear_names(base: PreTrainedModel) -> list[str]:
    """Last parts of the names of its linear layers: q_proj, lm_head, ..."""
    layers = (name for name, module in base.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return sorted({name.rpartition(".")[2] for name in layers})


def _parameter_names(base: PreTrainedModel) -> list[str]:
    """Last two parts of the names of its stacked matrices, one for each expert: experts.down_proj, ..."""
    stacked = (name for name, parameter in base.named_parameters() if parameter.dim() == 3)
    return sorted({".".join(name.split(".")[-2:]) for name in stacked})
