"""Recipes as YAML files with overrides from the command line; errors name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import msgspec
import yaml  # type: ignore[import-untyped]

from muscle.errors import MuscleError
from muscle.update.alignment_settings import AlignmentSettings, SearchSettings, check_alignment
from muscle.update.recipe import (
    Control,
    EvaluationSettings,
    LoraSettings,
    Recipe,
    Scratch,
    Side,
    TaskSettings,
    TrainingSettings,
)
from muscle.update.report.paper import TABLE_9
from muscle.update.settings import Settings

KeyPath = tuple[str, ...]
"""The keys from the top of a recipe to a value."""

NAMES_OF_MODELS = ("old", "new", *get_args(Control))
"""Names that a method cannot have."""

_GROUPS: dict[str, type[Settings]] = {
    "lora": LoraSettings,
    "training": TrainingSettings,
    "alignment": AlignmentSettings,
    "alignment_training": TrainingSettings,
    "evaluation": EvaluationSettings,
    "old": Side,
    "new": Side,
    "scratch": Scratch,
    "search": SearchSettings,
}
"""Keys whose values are settings, wherever they stand."""
_NAMED_GROUPS: dict[str, type[Settings]] = {"tasks": TaskSettings, "methods": AlignmentSettings}
"""Keys whose values are settings by a name of the user's."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader, to which on and off are words, as in YAML 1.2, not true and false."""

    yaml_implicit_resolvers: ClassVar = {  # by first letter; nothing else begins with these two
        first: known for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items() if first not in ("o", "O")
    }


def read_recipe(file: Path, overrides: Sequence[str] = (), given: Mapping[KeyPath, object] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        file: YAML with the fields of `Recipe`.
        overrides: KEY=VALUE with a dotted key, for example "tasks.piqa.training.epochs=3"; the value is YAML.
        given: Values by path that take the place of the file's, and that overrides still change.

    Raises:
        MuscleError: The file cannot be read or is not YAML, a key is unknown, or a value is out of range.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MuscleError(f"{file}: cannot be read ({error}); name a recipe, a YAML file") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        content = {} if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else f"{file}"
        raise MuscleError(f"{place}: not YAML ({getattr(error, 'problem', None) or error}); correct it") from None
    lines = {} if node is None else dict(_lines(node, ()))
    return make_recipe(content, overrides, given, str(file), lines)


def make_recipe(
    content: object,
    overrides: Sequence[str] = (),
    given: Mapping[KeyPath, object] | None = None,
    source: str = "the recipe",
    lines: Mapping[KeyPath, int] | None = None,
) -> Recipe:
    """Make a recipe of plain values.

    Args:
        content: What a recipe file holds.
        overrides: As in `read_recipe`.
        given: As in `read_recipe`.
        source: Where the content is from, for errors.
        lines: The line of each key there, by its path.

    Raises:
        MuscleError: A key is unknown, or a value is out of range.
    """
    places = {path: f"{source}:{line}: " for path, line in (lines or {}).items()}
    if not isinstance(content, dict):
        raise MuscleError(f"{source}: has no keys; write the fields of a recipe, such as old, new and tasks")
    plain = msgspec.to_builtins(content, str_keys=True)
    for path, value in (given or {}).items():
        if path[0] != "tasks" or path[-1] not in (plain.get("tasks") or {}):  # a task that is there stays as it is
            _put(plain, path, msgspec.to_builtins(value))  # a copy, which overrides may change
    for override in overrides:
        path, value = _parsed(override)
        _put(plain, path, value)
        places[path] = f"--set {override}: "
    checker = _Checker(source, places)
    checker.check(plain, Recipe, ())
    recipe = msgspec.convert(plain, Recipe, strict=False)
    checker.check_whole(recipe)
    return recipe


def _lines(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)


def _parsed(override: str) -> tuple[KeyPath, object]:
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise MuscleError(f"--set {override}: expected KEY=VALUE, for example training.epochs=3")
    try:
        return path, yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise MuscleError(f"--set {override}: the value is not YAML; quote it") from None


def _put(content: dict[str, Any], path: KeyPath, value: object) -> None:
    """Set one value in place."""
    for name in path[:-1]:
        if not isinstance(content.get(name), dict):
            content[name] = {}
        content = content[name]
    content[path[-1]] = value


@dataclass(frozen=True)
class _Checker:
    """Checks plain values against settings, group by group, so that an error has its place."""

    source: str
    places: Mapping[KeyPath, str]

    def error(self, path: KeyPath, problem: str) -> MuscleError:
        """Starts with the place of the innermost key of `path` that is written somewhere."""
        keys = tuple(name.partition("[")[0] for name in path)
        written = (self.places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.places)
        return MuscleError(f"{next(written, f'{self.source}: ')}{'.'.join(path) or 'the recipe'}{problem}")

    def check(self, content: dict[str, Any], settings: type[Settings], path: KeyPath) -> None:
        """Refuse unknown keys and values out of range; a group with nothing in it becomes an empty one."""
        for key, value in content.items():
            inner = (*path, key)
            if key not in settings.__struct_fields__:
                raise self.error(inner, f" is no setting; {_hint(key, settings.__struct_fields__)}")
            if key in _NAMED_GROUPS:
                content[key] = value or {}
                for name in self._mapping(content[key], inner):
                    content[key][name] = content[key][name] or {}
                    self.check(self._mapping(content[key][name], (*inner, name)), _NAMED_GROUPS[key], (*inner, name))
            elif key in _GROUPS and value is not None:
                self.check(self._mapping(value, inner), _GROUPS[key], inner)
        try:
            msgspec.convert(content, settings, strict=False)
        except msgspec.ValidationError as error:
            problem, _, where = str(error).partition(" - at `$.")
            names = tuple(where.rstrip("`").split(".")) if where else ()
            raise self.error((*path, *names), f": {problem[:1].lower()}{problem[1:]}; correct it") from None

    def _mapping(self, value: object, path: KeyPath) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(path, " has no keys; write keys below it, each with its value")
        return value

    def check_whole(self, recipe: Recipe) -> None:
        """What concerns several keys: one origin of each base, at least one task, names that can be folders."""
        for name, side in (("old", recipe.old), ("new", recipe.new)):
            if (side.base is None) == (side.scratch is None):
                raise self.error((name,), " needs base or scratch, and not both; write one of them")
        if not recipe.tasks:
            raise self.error(("tasks",), " is empty; name an lm-eval task, such as piqa")
        for method in recipe.methods:
            if method in NAMES_OF_MODELS:
                raise self.error(("methods", method), ": that name is taken; choose another")
        self._check_adapters(recipe)
        self._check_alignments(recipe)
        self._check_searches(recipe)
        if recipe.paper_update is not None and recipe.paper_update not in TABLE_9:
            raise self.error(("paper_update",), f" is no row of the paper; {_hint(recipe.paper_update, TABLE_9)}")
        if len(set(recipe.controls)) < len(recipe.controls):
            raise self.error(("controls",), " names one twice; remove one")
        for control in ("reranked", "gated"):
            drawn = [task for task in recipe.tasks if recipe.evaluation_of(task).draws > 1]
            if control in recipe.controls and drawn:
                problem = f": {control} answers each item once, and {drawn[0]} has several draws; leave one of them out"
                raise self.error(("controls",), problem)
        for group, names in (("tasks", recipe.tasks), ("methods", recipe.methods)):
            for name in names:
                if "/" in name or name.startswith("."):
                    raise self.error((group, name), " cannot name a folder; choose another name")

    def _check_alignments(self, recipe: Recipe) -> None:
        """Settings that make no sense together; plain cross-entropy as a control reads none of the others."""
        for task, method in ((task, method) for task in recipe.tasks for method in recipe.aligned):
            tokens = recipe.alignment_training_of(task).tokens
            problem = check_alignment(recipe.alignment_of(task, method), tokens) if method != "cross_entropy" else None
            if problem:
                key = re.split(r"\W", problem)[0]
                owners: list[KeyPath] = [("methods", method), ("tasks", task, "alignment"), ("alignment",)]
                written = [(*owner, key) for owner in owners if (*owner, key) in self.places]
                raise self.error((written or [(*owners[0], key)])[0], problem.removeprefix(key))

    def _check_searches(self, recipe: Recipe) -> None:
        """A search is what a method is; its lengths lead to a full training."""
        owners: list[tuple[KeyPath, object]] = [(("alignment",), recipe.alignment.search)]
        owners += [(("tasks", name, "alignment"), task.alignment.get("search")) for name, task in recipe.tasks.items()]
        for group, search in owners:
            if search is not None:
                raise self.error((*group, "search"), " is for methods; write it below one: methods.auto.search")
        for method in recipe.methods:
            for task in recipe.tasks:
                alignment, path = recipe.alignment_of(task, method), ("methods", method, "search")
                if alignment.search is None:
                    continue
                if alignment.weight is None:
                    raise self.error(path, " aligns, and weight: null does not; leave one of them out")
                lengths = alignment.search.lengths
                if list(lengths) != sorted({*lengths} - {0.0}) or lengths[-1:] != (1,):
                    raise self.error((*path, "lengths"), ": must rise to 1, such as [0.25, 0.5, 1]; correct it")
                if recipe.tasks[task].validation_share == 0:
                    at = ("tasks", task, "validation_share")
                    raise self.error(at, f": method {method} chooses on held-out items; raise it, or leave that out")

    def _check_adapters(self, recipe: Recipe) -> None:
        """Adapters are for tasks that there are; one that another made cannot be made again with another seed."""
        for name, side in (("old", recipe.old), ("new", recipe.new)):
            for task in side.adapters:
                if task not in recipe.tasks:
                    raise self.error((name, "adapters", task), f" is no task; {_hint(task, recipe.tasks)}")
        if "reseeded" in recipe.controls and recipe.new.adapters:
            at = ("new", "adapters")
            raise self.error(at, " were not trained by this recipe, so that control reseeded is none; leave it out")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
