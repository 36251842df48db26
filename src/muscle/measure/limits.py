"""The limits that a gate holds a model update to, from a YAML file or from flags; errors name file, line and key."""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import msgspec
import yaml  # type: ignore[import-untyped]

from muscle.errors import MuscleError, quoted
from muscle.measure.logs.rows import as_id

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Size = Annotated[float, msgspec.Meta(ge=0, le=1e9)]  # finite: an infinite limit would be none
Count = Annotated[int, msgspec.Meta(ge=1)]

EVERY = "*"
"""In place of a task or a slice's value: all of them, each with these limits where it has none of its own."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on one set of items: all of them, a task or a slice. None is no limit."""

    max_nfr: Share | None = None
    """Negative flips over all items."""
    max_nfr_given_old_right: Share | None = None
    """Negative flips over the items that the old model has right."""
    max_relative_nfr: Size | None = None
    """NFR over that of independent errors; 1 = as many flips as chance would give."""
    max_nfr_mc: Share | None = None
    """Negative flips and changed wrong answers, over all items."""
    max_churn: Share | None = None
    """Changed answers over all items."""
    max_mean_regression: Size | None = None
    """m_r, in the unit of the score."""
    max_accuracy_drop: Share | None = None
    """Margin by which the accuracy may fall; 0 asks for a rise."""
    min_items: Count | None = None
    """Fewer paired and scored items decide nothing."""
    max_unscored: Share | None = None
    """Unscored items over all paired ones."""
    max_missing: Share | None = None
    """Items that only one log has, over the items of both."""

    def over(self, other: "Budget") -> "Budget":
        """These limits, and those of the other where there is none here."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return Budget(**{name: theirs[name] if mine[name] is None else mine[name] for name in Budget.__struct_fields__})


class Limits(Budget, frozen=True, kw_only=True):
    """All limits of a gate; the inherited ones are on all items together."""

    model: Literal["new", "compatible"] | None = None
    """Which model is judged against the old one; None is the compatible one where its log is given."""
    inconclusive: Literal["report", "pass", "fail"] = "report"
    """Exit code where nothing fails and something is undecided: one of its own, or that of another verdict."""
    max_baseline_age_days: Count | None = None
    """Of a blessed baseline that stands in for the old log."""
    tasks: Mapping[str, Budget] = {}
    """By name, or EVERY."""
    slices: Mapping[str, Mapping[str, Budget]] = {}
    """By column, then by value or EVERY."""
    protected: tuple[str, ...] = ()
    """Items that may not flip: ids, or task/id."""

    def with_flags(self, **flags: object) -> Self:
        """These limits with the command line's in place of the file's.

        Args:
            flags: Single values by field name; None is a flag that was not given.

        Raises:
            MuscleError: A value is out of range.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        checked = _checked(Limits, given, lambda name, problem: MuscleError(f"--{name.replace('_', '-')} {problem}"))
        return msgspec.structs.replace(self, **{name: getattr(checked, name) for name in given})


def read_limits(file: Path) -> Limits:
    """Read a limits file, which is as TEMPLATE describes it.

    Raises:
        MuscleError: The file cannot be read, is not YAML, or has an unknown key or a value out of range.
    """
    top = _read(file)
    nested: dict[str, object] = {}
    for name, place in top.items():
        if name == "tasks":
            nested[name] = _budgets(place)
        elif name == "slices":
            nested[name] = {column: _budgets(values, undecidable="max_missing") for column, values in place.items()}
        elif name == "protected":
            nested[name] = _protected(place)
    return msgspec.structs.replace(top.fields(Limits, leave_out=nested), **nested)


def write_template(file: Path) -> None:
    """Write TEMPLATE into a new file.

    Raises:
        MuscleError: The file is there already, or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as handle:
            handle.write(TEMPLATE)
    except FileExistsError:
        raise MuscleError(f"{file}: is there already; edit it, or name another file") from None
    except OSError as error:
        raise MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder") from None


_Kind = TypeVar("_Kind", bound=Budget)


@dataclass(frozen=True)
class _Place:
    """A node of the file, and where it is.

    Scalars are taken as they are written: to YAML `010` is 8 and `no` is false, but to us they may be ids or tasks.
    """

    file: Path
    node: yaml.Node
    path: str
    """The keys from the top, dotted."""

    def error(self, problem: str) -> MuscleError:
        return MuscleError(f"{self.file}:{self.node.start_mark.line + 1}: {self.path or 'the file'} {problem}")

    def items(self) -> Iterator[tuple[str, "_Place"]]:
        """The entries of a mapping; none where nothing is written."""
        if self.text() is None and isinstance(self.node, yaml.ScalarNode):
            return
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("has no keys; write keys below it, each with its value")
        seen = set()
        for key, value in self.node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            place = _Place(self.file, value, f"{self.path}.{name}".lstrip("."))
            if name in seen:
                raise place.error("occurs twice; keep one")
            seen.add(name)
            yield name, place

    def text(self) -> str | None:
        """A single value; None where nothing is written, or more than one."""
        single = isinstance(self.node, yaml.ScalarNode) and self.node.tag != "tag:yaml.org,2002:null"
        return self.node.value if single else None

    def fields(self, kind: type[_Kind], leave_out: Collection[str] = ()) -> _Kind:
        """The mapping's single values as the fields that they are."""
        places = {name: place for name, place in self.items() if name not in leave_out}
        for name, place in places.items():
            if place.text() is None and name in kind.__struct_fields__:
                raise place.error(f"has no single value; {_remedy(name)}")
        written = {name: _as_number(place.text()) for name, place in places.items()}
        return _checked(kind, written, lambda name, problem: places[name].error(problem))


def _read(file: Path) -> _Place:
    try:
        node = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise MuscleError(f"{file}: cannot be read ({error.strerror}); write one with muscle gate --init") from None
    except UnicodeDecodeError:
        raise MuscleError(f"{file}: not valid UTF-8; convert the file to UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise MuscleError(f"{file}:{line}: not YAML ({error.problem}); correct the line") from None
    except (yaml.YAMLError, RecursionError) as error:
        problem = str(error).splitlines()[0]
        raise MuscleError(f"{file}: not YAML ({problem}); start from the file that muscle gate --init writes") from None
    if node is None:
        raise MuscleError(f"{file}: no limits in this file; start from the one that muscle gate --init writes")
    return _Place(file, node, "")


def _as_number(text: str | None) -> float | str | None:
    """The number that is written, such as .5 or 1e-3, of which YAML knows only the one and JSON only the other."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _budgets(place: _Place, undecidable: str = "") -> dict[str, Budget]:
    budgets = {}
    for name, limits in place.items():
        for key, value in limits.items():
            if key == undecidable:
                problem = "can never be decided, since the slice of a missing item is not known"
                raise value.error(f"{problem}; set it at the top or under tasks")
        budgets[name] = limits.fields(Budget)
        if budgets[name] == Budget():
            raise limits.error("sets no limit; write one below it, or delete it")
    return budgets


def _protected(place: _Place) -> tuple[str, ...]:
    """The ids of a list, or of a file, beside the limits file, with an id on each line."""
    if isinstance(place.node, yaml.SequenceNode):
        written = [_Place(place.file, entry, place.path).text() for entry in place.node.value]
    elif name := place.text():
        try:
            lines = (place.file.parent / name).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise place.error(f"names {name}, which cannot be read ({error.strerror}); check the path") from None
        except UnicodeDecodeError:
            raise place.error(f"names {name}, which is not valid UTF-8; write one id on each line") from None
        written = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    else:
        raise place.error("is neither a list of ids nor the name of a file of ids; write one of them")
    if not all(written):
        raise place.error("holds something that is no id; write ids, or task/id")
    return tuple(as_id(text) for text in written)


def _checked(kind: type[_Kind], fields: Mapping[str, object], error: Callable[[str, str], MuscleError]) -> _Kind:
    """The fields as limits.

    Args:
        kind: Which limits.
        fields: By name, from a file (as text) or from flags.
        error: Makes the error about a field from its name and what is wrong with it.
    """
    for name in fields:
        if name not in kind.__struct_fields__:
            near = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
            hint = f"did you mean {near[0]}?" if near else "muscle gate --init writes a file with all of them"
            raise error(name, f"is no limit; {hint}")
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as fault:
        (name,) = re.findall(r"\$\.(\w+)", str(fault))
        raise error(name, f"is {quoted(fields[name])}; {_remedy(name)}") from None


def _remedy(name: str) -> str:
    if name in ("min_items", "max_baseline_age_days"):
        return "write a whole number of 1 or more"
    if name in ("max_relative_nfr", "max_mean_regression"):
        return "write a number of 0 or more"
    if name == "model":
        return "write new or compatible"
    if name == "inconclusive":
        return "write report, pass or fail"
    return "write a share between 0 and 1: 0.02 for 2 %"


TEMPLATE = """\
# Limits of `muscle gate OLD NEW --limits FILE`. What they mean, and how they are judged: docs/gate.md.
# Shares are between 0 and 1: 0.02 is 2 %. Flags of the same names override this file.

# Limits on all items together.
max_nfr: 0.02                    # negative flips (right answers that became wrong) over all items
max_accuracy_drop: 0.01          # margin by which the accuracy may fall; 0 asks for a rise
# max_nfr_given_old_right: 0.05  # negative flips over the answers that were right
# max_relative_nfr: 0.5          # flips over those of two unrelated models with the same accuracies
# max_nfr_mc: 0.05               # negative flips, and wrong answers that became other wrong ones, over all items
# max_churn: 0.20                # changed answers, right or wrong, over all items
# max_mean_regression: 0.10      # m_r: mean loss of the answers whose score fell, in the unit of the score
# min_items: 500                 # fewer paired and scored items decide nothing
# max_unscored: 0.01             # items that a log does not score, over all paired items
# max_missing: 0.01              # items that only one log has, over the items of both

# The same limits on each task, and on some tasks of their own.
# tasks:
#   "*": {max_nfr: 0.05}
#   gsm8k: {max_nfr: 0.03, min_items: 200}

# The same, but for max_missing, for the values of any column of the log.
# slices:
#   doc.subject:
#     "*": {max_nfr: 0.10}
#     law: {max_accuracy_drop: 0.02}

# Items of which none may flip: ids, or task/id. Or the name of a file beside this one, with an id on each line.
# protected: [17, gsm8k/42]

# Judge the new model, or the one of --compatible [default: the latter where it is given].
# model: new

# Exit code where nothing fails but items are too few to decide: report (3), pass (0) or fail (1).
# inconclusive: report

# A baseline that was blessed longer ago is refused.
# max_baseline_age_days: 180
"""
