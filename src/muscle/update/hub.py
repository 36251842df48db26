"""Handing results on: an adapter to the hub, or merged into its base as an ordinary checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from huggingface_hub import HfApi, get_token, metadata_load
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from muscle.errors import MuscleError
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.recipe import TaskModel

PUBLISHED = (
    *("README.md", "adapter_config.json", "adapter_model*.safetensors", "adapter_model.safetensors.index.json"),
    *("provenance.json", "training.json", "tokenizer*", "special_tokens_map.json", "chat_template*"),
)
"""What of an adapter's folder is uploaded: no logs, no checkpoints, nothing pickled."""


def push(adapter: Path, repo_id: str, *, private: bool) -> str:
    """Upload an adapter with its model card, in one commit; a repository that is there already gets a new one.

    Args:
        adapter: Folder of the adapter.
        repo_id: name, or owner/name.
        private: Whether a repository that is made by this is private.

    Returns:
        The address of the commit.

    Raises:
        MuscleError: The folder lacks a model card or weights as safetensors, nobody is logged in, or the hub refuses.
    """
    _check_complete(adapter)
    check_login(repo_id)
    api = HfApi()
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=adapter,
            allow_patterns=list(PUBLISHED),
            commit_message="Adapter with model card",
        )
    except HFValidationError as error:
        raise MuscleError(f"{repo_id}: {_first_line(error)}: name it owner/name") from None
    except HfHubHTTPError as error:
        raise MuscleError(f"{repo_id}: the hub refuses ({_first_line(error)}): check the name and the token") from None
    except HTTPError as error:
        raise MuscleError(f"{repo_id}: the hub cannot be reached ({_first_line(error)}): check the network") from None
    return str(commit.commit_url)


def check_login(name: str) -> None:
    """Refuse where nobody is logged in to the hub.

    Raises:
        MuscleError: There is no token.
    """
    if get_token() is None:
        raise MuscleError(f"{name}: no token of the hub: log in with `hf auth login`, or set HF_TOKEN")


def _check_complete(adapter: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise MuscleError(f"{adapter}: no {name} in it: name the folder of an adapter, saved as safetensors")
    card = adapter / "README.md"
    if not card.is_file() or not metadata_load(card):
        raise MuscleError(f"{adapter}: no model card (README.md with metadata) in it: write one first")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def merge(model: TaskModel, destination: Path) -> None:
    """Write base and adapter as one checkpoint that needs no PEFT, its tokenizer beside; whole or not at all.

    The weights have the base's type, so in 16 bits the sum is rounded.

    Args:
        model: Base and adapter.
        destination: A folder that is not there yet, or empty.

    Raises:
        MuscleError: There is nothing to merge, the base is quantized, or the folder is in use or cannot be written.
    """
    if model.adapter is None:
        raise MuscleError(f"{model.base.base}: nothing to merge: name an adapter")
    if model.base.quantization is not None:
        raise _quantized(model)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise MuscleError(f"{destination} exists: name a folder that is not there yet, or empty")
    loaded = load_task_model(model)
    assert isinstance(loaded, PeftModel)
    if getattr(loaded.get_base_model(), "is_quantized", False):
        raise _quantized(model)
    _untie(loaded)
    try:
        merged = loaded.merge_and_unload(safe_merge=True)
    except ValueError as error:  # not a number
        raise MuscleError(f"{model.adapter}: {_first_line(error)}: the adapter is broken, train it again") from None
    draft = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        draft.mkdir(parents=True)
        merged.save_pretrained(draft)
        load_tokenizer(model.base).save_pretrained(draft)
        draft.replace(destination)
    except OSError as error:
        raise MuscleError(f"{destination}: cannot be written ({error.strerror or error}); check the folder") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _quantized(model: TaskModel) -> MuscleError:
    return MuscleError(
        f"{model.base.base} is quantized, so that merging would round the adapter away: merge into the original weights"
    )


def _untie(model: PeftModel) -> None:
    """Give the head weights of its own, if it shares the embedding's and one of both has an adapter."""
    base = model.get_base_model()
    layers = base.get_input_embeddings(), base.get_output_embeddings()
    embedding, head = (each.get_base_layer() if isinstance(each, BaseTunerLayer) else each for each in layers)
    if head.weight is embedding.weight and any(isinstance(each, BaseTunerLayer) for each in layers):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
