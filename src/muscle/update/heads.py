"""The one place that knows how final hidden states become logits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from muscle.errors import MuscleError


class Head(nn.Module):
    """How final hidden states (..., H) become logits (..., V): a layer, then a scale, then a softcap.

    Covers heads with bias, tied heads, adapted heads, Cohere's `logit_scale`, Granite's `logits_scaling` (a divisor)
    and Gemma's `final_logit_softcapping`.
    """

    def __init__(self, layer: Callable[[Tensor], Tensor], scale: float = 1.0, softcap: float | None = None) -> None:
        super().__init__()
        self.layer, self.scale, self.softcap = layer, scale, softcap

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """A frozen copy of a model's head, which outlives the model.

        Raises:
            MuscleError: The model has no head.
        """
        layer = copy.deepcopy(output_head(model)).requires_grad_(False)
        return cls(layer, *_scale_and_softcap(model)).eval()

    @classmethod
    def within(cls, model: nn.Module) -> Head:
        """A model's own head, weights and gradients shared with it; the same while `read_states` stands in its place.

        Raises:
            MuscleError: The model has no head.
        """
        return cls(output_head(model).forward, *_scale_and_softcap(model))

    @torch.no_grad()
    def save(self, file: Path, like: Tensor) -> None:
        """Write it as one matrix and bias, whatever its layer is made of, as safetensors.

        Args:
            file: Where.
            like: Hidden states (..., H), of whose width, precision and device it is to make logits.
        """
        if type(self.layer) is nn.Linear:
            parts: dict[str, Tensor] = {name: weight.data for name, weight in self.layer.named_parameters()}
        else:  # an adapted or quantized layer is known by what it makes of the unit vectors
            units = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
            bias = self.layer(torch.zeros_like(units[:1]))[0]
            with _without_bias(self.layer):
                bare = self.layer(units)
                rest = self.layer(torch.zeros_like(units[:1]))[0]  # where the bias is somewhere else
            parts = {"weight": (bare - rest).T.contiguous(), "bias": bias}
        save_file(parts, file, {"scale": json.dumps(self.scale), "softcap": json.dumps(self.softcap)})

    @classmethod
    def load(cls, file: Path) -> Head:
        """The head that `save` wrote, frozen."""
        with safe_open(file, "pt") as saved:
            parts = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118, no dict
            scale, softcap = (json.loads(saved.metadata()[name]) for name in ("scale", "softcap"))
        outputs, inputs = parts["weight"].shape
        layer = nn.Linear(inputs, outputs, bias="bias" in parts, device="meta")
        layer.load_state_dict(parts, assign=True)
        return cls(layer.requires_grad_(False), scale, softcap).eval()

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., H)."""
        logits: Tensor = self.layer(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


_Read = TypeVar("_Read")


def read_states(model: nn.Module, read: Callable[[Tensor, Head], _Read], **inputs: Any) -> _Read:
    """What `read` makes of a model's final hidden states, as in `run_to_head`."""
    return run_to_head(model, read, **inputs)[0]


def run_to_head(model: nn.Module, read: Callable[[Tensor, Head], _Read], **inputs: Any) -> tuple[_Read, Tensor]:
    """Run a model as far as its head, and no further.

    The head is given as it is inside the forward pass: there its weights are whole, also where several processes share
    them, and mixed precision holds as for the model's own logits.

    Args:
        model: A causal LM, as such or as accelerate wraps it. Its head must be known (`head_is_known`).
        read: Called once, within the forward pass, with final hidden states (B, T, H) as they enter the head, and with
            the head. The model's logits are not computed.
        **inputs: Of the model.

    Returns:
        What `read` returns; and the model's output in place of logits, (B, T, 0). FSDP2 gathers weights for the
        backward pass when it reaches a module's output, which therefore belongs into the graph of a loss.

    Raises:
        MuscleError: The model has no head, or does not use it.
    """
    inner = extract_model_from_parallel(model)
    layer = output_head(inner)
    own, found = layer.forward, list[_Read]()

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        found.append(read(hidden, Head(own, *_scale_and_softcap(inner))))
        return hidden[..., :0].clone()  # not a view: FSDP2 warns of those

    replaced = layer.__dict__.get("forward")  # as accelerate's hooks do, for one
    layer.forward = forward
    try:
        output: Tensor = model(**inputs).logits
    finally:
        del layer.forward
        if replaced:
            layer.forward = replaced
    if not found:
        raise unknown_head(inner)
    return found[0], output


@torch.no_grad()
def head_is_known(model: nn.Module) -> bool:
    """Whether `Head` makes of final hidden states the logits that the model itself makes; tried on two tokens.

    Raises:
        MuscleError: The model has no head.
    """
    caught: list[Tensor] = []
    hook = output_head(model).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        tokens = torch.tensor([[0, 1]], device=next(model.parameters()).device)
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
    if not caught:
        return False
    tolerance = max(1e-5, torch.finfo(logits.dtype).eps) * logits.abs().max()
    return bool((Head.within(model)(caught[0]) - logits).abs().max() <= tolerance)


def _scale_and_softcap(model: nn.Module) -> tuple[float, float | None]:
    config: Any = model.config
    text = config.get_text_config()
    scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    return scale, getattr(text, "final_logit_softcapping", None)


@contextmanager
def _without_bias(layer: Any) -> Iterator[None]:
    """An adapted layer without its base's bias: in 16 bits, a product is rounded to what a large bias leaves of it."""
    inner: Any = getattr(layer, "base_layer", None)
    bias = inner.bias if isinstance(inner, nn.Linear) else None
    if bias is not None:
        inner.bias = None
    try:
        yield
    finally:
        if bias is not None:
            inner.bias = bias


def output_head(model: nn.Module) -> nn.Module:
    """The layer that turns final hidden states into logits.

    Raises:
        MuscleError: the model has no such layer.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        raise MuscleError(f"{_architecture(model)} has no output head: use a causal language model")
    return head


def unknown_head(model: nn.Module) -> MuscleError:
    """What to say of a model whose logits `Head` does not know how to make."""
    return MuscleError(
        f"{_architecture(model)} makes logits of its final hidden states in a way that the teacher cache does not "
        "know: set `teacher_cache: off` under `alignment`, or `across: likelihood` if it is an old model with another "
        "tokenizer"
    )


def _architecture(model: nn.Module) -> str:
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
