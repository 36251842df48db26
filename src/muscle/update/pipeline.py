"""Stages with resumable, content-addressed outputs, and which of them are done; `workers` runs the others.

A stage writes one folder. It is done when that folder holds `stage.json` with the stage's fingerprint: a hash of its
settings and the fingerprints of the stages it reads. So a second run does only what is missing, and a changed setting
redoes what depends on it, no more. Beside it stands a hash of the program: what another version has done is redone as
well, unless it is kept on purpose. A stage that does not finish leaves its output in `.partial`; of that only the
folder CHECKPOINTS is there when the same stage starts again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from muscle.recipes import PROJECT_TASKS

CHECKPOINTS = "checkpoints"
"""Folder in a stage's destination from which the stage goes on where it was stopped; removed when it is done."""

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "datasets", "lm_eval", "rouge_score")
"""Those whose versions decide what stages write."""

Report = Callable[[float, str], None]
"""Told the share done in [0, 1] and a few words."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    """Also its folder below the pipeline's root, for example "scenes/new"."""
    function: Callable[..., None]
    """Module-level; called as function(destination, report, **settings, **{keyword: folder of that input})."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything that decides the output besides the inputs; plain JSON values."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Keyword of the function -> name of the stage whose folder it gets."""


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is."""

    name: str
    state: Literal["done", "outdated", "changed", "stopped", "missing"]
    """outdated: done by another version of the program; changed: done with other settings; stopped: begun only."""
    seconds: float | None
    """That it took, where it is done."""


def pipeline_status(stages: Sequence[Stage], root: Path) -> list[StageStatus]:
    """How far each stage of a run is."""
    fingerprints, program = fingerprint(stages), program_hash(stages)
    statuses = []
    for stage in stages:
        record = _record(root / stage.name)
        if record.get("fingerprint") == fingerprints[stage.name]:
            state: Literal["done", "outdated"] = "done" if record.get("program") == program else "outdated"
            statuses.append(StageStatus(stage.name, state, record.get("seconds")))
        elif (root / ".partial" / stage.name).exists():
            statuses.append(StageStatus(stage.name, "stopped", None))
        else:
            statuses.append(StageStatus(stage.name, "changed" if record else "missing", None))
    return statuses


def fingerprint(stages: Sequence[Stage]) -> dict[str, str]:
    """Fingerprint of each stage, by name."""
    known: dict[str, str] = {}
    for stage in stages:
        content = {
            "name": stage.name,
            "function": f"{stage.function.__module__}:{stage.function.__qualname__}",
            "settings": stage.settings,
            "inputs": {keyword: known[name] for keyword, name in stage.inputs.items()},
        }
        known[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return known


def program_hash(stages: Sequence[Stage] = ()) -> str:
    """Hash of the code that stages run, of the project's task definitions, and of the libraries underneath.

    Without stages it is that of an update. Reports and the command line are left out: they decide no adapter and no
    log.
    """
    digest = hashlib.sha256()
    folders = {*_PROGRAM, *(Path(inspect.getfile(stage.function)).parent for stage in stages)}
    files = [path for folder in sorted(folders) for path in sorted(folder.glob("*")) if path.suffix in {".py", ".yaml"}]
    for path in [*files, *(_MUSCLE / "measure" / name for name in ("similarity.py", "statistics.py"))]:
        if path.name not in _DECIDES_NOTHING:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {version(library)}".encode())
    return digest.hexdigest()


_MUSCLE = Path(__file__).parents[1]
_PROGRAM = (_MUSCLE / "update", _MUSCLE / "update" / "across", PROJECT_TASKS)
_DECIDES_NOTHING = frozenset(
    {"hub.py", "provenance.py", "recipe_file.py", "run.py", "verbs.py", "pipeline.py", "workers.py"}
)


def _record(folder: Path) -> dict[str, Any]:
    """What the stage of that folder wrote when it was done; empty where none did."""
    try:
        record = json.loads((folder / "stage.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
