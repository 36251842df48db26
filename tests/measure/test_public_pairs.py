"""Every public pair of real logs in a supported format gives the flips that were counted independently of muscle."""

import json
from pathlib import Path
from typing import Any

import pytest

from muscle.measure import Update, compare
from muscle.measure.logs import OpenLog
from muscle.measure.logs.rows import Selection

WINOGRANDE = "lmeval_0.3_winogrande_llama2_7b_vs_13b"
MMLU = "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
GEMMA = "lmeval_0.4.9_gemma3_base_vs_tuned"
GSM8K = "gsm8k_openai_solutions"


def expected(data: Path, pair: str, run: str) -> dict[str, Any]:
    return json.loads((data / "logs" / "expected.json").read_text())[pair][run]


def assert_equals_expected(update: Update, want: dict[str, Any]) -> None:
    """Counts and rates to the last digit; the exact McNemar p checks the mid-p through their known difference."""
    counts = ("both_right", "positive_flips", "negative_flips", "both_wrong", "both_wrong_different")
    assert {name: getattr(update, name) for name in counts} == {name: want[name] for name in counts}
    assert (update.n, update.only_old, update.only_new) == (want["N"], want["only_in_v1"], want["only_in_v2"])
    assert (update.missing_answers_old, update.missing_answers_new) == (
        want["pred_missing_v1"],
        want["pred_missing_v2"],
    )
    rates = {"accuracy_old": "acc_v1", "accuracy_new": "acc_v2", "nfr": "NFR", "pfr": "PFR", "nfr_mc": "NFR_mc"}
    assert {name: getattr(update, name).value for name in rates} == {n: want[theirs] for n, theirs in rates.items()}
    assert update.unscored == 0
    assert update.mcnemar_mid_p < want["mcnemar_exact_p"]


@pytest.mark.parametrize(("old", "new"), [("llama-2-7b", "llama-2-13b"), ("llama-2-13b", "llama-2-7b")])
@pytest.mark.parametrize("file", ["", "winogrande_write_out_info.json"])
def test_winogrande_by_the_old_harness(data: Path, old: str, new: str, file: str) -> None:
    folder = data / "logs" / WINOGRANDE
    comparison = compare(folder / old / file, folder / new / file)
    assert_equals_expected(comparison.update, expected(data, WINOGRANDE, f"{old} -> {new}"))
    assert list(comparison.tasks) == ["winogrande"]
    assert comparison.notes == ()


def test_winogrande_s_predictions_agree_with_its_outcomes(data: Path) -> None:
    """The predicted index is the true one exactly where the harness says so."""
    for folder in (data / "logs" / WINOGRANDE).glob("llama*"):
        for row in OpenLog(folder, Selection()).rows():
            assert ((row.answer,) == row.targets) == (row.correct == 1)


def test_mmlu_pooled_and_by_task(data: Path) -> None:
    folder = data / "logs" / MMLU
    comparison = compare(folder / "0shot", folder / "5shot")
    assert_equals_expected(comparison.update, expected(data, MMLU, "0shot -> 5shot all"))
    assert len(comparison.tasks) == 4
    for name, task in comparison.tasks.items():
        assert_equals_expected(task.update, expected(data, MMLU, f"0shot -> 5shot {name}"))
    assert comparison.notes == ()  # the prompts differ, the items do not


def test_mmlu_accuracies_are_the_harness_s_own(data: Path) -> None:
    folder = data / "logs" / MMLU
    comparison = compare(folder / "0shot", folder / "5shot")
    for role, run in (("accuracy_old", "0shot"), ("accuracy_new", "5shot")):
        (results,) = (folder / run).rglob("results_*.json")
        theirs = json.loads(results.read_text())["results"]
        for name, task in comparison.tasks.items():
            assert getattr(task.update, role).value == pytest.approx(theirs[name]["acc,none"])


@pytest.mark.parametrize(
    ("task", "old", "new"),
    [
        ("gsm8k", "base_gemma3-12b-it-q4_K_M", "tuned_gemma3-12b-u1"),
        ("mmlu_pro_plus", "__workspace__gemma-3-12b-it-base", "__workspace__gemma3_12b_u2"),
    ],
)
def test_gemma_generation(data: Path, task: str, old: str, new: str) -> None:
    folder = data / "logs" / GEMMA / task
    update = compare(folder / old, folder / new).update
    assert_equals_expected(update, expected(data, GEMMA, f"{task} base -> tuned"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("6b_finetuning", "175b_finetuning"),
        ("6b_verification", "175b_verification"),
        ("6b_finetuning", "6b_verification"),
        ("175b_finetuning", "175b_verification"),
        ("175b_verification", "6b_finetuning"),
    ],
)
def test_gsm8k_solutions(data: Path, tmp_path: Path, old: str, new: str) -> None:
    source = data / "logs" / GSM8K / "example_model_solutions.jsonl"
    for system in (old, new):
        convert_gsm8k(source, system, tmp_path / f"{system}.jsonl")
    update = compare(tmp_path / f"{old}.jsonl", tmp_path / f"{new}.jsonl").update
    assert_equals_expected(update, expected(data, GSM8K, f"{old} -> {new}"))


def convert_gsm8k(source: Path, system: str, table: Path) -> None:
    """One system of OpenAI's solutions file as a table: id = line, answer = what follows the last "A:", commas out."""

    def answer(solution: str) -> str | None:
        _, found, text = solution.rpartition("A:")
        return text.strip().replace(",", "") if found else None

    with source.open() as lines, table.open("w") as rows:
        for number, line in enumerate(lines):
            problem = json.loads(line)
            solution = problem[system]
            row = {
                "id": number,
                "correct": solution["is_correct"],
                "answer": answer(solution["solution"]),
                "target": answer(problem["ground_truth"]),
            }
            rows.write(json.dumps(row) + "\n")


def test_a_log_before_filters_were_named(data: Path) -> None:
    log = data / "logs" / "format_examples" / "lmeval_0.4_2024-08_asdiv"
    comparison = compare(log, log)
    rows = [json.loads(line) for file in log.glob("samples_*") for line in file.read_text().splitlines()]
    assert comparison.update.n == 50
    assert comparison.update.both_right == sum(row["acc"] for row in rows)
    assert comparison.update.churn.value == 0
    assert comparison.inputs["old"].metric == {"asdiv": "acc"}


def test_list_valued_metrics_are_passed_over(data: Path) -> None:
    log = data / "logs" / "format_examples" / "lmeval_0.4.13dev_qwen3"
    comparison = compare(log, log)
    assert comparison.inputs["old"].metric == {
        "negotiationtom_belief": "acc",
        "negotiationtom_intention": "exact_match",
    }
    assert {name: task.update.n for name, task in comparison.tasks.items()} == {
        "negotiationtom_belief": 20,
        "negotiationtom_intention": 20,
    }


def test_a_custom_generation_task(data: Path) -> None:
    log = data / "logs" / "format_examples" / "lmeval_dev_2026"
    comparison = compare(log, log)
    assert (comparison.update.n, comparison.update.missing_answers_old) == (10, 0)
    assert comparison.inputs["old"].metric == {"math_perturbed_full": "exact_match"}
