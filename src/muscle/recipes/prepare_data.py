"""Upstream's files of the tasks as local data: python -m muscle.recipes.prepare_data RAW_DIR DIR.

RAW_DIR holds a folder for each data set, with the files as its authors publish them (docs/tasks.md names the sources).
DIR gets <task>/<split>.jsonl, in the fields that the task's YAML file reads: with it as a recipe's `data`, nothing is
fetched. Data sets that RAW_DIR lacks are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from muscle.errors import MuscleError
from muscle.update.tasks import hold_out

Rows = list[dict[str, Any]]


def prepare(raw: Path, destination: Path) -> dict[str, dict[str, int]]:
    """Convert every data set found under `raw`; returns the rows of each task and split.

    Raises:
        MuscleError: `raw` has none of the data sets, or one of them is not as its authors publish it.
    """
    written: dict[str, dict[str, int]] = {}
    for task, (folder, convert) in _TASKS.items():
        if not (raw / folder).is_dir():
            continue
        try:
            splits = convert(raw / folder)
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise MuscleError(
                f"{raw / folder} is not as upstream has it ({type(error).__name__}: {error}): download it again"
            ) from error
        for split, rows in splits.items():
            if task in _SORTED:
                random.Random(0).shuffle(rows)
            (destination / task).mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (destination / task / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        written[task] = {split: len(rows) for split, rows in splits.items()}
    if not written:
        folders = ", ".join(sorted({folder for folder, _ in _TASKS.values()}))
        raise MuscleError(f"{raw} holds none of the data sets: give the folder that has {folders}")
    return written


def _banking77(folder: Path) -> Mapping[str, Rows]:
    return {
        split: [{"text": row["text"], "label_text": row["category"]} for row in _csv(folder / f"{split}.csv")]
        for split in ("train", "test")
    }


def _clinc150(folder: Path) -> Mapping[str, Rows]:
    data = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    splits = {"train": "train", "validation": "val", "test": "test"}  # oos_*, out of scope, are lists of their own
    return {split: [{"text": text, "intent": intent} for text, intent in data[name]] for split, name in splits.items()}


def _cogs(folder: Path) -> Mapping[str, Rows]:
    def rows(name: str) -> Rows:
        with (folder / f"{name}.tsv").open(encoding="utf-8") as lines:
            return [dict(zip(("sentence", "form"), line.split("\t")[:2], strict=True)) for line in lines]

    return {"train": rows("train"), "validation": rows("dev"), "test": rows("test")}


def _e2e(folder: Path) -> Mapping[str, Rows]:
    """Trained on upstream's development set, a row for each reference; tested with all references of an input."""
    references: dict[str, list[str]] = {}
    for row in _csv(folder / "testset_w_refs.csv"):
        references.setdefault(row["mr"], []).append(row["ref"])
    return {
        "train": [{"mr": row["mr"], "references": [row["ref"]]} for row in _csv(folder / "devset.csv")],
        "test": [{"mr": mr, "references": texts} for mr, texts in references.items()],
    }


def _gsm8k(folder: Path) -> Mapping[str, Rows]:
    return {split: _json_lines(folder / f"{split}.jsonl") for split in ("train", "test")}


def _arc(folder: Path) -> Mapping[str, Rows]:
    return {
        split: [{"question": question, "choices": choices, "answerKey": key} for question, choices, key in rows]
        for split, rows in _instructions(folder).items()
    }


def _openbookqa(folder: Path) -> Mapping[str, Rows]:
    return {
        split: [{"question_stem": question, "choices": choices, "answerKey": key} for question, choices, key in rows]
        for split, rows in _instructions(folder).items()
    }


def _commonsense_qa(folder: Path) -> Mapping[str, Rows]:
    def rows(name: str) -> Rows:
        return [
            {
                "question": row["question"]["stem"],
                "choices": _choices([choice["text"] for choice in row["question"]["choices"]]),
                "answerKey": row["answerKey"],
            }
            for row in _json_lines(folder / f"{name}.jsonl")
        ]

    return {"train": rows("train"), "validation": rows("dev")}


def _hellaswag(folder: Path) -> Mapping[str, Rows]:
    """The validation split, half for training; where a context ends in the start of a sentence, that is ctx_b."""
    rows = []
    for row in _json_lines(folder / "val.jsonl"):
        begun = re.fullmatch(r"(.*[.!?]) ([^.!?]*)", row["ctx"], re.DOTALL)
        ctx_a, ctx_b = begun.groups() if begun else (row["ctx"], "")
        kept = {"activity_label": row["activity_label"], "endings": row["endings"], "label": str(row["label"])}
        rows.append({"ctx_a": ctx_a, "ctx_b": ctx_b, **kept})
    return _halves(rows, lambda row: str(row["ctx_a"]))


def _piqa(folder: Path) -> Mapping[str, Rows]:
    """The validation split, half for training."""
    labels = (folder / "valid-labels.lst").read_text(encoding="utf-8").split()
    rows = _json_lines(folder / "valid.jsonl")
    labelled = [{**row, "label": int(label)} for row, label in zip(rows, labels, strict=True)]
    return _halves(labelled, lambda row: str(row["goal"]))


def _halves(rows: Rows, key: Callable[[dict[str, Any]], str]) -> Mapping[str, Rows]:
    """Divide at random, always alike; rows with equal keys stay together."""
    parts = hold_out([key(row) for row in rows], share=0.5, seed=0)
    return {split: [rows[index] for index in part] for split, part in zip(("train", "validation"), parts, strict=True)}


def _instructions(folder: Path) -> dict[str, list[tuple[str, dict[str, list[str]], str]]]:
    """Question, choices and key of each item of LLM-Adapters' files, where all of them are one text."""
    form = re.compile(
        r"Please choose the correct answer to the question: (.*)\n\nAnswer1: (.*)\n\nAnswer format: [a-z0-9/]+",
        re.DOTALL,
    )

    def item(row: dict[str, str]) -> tuple[str, dict[str, list[str]], str]:
        question, answers = form.fullmatch(row["instruction"]).groups()  # type: ignore[union-attr]  # caught in prepare
        choices = _choices(re.split(r" Answer\d: ", answers))
        return question, choices, choices["label"][int(row["answer"].removeprefix("answer")) - 1]

    def rows(split: str) -> list[tuple[str, dict[str, list[str]], str]]:
        return [item(row) for row in json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))]

    return {split: rows(split) for split in ("train", "test")}


def _choices(texts: list[str]) -> dict[str, list[str]]:
    return {"text": texts, "label": list("ABCDE"[: len(texts)])}


def _csv(file: Path) -> Iterable[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _json_lines(file: Path) -> Rows:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


_TASKS: Mapping[str, tuple[str, Callable[[Path], Mapping[str, Rows]]]] = {
    "banking77": ("banking77", _banking77),
    "clinc150": ("clinc150", _clinc150),
    "cogs": ("cogs", _cogs),
    "e2e": ("e2e", _e2e),
    "gsm8k": ("gsm8k", _gsm8k),
    "arc_easy": ("more_multiple_choice/ARC-Easy", _arc),
    "arc_challenge": ("more_multiple_choice/ARC-Challenge", _arc),
    "openbookqa": ("more_multiple_choice/openbookqa", _openbookqa),
    "commonsense_qa": ("more_multiple_choice/CommonsenseQA", _commonsense_qa),
    "hellaswag": ("hellaswag", _hellaswag),
    "piqa": ("piqa", _piqa),
}
"""Task -> its folder under RAW_DIR, and what makes splits of it."""
_SORTED = frozenset({"banking77", "clinc150"})
"""Upstream sorts these by label: the first items, which `evaluation.limit` scores, would be of a few labels only."""


def main() -> None:
    """Parse the command line, convert, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m muscle.recipes.prepare_data", description=__doc__)
    parser.add_argument("raw", type=Path, metavar="RAW_DIR")
    parser.add_argument("destination", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    try:
        written = prepare(arguments.raw, arguments.destination)
    except MuscleError as error:
        parser.exit(2, f"error: {error}\n")
    for task, splits in written.items():
        print(f"{task}: {', '.join(f'{rows} {split}' for split, rows in splits.items())}")


if __name__ == "__main__":
    main()
