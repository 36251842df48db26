"""`muscle demo --quick` through the real command: interrupted, resumed, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muscle.demo.plan import FULL, MODELS, QUICK, full_plan
from muscle.measure import compare

MUSCLE = [sys.executable, "-c", "from muscle.cli import main; main()"]
TASKS = ("scenes", "sums")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick demo that was stopped by Ctrl-C when its bases were done, and run again."""
    root = tmp_path_factory.mktemp("demo")
    command = [*MUSCLE, "demo", "--quick", "--seed", "4", "--out", "run"]
    first = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (root / "run/bases/v2/stage.json").exists() or not (root / "run/bases/v1/stage.json").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=30)
    assert first.returncode == 130
    assert errors in ("", "Aborted.\n")
    assert not (root / "run/table.json").exists()
    bases = (root / "run/bases/v1/model.safetensors").stat().st_mtime_ns

    second = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=400, check=False)
    assert (second.returncode, second.stderr) == (0, "")
    assert "bases" not in "".join(line for line in second.stdout.splitlines() if line.startswith("["))
    assert (root / "run/bases/v1/model.safetensors").stat().st_mtime_ns == bases
    (root / "stdout").write_text(second.stdout)
    return root / "run"


def test_table_has_every_method_of_every_task(demo: Path) -> None:
    rows = json.loads((demo / "table.json").read_text())
    assert [(row["task"], row["method"]) for row in rows] == [(task, method) for task in TASKS for method in MODELS]
    for row in rows:
        log = demo / "logs" / row["task"]
        if row["method"] == "old":
            assert row["nfr"] is None
            continue
        measured = compare(log / "old", log / row["method"]).update
        assert row["accuracy"] == measured.accuracy_new.value
        assert row["nfr"] == measured.nfr.value
        assert row["nfr_mc"] == measured.nfr_mc.value
        assert row["relative_nfr"] == measured.relative_nfr.value
        if row["method"] != "new":
            plain = compare(log / "old", log / "new").update
            assert row["made"] - row["fixed"] == measured.negative_flips - plain.negative_flips


def test_output_says_what_it_means_and_where_things_lie(demo: Path) -> None:
    text = (demo.parent / "stdout").read_text()
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 80
    assert "scenes: the update turns " in text
    for path in ("run/adapters", "run/logs", "run/bases", "run/table.json"):
        assert path in text
    assert (demo / "adapters").is_dir()


def test_methods_of_one_task_take_equally_many_steps(demo: Path) -> None:
    for task in TASKS:
        trained = ("muscle", "cross_entropy", "old_teacher")
        records = [json.loads((demo / "adapters" / task / method / "training.json").read_text()) for method in trained]
        assert len({record["result"]["steps"] for record in records}) == 1
        assert [record["alignment"]["weight"] for record in records] == ["student_wrong", None, "always_old"]


def test_auto_says_what_it_tried_and_stays_within_its_budget(demo: Path) -> None:
    for task in TASKS:
        search = json.loads((demo / "adapters" / task / "auto/search.json").read_text())
        assert len(search["trials"]) > 1
        assert search["budget_used"] <= 4
        assert {trial["alignment"]["weight"] for trial in search["trials"]} == {"mixture"}
        assert any("unlabelled" in trial["name"] for trial in search["trials"]) == (task == "sums")


def test_adapters_load_onto_their_base(demo: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo / "bases/v2")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(demo / "bases/v2"), str(demo / "adapters/scenes/muscle")
    )
    logits = model(**tokenizer("scene : rain at dawn", return_tensors="pt", return_token_type_ids=False)).logits
    assert logits.shape == (1, 5, len(tokenizer))


def test_tasks_work_with_lm_eval_itself(demo: Path) -> None:
    """The definitions and their data are a folder that lm-eval's own command takes."""
    arguments = ["--model", "dummy", "--tasks", "scenes,sums", "--include_path", str(demo / "tasks"), "--limit", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "exact_match" in run.stdout
    assert "acc" in run.stdout


def test_old_and_new_task_adapters_are_trained_alike() -> None:
    for sizes in (FULL, QUICK):
        stages = {stage.name: stage for stage in full_plan(0, sizes)}
        for task in TASKS:
            assert stages[f"adapters/{task}/old"].settings == stages[f"adapters/{task}/new"].settings


def test_out_is_a_run_of_its_own(tmp_path: Path, demo: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/demo.json").write_text('{"seed": ')
    for out, message in (
        ("file", "file cannot be used (File exists): choose another folder with --out"),
        ("file/below", "file/below cannot be used (Not a directory): choose another folder with --out"),
        ("full", "full holds something else: choose a new or empty folder with --out"),
        ("cut", "cut/demo.json is damaged: choose another folder with --out"),
        (str(demo), f"{demo} holds another demo ({{'seed': 4, 'quick': True}}): choose another folder with --out"),
    ):
        command = [*MUSCLE, "demo", "--quick", "--seed", "3", "--out", out]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (run.returncode, run.stderr) == (2, f"error: {message}\n")
    assert (demo / "table.json").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
