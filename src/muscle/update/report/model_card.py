"""The model card of an adapter: README.md with the hub's metadata and what replacing the old model by it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from muscle import __version__
from muscle.errors import MuscleError
from muscle.measure import Estimate
from muscle.measure.report.files import replace_whole
from muscle.update.report.figures import Figures, Kind, TaskFigures
from muscle.update.report.tables import inert

_SCORES: Mapping[Kind, tuple[str, str]] = {
    "choices": ("accuracy", "Accuracy"),
    "exact": ("exact_match", "Exact match"),
    "graded": ("", "Mean grade"),
}
"""Metric of the hub and its name; a graded task's is the log's own."""
_CONTROLS = {
    "cross_entropy": "as many steps of plain cross-entropy from the same start",
    "old_teacher": "learns from the old model only",
    "reseeded": "the new adapter trained with another seed: the flips that chance alone makes",
    "ensemble": "old and new model together at inference",
    "reranked": "answers of the new model, ranked by the old one; both at inference",
    "gated": "the answer of whichever model is surer; both at inference",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    task: str
    base: str
    """The adapter's: hub id, hub id@revision, or local folder."""
    model: str
    """The adapter's name among the figures: old, new, a method, or a control."""
    old_base: str | None = None
    """The base that the update replaces; None for an adapter that has no other to be held against."""
    description: str = ""


@dataclass(frozen=True)
class _Line:
    """One model in the flip table; in percent."""

    model: str
    score: Estimate
    nfr: Estimate | None = None
    """None of the old model, which replaces nothing."""
    pfr: Estimate | None = None
    nfr_mc: Estimate | None = None


def write_model_card(adapter: Path, subject: Subject, figures: TaskFigures | None = None) -> Path:
    """Write README.md into an adapter's folder, in place of PEFT's; settings are taken from provenance.json there.

    Args:
        adapter: Folder of the adapter.
        subject: What it is.
        figures: What its task's logs tell; None before it is evaluated.

    Raises:
        MuscleError: provenance.json cannot be read, or the card cannot be written.
    """
    file = adapter / "README.md"
    card = f"---\n{_metadata(subject, figures).to_yaml()}\n---\n\n{_text(adapter, subject, figures)}"
    try:
        replace_whole(file, card.encode(errors="backslashreplace"))
    except OSError as error:
        raise MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder") from None
    return file


def _metadata(subject: Subject, figures: TaskFigures | None) -> ModelCardData:
    name = subject.base.partition("@")[0]
    is_of_hub = not Path(subject.base).is_dir() and _HUB_ID.fullmatch(name) is not None
    results = [] if figures is None else list(_eval_results(subject, figures))
    return ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        base_model=name if is_of_hub else None,  # the hub knows no folders
        base_model_relation="adapter" if is_of_hub else None,
        tags=["lora", "muscle", "model-update", "negative-flips"],
        model_name=f"{subject.task}-{subject.model}" if results else None,
        eval_results=results or None,
    )


def _eval_results(subject: Subject, figures: TaskFigures) -> Iterator[EvalResult]:
    """Everything known about this adapter, in percent."""
    line = next((line for line in _lines(figures) if line.model == subject.model), None)
    if line is None or figures.kind is None:
        return
    metric, title = _SCORES[figures.kind]
    for kind, name, estimate in (
        (metric or str(figures.metric), f"{title}, percent", line.score),
        ("negative_flip_rate", "Negative flip rate (NFR), percent", line.nfr),
        ("positive_flip_rate", "Positive flip rate (PFR), percent", line.pfr),
        ("inconsistency_flip_rate", "Inconsistency flip rate (NFR_mc), percent", line.nfr_mc),
    ):
        if estimate is not None and estimate.value is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=subject.task,
                dataset_name=subject.task,
                dataset_split="test",
                metric_type=kind,
                metric_name=name,
                metric_value=round(estimate.value, 2),
            )


def _lines(figures: TaskFigures) -> Iterator[_Line]:
    new = figures.new
    yield _Line("old", new.score_old)
    yield _Line("new", new.score_new, new.nfr, new.pfr, new.nfr_mc)
    for name, own in figures.models.items():
        yield _Line(name, own.score_compatible, own.nfr_compatible, own.pfr_compatible, own.nfr_mc_compatible)


def _text(adapter: Path, subject: Subject, figures: TaskFigures | None) -> str:
    base = inert(_shown(subject.base))
    is_compatible = figures is not None and subject.model in figures.models
    parts = [f"# {inert(subject.task)}: {'compatibility' if is_compatible else 'task'} adapter for {base}\n"]
    if subject.description:
        parts.append(f"Recipe: {inert(subject.description)}\n")
    if subject.old_base is not None:
        parts.append(f"For an update of the base model from {inert(_shown(subject.old_base))} to {base}.\n")
    if is_compatible:
        parts.append("Trained to keep answers right that the task model on the old base had right.\n")
    if figures is not None and figures.kind is not None:
        parts += _flip_table(subject, figures, figures.kind)
    parts += ["## How to load it\n", _snippet(subject.base), *_settings(adapter), _LIMITS]
    parts.append(f"Written by muscle {__version__}. Method: Echterhoff et al. 2024, arXiv 2407.09435.")
    return "\n".join(parts) + "\n"


_LIMITS = """\
## Limits

- The figures hold for this task's test items, prompts and way of decoding; they say nothing of other tasks.
- The adapter works with exactly this base and revision.
- A compatible model learns from the old one, and can take over its mistakes and biases.
- What the base's license and model card say holds here too.
"""


def _flip_table(subject: Subject, figures: TaskFigures, kind: Kind) -> list[str]:
    own = figures.models.get(subject.model)
    items = (own or figures.new).items
    parts = ["## What users of the old model meet\n"]
    if sentence := _sentence(own):
        parts.append(f"{sentence}\n")
    parts += [f"| model | {_SCORES[kind][1].lower()} | NFR | PFR | NFR_mc |", "| --- | --: | --: | --: | --: |"]
    for line in _lines(figures):
        name = f"**{inert(line.model)}**" if line.model == subject.model else inert(line.model)
        cells = [_cell(each) for each in (line.score, line.nfr, line.pfr, line.nfr_mc)]
        parts.append(f"| {name} | {' | '.join(cells)} |")
    graded = " Of grades, NFR and PFR are the shares that fell and rose." if kind == "graded" else ""
    parts.append(
        f"\nPercent of {items or 'the'} test items, 95 % intervals in brackets; by {inert(str(figures.metric))}. "
        "NFR: right with the old model, wrong with the one named. PFR: the reverse. NFR_mc: wrong, and not with the "
        f"old model's answer.{graded}\n"
    )
    controls = [f"- {inert(name)}: {_CONTROLS[name]}." for name in figures.models if name in _CONTROLS]
    return [*parts, *controls, ""] if controls else parts


def _sentence(figures: Figures | None) -> str:
    """The compatible model against the new one in plain words; empty where that is not known."""
    if figures is None or None in (figures.nfr.value, figures.nfr_compatible.value, figures.score_change.value):
        return ""
    return (
        f"After the plain update {figures.nfr.value:.2f} % of the items are negative flips, with this adapter "
        f"{figures.nfr_compatible.value:.2f} %: a change of {_cell(figures.nfr_change, '+')} points. The score changes "
        f"by {_cell(figures.score_change, '+')} points against the new model."
    )


def _cell(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None or estimate.value is None:
        return "-"
    value = f"{estimate.value:{sign}.2f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:{sign}.2f}, {estimate.high:{sign}.2f}]"


def _shown(base: str) -> str:
    """A local folder without the path to it, which means nothing elsewhere."""
    return Path(base).resolve().name if Path(base).is_dir() else base


def _snippet(base: str) -> str:
    name, _, revision = (_shown(base), "", "") if Path(base).is_dir() else base.partition("@")
    chosen = f", revision={_literal(revision)}" if revision else ""
    lines = [
        "```python",
        "import peft",
        "import transformers",
        "",
        f"base = transformers.AutoModelForCausalLM.from_pretrained({_literal(name)}{chosen})",
        f"tokenizer = transformers.AutoTokenizer.from_pretrained({_literal(name)}{chosen})",
        'model = peft.PeftModel.from_pretrained(base, "this adapter")  # its folder or hub id',
        "```\n",
    ]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """A Python string without a backquote, which could end the block of code."""
    return json.dumps(text).replace("`", r"\u0060")


def _settings(adapter: Path) -> list[str]:
    file = adapter / "provenance.json"
    if not file.exists():
        return []
    try:
        record = json.loads(file.read_bytes())
        rows = [("models", ", ".join(_described(model) for model in record["models"]))]
        rows += [(f"data: {name}", str(value)) for name, value in record["data"].items()]
        rows += [*_flat(record["settings"]), *((f"{name}", str(each)) for name, each in record["libraries"].items())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MuscleError(f"{file}: cannot be read ({error!r}); train the adapter again, or remove it") from None
    lines = ["| setting | value |", "| --- | --- |", *(f"| {inert(name)} | {inert(value)} |" for name, value in rows)]
    return ["## Training\n", *lines, ""]


def _described(model: Mapping[str, Any]) -> str:
    adapter = f" with {model['adapter']} ({model['adapter_digest']})" if "adapter" in model else ""
    return f"{model['base']} ({model['digest']}){adapter}"


def _flat(settings: Mapping[str, Any], within: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, (*within, name))
        else:
            yield ".".join((*within, name)), str(value)
