"""What a sample of an inspect_ai log says: which scores there are, what they are worth, the answer, the texts.

Read off inspect_ai itself: `log/_log.py` EvalSample, `scorer/_metric.py` value_to_float.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any, Final, cast

import msgspec

from muscle.measure.logs.documents import at, chat_text, content_hash, plain_text
from muscle.measure.logs.rows import as_outcome, as_text, listed
from muscle.measure.predictions import UNSCORED

_GRADES: Final = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_ATTACHMENT = "attachment://"


class _Score(msgspec.Struct):
    value: Any = None
    answer: Any = None


class _Message(msgspec.Struct):
    content: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None


class _Output(msgspec.Struct):
    choices: list[_Choice] | None = None
    completion: Any = None


class Sample(msgspec.Struct):
    """The fields that are read; the long transcript, for one, is skipped and not built."""

    id: Any = None
    epoch: Any = 1
    input: Any = None
    choices: Any = None
    target: Any = None
    output: _Output | None = None
    scores: dict[str, _Score] | None = None
    score: _Score | None = None  # the only one, in the logs of early 2024
    error: Any = None

    def by_scorer(self) -> Mapping[str, _Score]:
        """The scores by the names of their scorers."""
        return self.scores or ({} if self.score is None else {"score": self.score})


class SampleWithTexts(Sample):
    """A sample for showing."""

    attachments: Any = None


def with_fields(sample_type: type[Sample], paths: Sequence[str]) -> type[Sample]:
    """The type with the fields that dotted paths start in."""
    roots = dict.fromkeys(path.partition(".")[0] for path in paths)
    known = sample_type.__struct_fields__
    names = [name for name in roots if name not in known and name.isidentifier() and not iskeyword(name)]
    fields = [(name, Any, None) for name in names]
    return cast("type[Sample]", msgspec.defstruct("Sample", fields, bases=(sample_type,)))


def measures(sample: Sample) -> list[str]:
    """What can say right or wrong: each scorer, or of one that gives several values "scorer.key" for each."""
    return listed(_measures(sample))


def _measures(sample: Sample) -> Iterator[str]:
    for scorer, score in sample.by_scorer().items():
        if isinstance(score.value, dict | list):
            keys: Iterable[object] = score.value if isinstance(score.value, dict) else range(len(score.value))
            yield from (f"{scorer}.{key}" for key in keys)
        else:
            yield scorer


def find(sample: Sample, measure: str | None) -> tuple[_Score | None, object]:
    """The score that a measure is in, None where the sample lacks it, and the measure's value."""
    for scorer, score in sample.by_scorer().items():
        if scorer == measure:
            return score, score.value
        if measure is not None and measure.startswith(f"{scorer}."):
            return score, at(score.value, measure[len(scorer) + 1 :])
    return None, None


def worth(value: object) -> object:
    """A measure's value, with letters and words as the numbers that inspect_ai's own metrics take them for.

    None where there is none; these logs say so by NaN too.
    """
    if isinstance(value, str):
        return _GRADES.get(value, _GRADES.get(value.lower(), value))
    return None if value != value else value


def outcome(value: object, measure: str, remedy: str, *, graded: bool) -> int:
    """RIGHT, WRONG, or UNSCORED where there is no value.

    Args:
        value: The measure's value.
        measure: Its name, for the message.
        remedy: The way out, for the message.
        graded: Whether the same measure is read as a grade too: then partial credit is unscored, not a fault.

    Raises:
        BadRowError: The value is neither right nor wrong.
    """
    worth_ = worth(value)
    if graded and isinstance(worth_, float) and 0 < worth_ < 1:
        return UNSCORED
    return as_outcome(worth_ if worth_ in (None, 0, 1) else value, measure, remedy)


def answer(sample: Sample, measure: str | None) -> str | None:
    """What the scorer took for the answer, where no measure is read any scorer, or else all that the model said."""
    scores = list(sample.by_scorer().values()) if measure is None else [find(sample, measure)[0]]
    for score in scores:
        if score is not None and score.answer is not None:
            return as_text(score.answer)
    if sample.output is None:
        return None
    for choice in (sample.output.choices or ())[:1]:
        said = plain_text(choice.message.content) if choice.message is not None else None
        if said is not None:
            return said
    return as_text(sample.output.completion)


def targets(sample: Sample) -> tuple[str, ...]:
    """The true answers."""
    listed = sample.target if isinstance(sample.target, list) else [sample.target]
    return tuple(text for text in map(as_text, listed) if text is not None)


def question(sample: Sample) -> str | None:
    """What the model was asked."""
    return resolved(chat_text(sample.input), sample)


def item_hash(sample: Sample) -> str:
    """Of the question and the choices in their order, for letters name other answers in another order."""
    return content_hash([chat_text(sample.input), sample.choices])


def resolved(text: str | None, sample: Sample) -> str | None:
    """The text itself where the log holds a long one apart."""
    if text is None or not text.startswith(_ATTACHMENT):
        return text
    return as_text(at(at(sample, "attachments"), text.removeprefix(_ATTACHMENT))) or text


def in_words(letters: str | None, sample: Sample) -> str | None:
    """An answer such as "B" or "A, C" by the choices that it names."""
    if letters is None or not isinstance(sample.choices, list):
        return letters
    places = [ord(letter) - ord("A") if len(letter) == 1 else -1 for letter in letters.split(", ")]
    if not all(0 <= place < len(sample.choices) for place in places) or len(set(places)) < len(places):
        return letters
    return " | ".join(as_text(sample.choices[place]) or "" for place in places)
