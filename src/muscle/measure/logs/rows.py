"""What readers share: cells of a row as values, and rows gathered into Predictions."""

import json
import math
import re
from array import array
from pathlib import Path

import numpy as np

from muscle.errors import LogError, quoted
from muscle.measure.predictions import RIGHT, UNSCORED, WRONG, Predictions

_OUTCOME_NAMES = {RIGHT: "right", WRONG: "wrong", UNSCORED: "unscored"}
_OUTCOME_TEXTS = {"true": RIGHT, "1": RIGHT, "1.0": RIGHT, "false": WRONG, "0": WRONG, "0.0": WRONG, "": UNSCORED}
_WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0")
_UNSCORED_REMEDY = "remove it, or write null to mark the item as unscored"


class BadRowError(Exception):
    """What is wrong with one row, ending with the remedy; readers add file and line and raise LogError."""


def as_id(value: object) -> str:
    """Canonical text of an item's id: 1, 1.0 and their texts are the same item.

    CSV knows only text, and pandas turns a column of integers into floats as soon as one is missing.

    Raises:
        BadRowError: The id is missing, or not a text or number.
    """
    if value is None or value == "" or value != value:
        raise BadRowError("the row has no id; give every row the id of its item")
    if isinstance(value, bool | list | dict):
        raise BadRowError(f"the id is {quoted(value)}; an id must be a text or a number")
    text = str(value)
    whole = _WHOLE_FLOAT.fullmatch(text)
    return whole[1] if whole else text


def as_text(value: object) -> str | None:
    """Text of an answer or target for comparison; None stays None (missing), lists and mappings become JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return str(value)


def as_outcome(value: object, name: str, remedy: str = "write true, false, 1, 0, or null for unscored") -> int:
    """RIGHT, WRONG or UNSCORED for a cell such as true, 0, 1.0, "False", null or an empty text.

    Args:
        value: The cell as read.
        name: The cell's field, for the message.
        remedy: The way out, where the value is neither right nor wrong.

    Raises:
        BadRowError: The value is NaN or anything else.
    """
    if value is None:
        return UNSCORED
    if isinstance(value, int | float) and value in (0, 1):
        return int(value)
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _OUTCOME_TEXTS:
            return _OUTCOME_TEXTS[text]
    if _is_nan(value):
        raise BadRowError(f"{name} is NaN; {_UNSCORED_REMEDY}")
    raise BadRowError(f"{name} is {quoted(value)}, neither right nor wrong; {remedy}")


def as_score(value: object) -> float:
    """A graded score as a number; NaN where the log has none (null or empty).

    Raises:
        BadRowError: The log itself says NaN, or the value is no number.
    """
    if value is None or value == "":
        return math.nan
    if _is_nan(value):
        raise BadRowError("score is NaN; remove it, or write null where there is no score")
    try:
        return float(value)  # type: ignore[arg-type]  # whatever float refuses is refused here
    except (TypeError, ValueError, OverflowError):
        raise BadRowError(f"score is {quoted(value)}; write a number, or null where there is no score") from None


def _is_nan(value: object) -> bool:
    return value != value or (isinstance(value, str) and value.strip().lower() == "nan")


class Collector:
    """Gathers the rows of one task into Predictions and settles rows that name the same item."""

    def __init__(self, task: str, metric: str | None, filter_name: str | None, repeat_remedy: str) -> None:
        """Start an empty task.

        Args:
            task: The task's name.
            metric: The metric that says right or wrong, if the log names one.
            filter_name: The lm-eval filter, if the log names one.
            repeat_remedy: The way out where an item occurs twice with different outcomes.
        """
        self.task, self.metric, self.filter = task, metric, filter_name
        self._repeat_remedy = repeat_remedy
        self._row_of: dict[str, int] = {}
        self._correct = array("b")
        self._scores = array("d")
        self._doc_hashes = array("Q")
        self._answers: list[str | None] = []
        self._targets: list[str | None] = []
        self._short_texts: dict[str, str] = {}  # one object per distinct short answer, however many rows share it
        self._files: list[Path] = []
        self._places = array("Q")  # file number and line of each row, as two columns in one
        self._repeated = 0

    def add(
        self,
        file: Path,
        line: int,
        item: str,
        *,
        correct: int,
        answer: str | None,
        target: str | None = None,
        score: float = math.nan,
        doc_hash: str | None = None,
    ) -> None:
        """Append one row.

        Raises:
            BadRowError: The item was met before with another outcome, answer or content.
        """
        content = _hash_head(doc_hash)
        row = self._row_of.setdefault(item, len(self._correct))
        if row < len(self._correct):
            if (self._correct[row], self._answers[row], self._doc_hashes[row]) != (correct, answer, content):
                raise BadRowError(self._conflict(row, file, item, correct, answer))
            self._repeated += 1
            return
        if not self._files or self._files[-1] is not file:
            self._files.append(file)
        self._correct.append(correct)
        self._scores.append(score)
        self._doc_hashes.append(content)
        self._answers.append(self._shared(answer))
        self._targets.append(self._shared(target))
        self._places.extend((len(self._files) - 1, line))

    def predictions(self) -> Predictions:
        """The columns gathered so far."""
        return Predictions(
            task=self.task,
            metric=self.metric,
            filter=self.filter,
            ids=list(self._row_of),
            correct=np.array(self._correct, dtype=np.int8),
            scores=np.array(self._scores, dtype=np.float64),
            answers=self._answers,
            targets=self._targets,
            doc_hashes=np.array(self._doc_hashes, dtype=np.uint64),
            repeated=self._repeated,
        )

    def _conflict(self, row: int, file: Path, item: str, correct: int, answer: str | None) -> str:
        earlier_file, earlier_line = self._files[self._places[2 * row]], self._places[2 * row + 1]
        where = f"line {earlier_line}" if earlier_file == file else f"{earlier_file}:{earlier_line}"
        if self._correct[row] != correct:
            change = f"was {_OUTCOME_NAMES[self._correct[row]]} in {where} and is {_OUTCOME_NAMES[correct]} here"
        elif self._answers[row] != answer:
            change = f"was answered {quoted(self._answers[row])} in {where} and {quoted(answer)} here"
        else:
            change = f"has another doc_hash in {where}"
        return f"id {quoted(item)} {change}; {self._repeat_remedy}"

    def _shared(self, text: str | None) -> str | None:
        return text if text is None or len(text) > 24 else self._short_texts.setdefault(text, text)


def _hash_head(doc_hash: str | None) -> int:
    """64 bits are plenty to notice that two items differ, in 8 bytes instead of the text's 113."""
    if not doc_hash:
        return 0
    try:
        head = int(doc_hash[:16], 16)
    except ValueError:
        head = -1
    if head < 0:
        raise BadRowError(f"doc_hash is {quoted(doc_hash)}; expected hexadecimal digits")
    return head


def located(file: Path, line: int, fault: BadRowError) -> LogError:
    """The fault of a row as the error that a user sees."""
    return LogError(f"{file}:{line}: {fault}")
