"""Where an lm-eval task comes from: its YAML file, found by its name, and its data, from the hub or a local folder."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import msgspec
import pyarrow
import pyarrow.parquet
from datasets import Dataset
from jinja2 import Environment, meta
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from muscle.errors import MuscleError, quoted
from muscle.recipes import PROJECT_TASKS

_LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
_PROMPT_KEYS = ("doc_to_text", "doc_to_target", "doc_to_choice")
_ROW = msgspec.json.Decoder(dict[str, Any])
_ROWS = msgspec.json.Decoder(list[dict[str, Any]])
_FORMATS = (".jsonl", ".json", ".parquet")


def open_task(name: str, include_path: Path | None, data: Path | None, num_fewshot: int | None) -> ConfigurableTask:
    """The lm-eval task `name`, defined under `include_path`, with its data, by this project or by lm-eval, first found.

    Args:
        name: One task; no group, no tag.
        include_path: Folder of further task YAML files. Their `!function` entries run the user's own code.
        data: Folder of local data. A task that has a folder there reads <data>/<task>/<split>.jsonl, .json or .parquet
            in place of its data set, with the split names of its YAML file, which may be there too: <data>/<task>/
            <task>.yaml.
        num_fewshot: Shots of the evaluation's prompts; None is what the task says.

    Raises:
        MuscleError: No such task; or its data are not to be had, or not what its prompts need.
    """
    if data and not data.is_dir():
        raise MuscleError(f"no folder {data}: correct the recipe's `data`")
    local = data / name if data and (data / name).is_dir() else None
    beside = [local] if local and (local / f"{name}.yaml").is_file() else []
    manager = _manager_that_knows(name, include_path, beside)
    config = manager.task_index[name].cfg or {}
    overrides: dict[str, Any] = {}
    if not (config.get("num_fewshot") or 0 if num_fewshot is None else num_fewshot):
        # Without shots lm-eval would read the split that they come from all the same, which may not be there.
        overrides |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
    if local:
        overrides |= {
            "custom_dataset": local_data,
            "dataset_path": str(local),
            "dataset_kwargs": {"folder": str(local)},
        }
    try:
        if local:
            _check_fields(name, config, LocalSplits(local))
        # A group of one is lm-eval's way to load a task with some of its keys changed.
        task = manager.load({"group": "muscle", "task": [{"task": name, **overrides}]})["tasks"][name]
    except MuscleError:
        raise
    except Exception as error:  # the code of a YAML file can raise anything
        raise MuscleError(_why_not_loaded(name, config, local, error)) from error
    if local and not isinstance(task.dataset, LocalSplits):
        raise MuscleError(f"lm-eval task '{name}' loads its data by its own code: remove {local}")
    return task


def split_of(task: ConfigurableTask, split: str) -> Dataset:
    """A split of a task's data by its name, put through the task's `process_docs` as those that the task names are.

    Raises:
        MuscleError: There is none, or `process_docs` fails on it.
    """
    if split not in task.dataset and not isinstance(task.dataset, LocalSplits):  # which says what to add
        known = ", ".join(map(str, task.dataset))
        raise MuscleError(
            f"the data of task '{task.config.task}' has no split {quoted(split)}: choose among {known} for "
            f"`tasks.{task.config.task}.unlabelled`"
        )
    docs = task.dataset[split]
    if task.config.process_docs is None:
        return docs
    try:
        return task.config.process_docs(docs)
    except Exception as error:  # the code of a YAML file can raise anything
        raise MuscleError(
            f"process_docs of task '{task.config.task}' fails on split {quoted(split)} ({brief(error)}): let it take "
            "items without labels, or choose another split"
        ) from error


def _manager_that_knows(name: str, include_path: Path | None, beside: Sequence[Path] = ()) -> TaskManager:
    """lm-eval's index of the folder that defines a task; its index of all folders takes 6 to 20 s."""
    if include_path and not include_path.is_dir():
        raise MuscleError(f"no folder {include_path}: correct include_path")
    own = [PROJECT_TASKS, *beside, *([include_path] if include_path else [])]  # lm-eval lets the last one win
    manager = TaskManager(include_path=own, include_defaults=False)
    if name not in manager.all_tasks:
        definitions = lm_eval_definitions()
        if name in definitions:
            manager = TaskManager(include_path=definitions[name].parent, include_defaults=False)
        elif _is_tag(name):
            manager = TaskManager()
        else:
            known = manager.all_subtasks
            near = difflib.get_close_matches(name, [*known, *definitions], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"defined beside lm-eval's own: {', '.join(known)}"
            raise MuscleError(f"no lm-eval task '{name}'{f' under {include_path}' if include_path else ''}: {hint}")
    if name in manager.all_subtasks:
        return manager
    entry = manager.task_index[name]
    members = sorted(entry.tags) if name in manager.all_tags else _members(entry.cfg)
    raise MuscleError(f"'{name}' is a group of lm-eval tasks: name its tasks one by one ({', '.join(members)})")


@cache
def lm_eval_definitions() -> dict[str, Path]:
    """Where lm-eval defines its own tasks and groups, by name, from the text of its 14,000 YAML files: 0.2 to 2 s."""
    definition = re.compile(rb"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*([^\r\n#]*[^\s#])", re.MULTILINE)
    found: dict[str, Path] = {}
    for file in _lm_eval_files():
        for name in definition.findall(file.read_bytes()):
            found.setdefault(name.decode().strip("\"'"), file)  # the first one counts, as in lm-eval
    return found


def _lm_eval_files() -> list[Path]:
    return sorted(_LM_EVAL_TASKS.rglob("*.yaml"), key=lambda file: file.as_posix())


def _is_tag(name: str) -> bool:
    """Whether some task may have this tag: it is the value of `tag`, or an item of a list."""
    tag = re.compile(rb"^(?:tag\s*:|\s*-)\s*[\"']?%s[\"']?\s*$" % re.escape(name.encode()), re.MULTILINE)
    return any(tag.search(file.read_bytes()) for file in _lm_eval_files())


def _members(group: Mapping[str, Any]) -> list[str]:
    listed = group["task"] if isinstance(group["task"], list) else [group["task"]]
    return [member if isinstance(member, str) else str(member.get("task", member.get("group"))) for member in listed]


def _why_not_loaded(name: str, config: Mapping[str, Any], local: Path | None, error: Exception) -> str:
    reason = brief(error)
    if local:
        return f"lm-eval task '{name}' cannot be loaded with the data in {local} ({reason}): correct one of the two"
    remedy = f"put its splits into <data>/{name}/ as .jsonl, .json or .parquet and set the recipe's `data` to <data>"
    if not config.keys() & {"dataset_path", "custom_dataset", "class"}:
        return f"lm-eval task '{name}' has no data set on the hub: {remedy}"
    return (
        f"lm-eval task '{name}' cannot be loaded with data set {config.get('dataset_path')} ({reason}): correct its "
        f"YAML file; or, where the data set cannot be fetched, {remedy}"
    )


def brief(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def local_data(folder: str, **_: Any) -> LocalSplits:
    """What lm-eval calls in place of loading a data set; `folder` comes from the task's dataset_kwargs."""
    return LocalSplits(Path(folder))


class LocalSplits(Mapping[str, Dataset]):
    """Splits of a task by name, each read when it is asked for: <folder>/<split>.jsonl, .json or .parquet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Dataset] = {}

    def __getitem__(self, split: str) -> Dataset:
        if split not in self._read:
            self._read[split] = _read(self.file(split))
        return self._read[split]

    def file(self, split: str) -> Path:
        """The file of a split.

        Raises:
            MuscleError: There is none, or more than one.
        """
        found = [file for suffix in _FORMATS if (file := self.folder / f"{split}{suffix}").is_file()]
        if len(found) > 1:
            raise MuscleError(f"{self.folder}: {' and '.join(file.name for file in found)}: keep one of them")
        if not found:
            raise MuscleError(f"{self.folder} has no {split} split: add {split}{', '.join(_FORMATS[:2])} or .parquet")
        return found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({file.stem for file in self.folder.iterdir() if file.suffix in _FORMATS}))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _read(file: Path) -> Dataset:
    """Rows of a data file, all with the fields of the first."""
    if file.suffix == ".parquet":
        try:
            return Dataset(pyarrow.parquet.read_table(file))
        except (pyarrow.ArrowException, OSError) as error:
            raise MuscleError(f"{file} is no readable Parquet file ({error}): write it anew") from error
    lines = file.suffix == ".jsonl"
    try:
        content = file.read_bytes()
        rows = _ROW.decode_lines(content) if lines else _ROWS.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        kind = "JSON objects, one a line" if lines else "a JSON list of objects"
        raise MuscleError(f"{file} is not {kind} ({error}): correct it") from error
    if not rows:
        raise MuscleError(f"{file} has no rows: add some, or remove the file")
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            field = min(row.keys() ^ rows[0].keys())
            raise MuscleError(
                f"{file}: rows 1 and {number} differ in having the field {quoted(field)}: give all the same"
            )
    try:
        return Dataset.from_list(rows)
    except pyarrow.ArrowException as error:
        raise MuscleError(f"{file} has a field with values of different types ({error}): write one type") from error


def _check_fields(name: str, config: Mapping[str, Any], splits: LocalSplits) -> None:
    """A field that a prompt names and the data lack: lm-eval would take `doc_to_text: question` for the text itself."""
    split = config.get("test_split") or config.get("validation_split")
    if split is None or config.get("process_docs") is not None:
        return  # lm-eval says so; or the task's code makes the fields
    fields = splits[split].column_names
    for key in _PROMPT_KEYS:
        template = config.get(key)
        if not isinstance(template, str):
            continue
        needed = (
            {template} if template.isidentifier() else meta.find_undeclared_variables(Environment().parse(template))
        )
        if missing := sorted(needed.difference(fields)):
            raise MuscleError(
                f"{splits.file(split)} lacks the field {quoted(missing[0])} that {key} of task '{name}' reads "
                f"(it has {', '.join(fields)}): add it"
            )
