"""The demo's world as local data of a recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from muscle.demo.plan import QUICK
from muscle.demo.world import World
from muscle.errors import MuscleError
from muscle.recipes import prepare_world
from muscle.update.groundwork import pretrain_base, train_tokenizer
from muscle.update.recipe import TaskSettings
from muscle.update.tasks import load_task


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "world"
    prepare_world.prepare(folder, 3, QUICK)
    return folder


def test_its_tasks_are_defined_beside_their_data(world: Path) -> None:
    settings = TaskSettings(validation_share=None, unlabelled="unlabelled")
    for name, answer in (("scenes", " the "), ("sums", " ")):
        task = load_task(name, settings, world)
        rows = task.examples("training")
        assert len(rows) == QUICK.items[name]["train"]
        assert all(answer in row.answer for row in rows)
        assert len(task.examples("validation")) == QUICK.items[name]["validation"]
        assert task.count_unlabelled() > 0.9 * QUICK.items[name]["unlabelled"]
    assert load_task("sums", settings, world).for_evaluation("test").config.filter_list
    with pytest.raises(MuscleError, match="no lm-eval task 'scenes'"):
        load_task("scenes", settings)


def test_its_documents_are_the_demos(world: Path) -> None:
    for number, version in ((1, "v1"), (2, "v2")):
        documents = (world / f"{version}.txt").read_text().splitlines()
        assert len(documents) == QUICK.documents[version]
        rng = np.random.default_rng([3, 1, number])
        assert documents == list(World(3).documents("v1" if number == 1 else "v2", len(documents), rng))


def test_a_second_time_changes_nothing(world: Path) -> None:
    before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}
    prepare_world.prepare(world, 3, QUICK)
    assert {path: path.read_bytes() for path in world.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MuscleError, match="file cannot be written"):
        prepare_world.prepare(tmp_path / "file", 0, QUICK)


def test_a_base_reads_its_documents_and_no_others(tmp_path: Path) -> None:
    """The tokenizer knows the words of both; which texts a base learnt shows in how likely it finds them."""
    for name, text in (("v1", "sun sun sun\n\n"), ("v2", "rain rain rain\n")):
        (tmp_path / f"{name}.txt").write_text(text * 8)
    files = [{"file": str(tmp_path / f"{name}.txt"), "sha256": ""} for name in ("v1", "v2")]
    words = tmp_path / "words"
    train_tokenizer(words, lambda *_: None, vocabulary=9, kind="words", tasks={}, documents=files)
    known = json.loads((words / "tokenizer.json").read_text())["model"]["vocab"]
    assert {"sun", "rain"} < known.keys()
    scratch = {
        "hidden_size": 8,
        "heads": 1,
        "layers": 1,
        "tokenizer": "words",
        "steps": 30,
        "length": 8,
        "batch_size": 4,
    }
    base = tmp_path / "base"
    base.mkdir()
    pretrain_base(base, lambda *_: None, scratch=scratch, tasks={}, tokenizer=words, documents=files[:1])
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        logits = model(torch.tensor([[known["sun"]]])).logits[0, -1]
    assert logits[known["sun"]] > logits[known["rain"]] + 0.5


def test_documents_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "v1.txt").write_bytes(b"\xff\xfe")
    files = [{"file": str(tmp_path / "v1.txt"), "sha256": ""}]
    with pytest.raises(MuscleError, match=r"v1\.txt: cannot be read .*one document a line"):
        train_tokenizer(tmp_path, lambda *_: None, vocabulary=9, tasks={}, documents=files)
