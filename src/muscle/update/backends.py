"""Task models behind lm-eval's interface: in this process, or through any other of its back ends."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from accelerate.utils import gather
from huggingface_hub import snapshot_download
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.huggingface import HFLM
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.update.distributed import processes
from muscle.update.generation import can_refill, generate
from muscle.update.load_errors import explained
from muscle.update.models import device, load_task_model, load_tokenizer
from muscle.update.packed import PackedLM
from muscle.update.recipe import Base, EvaluationSettings, TaskModel, split_revision

HF_ARGUMENTS = (
    "add_bos_token",
    "enable_thinking",
    "logits_cache",
    "max_length",
    "mixed_precision_dtype",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)
"""What `backend_args` may say of hf; how a model is loaded is said once, by `Base`."""

VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for max_lora_rank."""

PACKAGES = {"vllm": "lm-eval[vllm]", "sglang": "sglang"}
"""What to install for a back end that is not lm-eval[api]."""


def task_model_lm(model: TaskModel, settings: EvaluationSettings) -> LM:
    """A task model behind lm-eval's interface, through the back end that `settings` name.

    hf loads it into this process. vllm takes the base and its LoRA adapter. Every other back end takes no adapter: it
    is given a merged checkpoint as the base. Those that ask a server send the base's name as the model's, unless
    `backend_args` has another.

    Raises:
        MuscleError: no such back end, its library is missing, or it cannot do what the model asks for.
    """
    try:
        kind = find_backend(settings.backend)
        if kind is HFLM:
            return LocalLM(load_on_device(model), load_tokenizer(model.base), settings)
        return _built(kind, _arguments(kind, model, settings), settings)
    except ImportError as error:
        package = PACKAGES.get(settings.backend, "lm-eval[api]")
        raise MuscleError(
            f"back end '{settings.backend}' of lm-eval cannot be loaded ({one_line(error)}): pip install '{package}'"
        ) from error


def load_on_device(model: TaskModel) -> nn.Module:
    """The task model on this process's accelerator; a quantized one is put there as it is loaded."""
    loaded: nn.Module = load_task_model(model)
    return loaded if model.base.quantization else loaded.to(device())


def in_process(settings: EvaluationSettings) -> EvaluationSettings:
    """The settings for a model that must be in this process, whatever evaluates the others."""
    if find_backend(settings.backend) is HFLM:
        return settings
    return msgspec.structs.replace(settings, backend="hf", backend_args={})


class LocalLM(PackedLM):
    """A model of this process. Under `accelerate launch` each process scores its share of the items.

    Args:
        model: A causal LM, with or without an adapter, on the device where it is to run.
        tokenizer: Its tokenizer.
        settings: Batch size, and `backend_args` out of `HF_ARGUMENTS`. Log-probabilities are float32 whatever the
            model's dtype, unless softmax_dtype says otherwise: bfloat16 has 8 bits, and choices would tie.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: EvaluationSettings) -> None:
        _refuse_unknown(settings.backend_args)
        state = processes()
        with _without_warnings("lm_eval.models.huggingface"):  # of losing data parallelism, which is added below
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=settings.batch_size,
                **{"softmax_dtype": "float32", **settings.backend_args},
            )
        self._rank, self._world_size = state.process_index, state.num_processes

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to requests of (prompt, gen_kwargs), without waiting for the longest of a batch where that can be."""
        if can_refill(self, requests):
            asked = [request.args for request in requests]
            return [answer.text for answer in generate(self, asked, disable_tqdm)]
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        return answers

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other."""
        gathered: Tensor = gather(tensor)
        return gathered

    def barrier(self) -> None:
        """Wait for all processes."""
        processes().wait_for_everyone()


def one_line(error: BaseException) -> str:
    """What an error of a library says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def find_backend(name: str) -> type[LM]:
    """lm-eval's class of that name.

    Raises:
        MuscleError: there is none.
        ImportError: its library is missing.
    """
    if name not in model_registry:
        known = sorted(model_registry.keys())
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
        raise MuscleError(f"lm-eval has no back end '{name}': {hint}")
    kind: type[LM] = model_registry.get(name)
    return kind


def _built(kind: type[LM], arguments: dict[str, Any], settings: EvaluationSettings) -> LM:
    try:
        return kind(**arguments)
    except TypeError as error:
        raise MuscleError(
            f"back end '{settings.backend}' cannot be made ({one_line(error)}): correct backend_args"
        ) from error


def _arguments(kind: type[LM], model: TaskModel, settings: EvaluationSettings) -> dict[str, Any]:
    """What the back end's constructor is called with; `backend_args` come last."""
    backend = settings.backend
    if model.base.quantization is not None:
        raise MuscleError(
            f"quantization of a base is for back end hf; for '{backend}' leave it out and quantize through backend_args"
        )
    if model.adapter is not None and backend != "vllm":
        raise MuscleError(
            f"back end '{backend}' of lm-eval takes no adapter: make {model.adapter} and its base one checkpoint with "
            "`muscle merge`, and use that as a base without adapter"
        )
    if issubclass(kind, TemplateAPI):
        arguments = _served(kind, model.base, settings)
    elif backend == "vllm":
        arguments = {**_engine(model.base), **_vllm(model, settings)}
    elif backend == "sglang":
        arguments = {**_engine(model.base), "random_seed": settings.seed, "add_bos_token": _adds_bos(model.base)}
    else:
        arguments = {"pretrained": model.base.base}
    return {**arguments, **settings.backend_args}


def _served(kind: type[LM], base: Base, settings: EvaluationSettings) -> dict[str, Any]:
    url = inspect.signature(kind).parameters.get("base_url")
    if url is not None and url.default is None and "base_url" not in settings.backend_args:
        raise MuscleError(f"back end '{settings.backend}' asks a server: give its address as backend_args.base_url")
    name, revision = split_revision(base.base)
    return {
        "model": name,
        "revision": revision or "main",
        "trust_remote_code": base.trust_remote_code,
        "add_bos_token": _adds_bos(base),
        "seed": settings.seed,
    }


def _adds_bos(base: Base) -> bool:
    """Whether texts begin with a begin-of-text token, as in training; lm-eval leaves it out for these back ends."""
    tokenizer = load_tokenizer(base)
    ids: list[int] = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _engine(base: Base) -> dict[str, Any]:
    """What vLLM and SGLang call alike. Left to themselves they load pickled weights, and SGLang runs remote code."""
    name, revision = split_revision(base.base)
    return {
        "pretrained": name,
        "revision": revision,
        "dtype": base.dtype,
        "trust_remote_code": base.trust_remote_code,
        "batch_size": "auto",
        "load_format": "auto" if base.allow_pickle else "safetensors",
    }


def _vllm(model: TaskModel, settings: EvaluationSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {"tokenizer_revision": split_revision(model.base.base)[1], "seed": settings.seed}
    if model.adapter is None:
        return arguments
    with explained("adapter", model.adapter):
        folder = local_adapter(model.adapter, model.base.allow_pickle)
        config = PeftConfig.from_pretrained(folder)
    rank = max([config.r, *config.rank_pattern.values()])
    if config.use_dora or rank > VLLM_LORA_RANKS[-1]:
        fault = "DoRA" if config.use_dora else f"rank {rank}"
        raise MuscleError(f"vLLM does not run adapters with {fault}, as {model.adapter} is: `muscle merge` it first")
    allowed = next(allowed for allowed in VLLM_LORA_RANKS if allowed >= rank)
    return {**arguments, "lora_local_path": folder, "max_lora_rank": allowed}


def local_adapter(adapter: str, allow_pickle: bool) -> str:
    """Folder of an adapter, downloaded if need be, for what knows no revisions or takes what it finds, as vLLM does."""
    name, revision = split_revision(adapter)
    if Path(name).is_dir():
        return name
    kept = None if allow_pickle else ["*.json", "*.safetensors"]
    return snapshot_download(name, revision=revision, allow_patterns=kept)


def _refuse_unknown(arguments: Any) -> None:
    for name in arguments:
        if name not in HF_ARGUMENTS:
            near = difflib.get_close_matches(name, HF_ARGUMENTS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(HF_ARGUMENTS)}"
            raise MuscleError(f"backend_args.{name} is no argument of back end hf: {hint}")


@contextmanager
def _without_warnings(logger: str) -> Iterator[None]:
    named = logging.getLogger(logger)
    before = named.level
    named.setLevel(logging.ERROR)
    try:
        yield
    finally:
        named.setLevel(before)
