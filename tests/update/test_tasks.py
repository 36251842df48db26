"""From an lm-eval task to padded tensors."""

from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from muscle.errors import MuscleError
from muscle.update.models import load_tokenizer
from muscle.update.tasks import IGNORED, Example, PaddingCollator, TokenizedExamples, examples, load_task


def test_texts_are_the_tasks_own(world: Path) -> None:
    scenes = examples(load_task("scenes", world / "tasks"), "training")
    assert len(scenes) == 24
    assert scenes[0].context.startswith("scene : ")
    assert scenes[0].context.endswith(" . then")
    assert scenes[0].answer.startswith((" she takes the ", " he takes the "))
    for item in examples(load_task("sums", world / "tasks"), "validation"):
        words = item.context.split()
        assert item.answer == f" {int(words[4]) + int(words[9])}"


def test_gold_choice_is_the_one_that_is_scored_right(world: Path) -> None:
    task = load_task("scenes", world / "tasks")
    for doc, example in zip(task.training_docs(), examples(task, "training"), strict=True):
        assert example.answer == " " + doc["choices"][doc["gold"]]


def test_unknown_task_and_split_are_named(world: Path) -> None:
    with pytest.raises(MuscleError, match=r"no lm-eval task 'scene' under .* \(defined there: scenes, sums\)"):
        load_task("scene", world / "tasks")
    task = load_task("sums", world / "tasks")
    task.config.training_split = None
    with pytest.raises(MuscleError, match=r"task 'sums' has no training split: add training_split"):
        examples(task, "training")


def test_tokens_are_those_that_are_scored(world: Path) -> None:
    tokenizer = load_tokenizer(world / "v1")
    rows = examples(load_task("scenes", world / "tasks"), "training")[:5]
    lm = HFLM(pretrained=str(world / "v1"), device="cpu")
    for row, ids in zip(rows, TokenizedExamples(rows, tokenizer).ids, strict=True):
        context, continuation = lm._encode_pair(row.context, row.answer)
        assert ids == [*context, *continuation, tokenizer.eos_token_id]


def test_every_token_but_the_first_is_a_target(world: Path) -> None:
    data = TokenizedExamples([Example("question : lea", " has")], load_tokenizer(world / "v1"))
    ids = data[0]["input_ids"].tolist()
    assert data[0]["labels"].tolist() == [IGNORED, *ids[1:]]


def test_padding_is_neither_read_nor_learnt(world: Path) -> None:
    rows = [Example("question : lea", " has"), Example("question : lea has 3 nuts .", " she gets")]
    data = TokenizedExamples(rows, load_tokenizer(world / "v1"))
    batch = PaddingCollator(pad_id=0)([data[0], data[1]])
    assert batch["index"].tolist() == [0, 1]
    short = len(data[0]["input_ids"])
    assert batch["attention_mask"].sum(1).tolist() == [short, len(data[1]["input_ids"])]
    assert torch.equal(batch["input_ids"][0, :short], data[0]["input_ids"])
    assert (batch["labels"][0, short:] == IGNORED).all()
