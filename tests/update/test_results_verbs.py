"""`muscle tables`, `merge` and `push` through the real command."""

import csv
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from muscle.update.models import load_task_model
from muscle.update.recipe import Base, TaskModel
from tests.command import muscle
from tests.update.runs import choices, write_run


def test_tables_show_what_is_there_and_write_it(tmp_path: Path) -> None:
    logs = {"piqa/old": choices("0000011111"), "piqa/new": choices("0001100000"), "piqa/muscle": choices("0000100000")}
    run = write_run(tmp_path / "run", {"paper_update": "Llama 1->2", "controls": ["ensemble"]}, logs)
    shown = muscle("tables", run, "--markdown", "t.md", "--csv", "t.csv", "--pictures", "pictures", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "table 4: multiple choice" in shown.stdout
    row = next(line for line in shown.stdout.splitlines() if line.startswith("| muscle"))
    cells = [cell for cell in row.split() if cell != "|"]
    assert cells == ["muscle", "50.00", "80.00", "90.00", "+10.00", "20.00", "-10.00", "-50.00"]
    published = next(line for line in shown.stdout.splitlines() if line.startswith("| paper"))
    assert "74.86" in published
    assert "not evaluated yet: run, piqa: ensemble\n" in shown.stdout
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert {row["source"] for row in rows} == {"ours", "paper"}
    assert "| muscle |" in (tmp_path / "t.md").read_text()
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"figure_4.svg", "figure_5.svg"}


def test_tables_of_what_is_no_run(tmp_path: Path) -> None:
    shown = muscle("tables", tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {tmp_path / 'run.json'}: cannot be read")
    assert len(shown.stderr.splitlines()) == 1


def test_merged_checkpoint_says_what_base_and_adapter_say(world: Path, tmp_path: Path) -> None:
    done = muscle("merge", world / "v2", world / "new", "--out", tmp_path / "merged")
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path / 'merged'}\n")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=ids).logits
        adapted = load_task_model(TaskModel(base=Base(base=str(world / "v2")), adapter=str(world / "new")))
        torch.testing.assert_close(merged, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    again = muscle("merge", world / "v2", world / "new", "--out", tmp_path / "merged")
    assert again.returncode == 2
    assert "merged exists: name a folder that is not there yet" in again.stderr


def test_nothing_is_pushed_without_card_or_weights(world: Path) -> None:
    refused = muscle("push", world / "v2", "me/mine")
    assert refused.returncode == 2
    assert "no adapter_config.json in it" in refused.stderr


def test_run_file_of_a_later_version_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, {"piqa/old": choices("01")})
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["colour"] = "red"
    (run / "run.json").write_text(json.dumps(record))
    for verb in ("tables", "status"):
        shown = muscle(verb, run)
        assert shown.returncode == 2
        assert "no recipe of this version" in shown.stderr
