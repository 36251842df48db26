"""Where an adapter comes from: the exact models, data, settings and library versions, the same bytes every time."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from muscle import __version__
from muscle.errors import MuscleError
from muscle.update.recipe import TaskModel

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets", "lm_eval")

_DECISIVE = (
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab*", "merges.txt", "chat_template*", "*.model", "*.safetensors", "*.bin", "*.py"),
)
"""Files of a model's folder that decide what it says; a README or a training log does not."""
_MIB = 1 << 20


def provenance(models: Sequence[TaskModel], data: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What to store beside an adapter, as plain JSON values.

    There is no date, user or path in it, so that the same inputs give the same bytes.

    Args:
        models: Every model that was read, the adapter's own last.
        data: Hashes of the data, by name.
        settings: Everything that was chosen, seeds included.

    Raises:
        MuscleError: A model is not there any more.
    """
    return {
        "muscle": __version__,
        "models": [_described(model) for model in models],
        "data": dict(data),
        "settings": dict(settings),
        "python": ".".join(map(str, sys.version_info[:3])),
        "libraries": {name: known for name in LIBRARIES if (known := _version(name)) is not None},
    }


def digest(model: str) -> str:
    """What tells two models apart by content: a base, or an adapter.

    Args:
        model: Local folder, hub id, or hub id@revision.

    Returns:
        Of a hub id, "commit:" and the commit that its revision is now, or was when it was last downloaded. Of a
        folder, "sha256:" and a hash of the names, sizes, first and last MiB of the files that decide what it says.

    Raises:
        MuscleError: There is no such model, or nothing in the folder.
    """
    folder = Path(model)
    if folder.is_dir():
        return f"sha256:{_folder_hash(folder)}"
    return f"commit:{_commit(model)}"


def digests(model: TaskModel) -> list[str]:
    """What tells two task models apart by content: `digest` of the base, and of the adapter where there is one.

    Raises:
        MuscleError: As `digest`.
    """
    return [digest(part) for part in (model.base.base, model.adapter) if part]


def identity(model: TaskModel) -> list[Any]:
    """What tells two task models apart, as plain JSON values: how they are named and loaded, and their content.

    Raises:
        MuscleError: As `digest`.
    """
    return [model.as_dict(), digests(model)]


def folder_key(content: bytes) -> str:
    """16 hexadecimal digits that name a folder by what decides its files."""
    return hashlib.sha256(content).hexdigest()[:16]


def _described(model: TaskModel) -> dict[str, Any]:
    loading = {key: value for key, value in model.base.as_dict().items() if key != "base"}
    base = {"base": _name(model.base.base), "digest": digest(model.base.base), **loading}
    if model.adapter is None:
        return base
    return {**base, "adapter": _name(model.adapter), "adapter_digest": digest(model.adapter)}


def _name(model: str) -> str:
    return Path(model).resolve().name if Path(model).is_dir() else model


def _folder_hash(folder: Path) -> str:
    found = hashlib.sha256()
    files = [file for file in sorted(folder.iterdir()) if any(fnmatch(file.name, each) for each in _DECISIVE)]
    if not files:
        raise MuscleError(f"{folder}: no model or adapter in it; name the folder that holds its config and weights")
    for file in files:
        found.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        for part in _ends(file):
            found.update(part)
    return found.hexdigest()


def _ends(file: Path) -> Iterator[bytes]:
    """The first and the last MiB; all of a file that is no longer than both."""
    with file.open("rb") as content:
        size = file.stat().st_size
        yield content.read(_MIB)
        content.seek(max(_MIB, size - _MIB))
        yield content.read(_MIB)


@cache  # one commit for a whole run, even if the hub moves on
def _commit(model: str) -> str:
    """By downloading the configuration, which whoever loads the model needs anyway; offline, by the one downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    remedy = "check the name, the network, and access (hf auth login)"
    offline = False
    for config in ("config.json", "adapter_config.json"):
        try:
            file = hf_hub_download(name, config, revision=revision or None, local_files_only=offline)
        except LocalEntryNotFoundError:  # of EntryNotFoundError: no network, and this file was never downloaded
            offline = True  # the network was tried long enough
        except EntryNotFoundError:
            pass
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise MuscleError(f"{model}: neither a local folder nor a model of the hub ({reason}); {remedy}") from None
        else:
            return Path(file).parent.name  # .../snapshots/<commit>/config.json
    raise MuscleError(f"{model}: neither a local folder nor a model that the hub gives; {remedy}")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def files_digest(definitions: Iterable[Path], data: Path | None) -> str:
    """Hash of task definitions and local data, so that a changed file runs again what read it."""
    found = hashlib.sha256()
    files = [(folder, path) for folder in definitions for path in folder.rglob("*") if path.suffix in {".yaml", ".py"}]
    files += [(data, path) for path in data.glob("*")] if data else []
    for folder, path in sorted(files, key=lambda file: (file[0] == data, file[1].relative_to(file[0]).as_posix())):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
