"""Why a model, tokenizer or adapter cannot be loaded, as one line that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft.utils.error import NoMatchingPeftModuleError
from safetensors import SafetensorError

from muscle.errors import MuscleError

REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (GatedRepoError, "its page on the hub asks to accept terms first: do so, then `hf auth login`"),
    (RevisionNotFoundError, "the hub has no such revision of it: correct what comes after @"),
    (RepositoryNotFoundError, "no local folder and nothing on the hub is called so: correct it, or `hf auth login`"),
    (HFValidationError, "no local folder is called so: correct the path"),
    (LocalEntryNotFoundError, "it is not on this machine and the hub cannot be reached: connect, or give a folder"),
    (SafetensorError, "its weights are damaged: fetch or write them again"),
    (NoMatchingPeftModuleError, "it does not fit the base: give the base that it was trained on"),
)
"""Why loading fails, by the exception at the bottom of it."""

WORDS: tuple[tuple[str, str], ...] = (
    ("trust_remote_code", "it comes with code of its own: set `trust_remote_code: true` if you trust its authors"),
    ("Unrecognized configuration class", "it is no causal language model: choose one"),
    ("does not recognize this architecture", "this transformers does not know its architecture: upgrade transformers"),
    ("adapter_config.json", "it has no adapter_config.json: give the folder or hub id of a PEFT adapter"),
    ("config.json", "it has no config.json that names an architecture: give the folder of a transformers checkpoint"),
    ("bitsandbytes", "bitsandbytes cannot run on this machine: use one with a GPU, or leave `quantization` out"),
    ("size mismatch for base_model", "it does not fit the base: give the base that it was trained on"),
    ("missing adapter keys", "it lacks weights that its configuration names: save or fetch it again"),
)
"""Why loading fails, by what the message says."""


@contextmanager
def explained(what: str, name: str) -> Iterator[None]:
    """Turn the exceptions of the libraries that load into one line on what is wrong with `name`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, UserWarning) as error:
        raise MuscleError(f"cannot load {what} {name}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    chain: list[BaseException] = [error]
    while below := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(below)
    for kind, reason in REASONS:
        if any(isinstance(link, kind) for link in chain):
            return reason
    for words, reason in WORDS:
        if words in str(error):
            return reason
    return f"{first_line(error)}: mend it or choose another"


def first_line(error: BaseException) -> str:
    """What an exception of a library says, up to its first line break or full stop at the end of a sentence."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".:")
