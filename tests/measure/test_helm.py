"""HELM run folders: two real ones, and hand-written ones after HELM's own classes for what those do not show."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import LogError
from muscle.measure import compare
from muscle.measure.logs import OpenLog
from muscle.measure.logs.rows import Row, Selection
from muscle.measure.predictions import Log

EXAMPLES = Path("logs", "format_examples", "helm")
HELLASWAG = "commonsense:dataset=hellaswag,method=multiple_choice_joint"
PHILOSOPHY = "mmlu:subject=philosophy,method=multiple_choice_joint"


def read(path: Path, **choices: Any) -> Log:
    return OpenLog(path, Selection(**choices)).read()


def rows(path: Path, **choices: Any) -> list[Row]:
    return list(OpenLog(path, Selection(**choices)).rows())


def entry(id_: str = "id1", trial: int = 0, perturbation: object = None, **stats: float | None) -> dict[str, Any]:
    """Stats of an instance as HELM writes them: no mean where nothing was counted."""
    named = [
        {"name": {"name": name, "split": "test"}, "count": int(mean is not None)}
        | ({} if mean is None else {"sum": mean, "mean": mean})
        for name, mean in stats.items()
    ]
    found = {"instance_id": id_, "train_trial_index": trial, "stats": named}
    return found if perturbation is None else found | {"perturbation": perturbation}


def request(
    id_: str = "id1",
    *completions: tuple[str, float],
    correct: int = 0,
    references: tuple[str, ...] = ("yes", "no"),
    **fields: Any,
) -> dict[str, Any]:
    listed = [
        {"output": {"text": text}, "tags": ["correct"] if i == correct else []} for i, text in enumerate(references)
    ]
    instance = {"id": id_, "input": {"text": "Which?"}, "references": listed, "split": "test", "sub_split": "easy"}
    texts = [{"text": text, "logprob": logprob, "tokens": []} for text, logprob in completions]
    state = {"instance": instance, "train_trial_index": 0, "result": {"success": True, "completions": texts}}
    return state | fields


def scored(reference: int, *tokens: tuple[str, float], mode: str = "original", **fields: Any) -> dict[str, Any]:
    """A request of a method that scores each reference on its own: the prompt comes back with the reference."""
    state = request("id1", ("", 0.0), reference_index=reference, request_mode=mode, **fields)
    echoed = [("Which", -3.0), ("?", -1.0), *tokens]
    state["result"]["completions"][0]["tokens"] = [{"text": text, "logprob": value} for text, value in echoed]
    return state


def write_run(
    folder: Path,
    entries: list[dict[str, Any]],
    requests: list[dict[str, Any]] | None = None,
    name: str | None = None,
    model: str = "org/m",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {"per_instance_stats.json": entries}
    if requests is not None:
        files["scenario_state.json"] = {"adapter_spec": {"method": "generation"}, "request_states": requests}
    if name is not None:
        files["run_spec.json"] = {"name": name, "adapter_spec": {"model": model}}
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2))
    return folder


# --- real runs ---


def test_a_folder_of_real_runs(data: Path) -> None:
    log = read(data / EXAMPLES)
    assert log.format == "helm"
    assert {name: task.correct.tolist() for name, task in log.tasks.items()} == {
        HELLASWAG: [0, 0, 1, 1, 0, 0, 0, 0, 0, 1],
        PHILOSOPHY: [0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
    }
    others = "quasi_exact_match, prefix_exact_match, quasi_prefix_exact_match"
    assert f"task {PHILOSOPHY}: stat exact_match is read; choose with --metric among it and {others}" in log.notes


@pytest.mark.parametrize("run", ["commonsense-dataset-hellaswag", "mmlu-subject-philosophy"])
def test_real_answers_are_the_texts_that_the_letters_stand_for(data: Path, run: str) -> None:
    found = rows(data / EXAMPLES / run, labels=("instance.split",))
    states = json.loads((data / EXAMPLES / run / "scenario_state.json").read_text())["request_states"]
    for row, state in zip(found, states, strict=True):
        letter = state["result"]["completions"][0]["text"].strip()
        gold = [one["output"]["text"] for one in state["instance"]["references"] if "correct" in one["tags"]]
        assert (row.id, row.answer, row.targets) == (
            state["instance"]["id"],
            state["output_mapping"][letter],
            tuple(gold),
        )
        assert row.correct == (row.answer in gold)
        assert row.labels == (state["instance"]["split"],)
        assert row.doc_hash


@pytest.mark.parametrize("file", ["per_instance_stats.json", "scenario_state.json", "run_spec.json"])
def test_any_file_of_a_run_names_it(data: Path, file: str) -> None:
    assert list(read(data / EXAMPLES / "mmlu-subject-philosophy" / file).tasks) == [PHILOSOPHY]


def test_a_real_run_with_texts(data: Path) -> None:
    log = OpenLog(data / EXAMPLES / "mmlu-subject-philosophy", Selection())
    log.read()
    texts = log.texts({PHILOSOPHY: {("id147", 0)}})[PHILOSOPHY, ("id147", 0)]
    assert texts == (
        "What does the notion of “meaning in life” refer to?",
        "internalmeaning",
        "meaning in an afterlife",
    )


# --- tasks, items, draws ---


@pytest.mark.parametrize(
    ("name", "task"),
    [
        (
            "mmlu:subject=law,method=multiple_choice_joint,model=openai_gpt2",
            "mmlu:subject=law,method=multiple_choice_joint",
        ),
        ("boolq:model=a_b,data_augmentation=canonical", "boolq:data_augmentation=canonical"),
        ("gsm:model=a_b", "gsm"),
        ("math:level=1,model=a_b,model_deployment=c_d,k=2", "math:level=1,k=2"),
        ("x:base_model=y,model=z", "x:base_model=y"),
    ],
)
def test_the_task_is_the_run_without_its_model(tmp_path: Path, name: str, task: str) -> None:
    assert list(read(write_run(tmp_path / "run", [entry(exact_match=1)], name=name)).tasks) == [task]
    assert list(read(write_run(tmp_path / name, [entry(exact_match=1)])).tasks) == [task]


def test_runs_of_two_models_pair(tmp_path: Path) -> None:
    for model, right in (("old", 1), ("new", 0)):
        for subject in ("law", "art"):
            run = f"mmlu:subject={subject},model={model}"
            write_run(tmp_path / model / run, [entry(exact_match=right)], [request("id1", ("yes", 0))], name=run)
    update = compare(tmp_path / "old", tmp_path / "new").total.update
    assert (update.n, update.negative_flips) == (2, 2)
    for model in "ab":
        write_run(tmp_path / "both" / model, [entry(exact_match=1)], name=f"gsm:model={model}", model=model)
    with pytest.raises(LogError, match="task gsm of b beside that of a; keep one model's runs per folder"):
        read(tmp_path / "both")


def test_a_folder_without_a_run_spec_is_the_user_s(tmp_path: Path) -> None:
    write_run(tmp_path / "old", [entry(exact_match=1)])
    assert list(read(tmp_path / "old").tasks) == [""]
    write_run(tmp_path / "old" / "more", [entry(exact_match=1)])
    assert sorted(read(tmp_path / "old").tasks) == ["more", "old"]


def test_entries_of_one_instance_are_joined_and_trials_are_draws(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        [entry(num_references=2), entry(exact_match=1, f1_score=0.5), entry(trial=1, exact_match=0), entry("id2", x=1)],
    )
    log = read(run, score="f1_score")
    (task,) = log.tasks.values()
    assert list(zip(task.ids, task.draws.tolist(), task.correct.tolist(), strict=True)) == [
        ("id1", 0, 1),
        ("id1", 1, 0),
        ("id2", 0, -1),
    ]
    assert task.scores[0] == 0.5
    assert math.isnan(task.scores[1])


def test_perturbed_instances_are_left_out_or_read_alone(tmp_path: Path) -> None:
    typos = {"name": "misspellings", "robustness": True, "fairness": False, "computed_on": "perturbed", "prob": 0.1}
    case = {"name": "lowercase", "robustness": True, "fairness": False, "computed_on": "perturbed"}
    plain, typed = request("id1", ("yes", 0)), request("id1", ("no", 0))
    typed["instance"]["perturbation"] = typos
    run = write_run(
        tmp_path / "run",
        [entry(exact_match=1), entry(perturbation=typos, exact_match=0), entry(perturbation=case, exact_match=0)],
        [plain, typed],
    )
    log = read(run)
    assert [(row.id, row.correct, row.answer) for row in rows(run)] == [("id1", 1, "yes")]
    assert "perturbed instances left out (1 misspellings, 1 lowercase); read one kind with --filter" in log.notes
    assert [(row.id, row.correct, row.answer) for row in rows(run, filter="misspellings")] == [
        ("id1(prob=0.1)", 0, "no")
    ]
    assert [row.id for row in rows(run, filter="lowercase")] == ["id1"]
    with pytest.raises(LogError, match="no perturbation 'typos'; choose with --filter among misspellings, lowercase"):
        rows(run, filter="typos")


# --- metrics ---


def test_the_metric(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [entry(num_bytes=1, quasi_exact_match=0, exact_match=1, bleu_4=0.5)])
    assert [(row.task.metric, row.correct) for row in rows(run)] == [("quasi_exact_match", 0)]
    assert [(row.task.metric, row.correct) for row in rows(run, metric="exact_match")] == [("exact_match", 1)]
    with pytest.raises(
        LogError, match="no stat 'acc'; choose with --metric among quasi_exact_match, exact_match, bleu_4"
    ):
        rows(run, metric="acc")
    with pytest.raises(
        LogError, match=r"stats.json:2: bleu_4 is 0.5, neither right nor wrong; choose another with --m"
    ):
        rows(run, metric="bleu_4")


def test_a_run_that_grades_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [entry(num_bytes=1, rouge_l=0.5)])
    with pytest.raises(LogError, match="no stat known to say right or wrong; choose with --metric among rouge_l"):
        rows(run)
    assert [(row.task.metric, row.correct, row.score) for row in rows(run, score="rouge_l")] == [(None, -1, 0.5)]
    assert [row.task.metric for row in rows(run, text_score="exact_match")] == ["exact_match"]


def test_a_stat_that_counted_nothing_is_unscored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [entry(exact_match=None), entry("id2", exact_match=1)])
    assert [row.correct for row in rows(run)] == [-1, 1]


# --- answers ---


def test_the_likeliest_completion_is_the_answer(tmp_path: Path) -> None:
    letters = request("id1", (" B", -2.0), (" A", -1.0), output_mapping={"A": "yes", "B": "no"})
    stray = request("id2", (" M", 0.0), output_mapping={"A": "yes", "B": "no"})
    empty = request("id3") | {"result": None}
    old = request("id4", (" no\n", 0.0))
    old["instance"] |= {"input": "Which?", "references": [{"output": "yes", "tags": ["correct"]}]}
    run = write_run(
        tmp_path / "run", [entry(f"id{i}", exact_match=0) for i in range(1, 6)], [letters, stray, empty, old]
    )
    assert [row.answer for row in rows(run)] == ["yes", "M", None, "no", None]
    assert [row.targets for row in rows(run)] == [("yes",), ("yes",), ("yes",), ("yes",), ()]
    assert read(run).notes == ("predicted answers that cannot be told from the requests: 1",)


@pytest.mark.parametrize(
    ("requests", "exact", "answer"),
    [
        # " yes" has the lower sum and the higher mean
        ([scored(0, (" y", -1.0), ("es", -1.0)), scored(1, (" no", -1.5))], 1, "yes"),
        ([scored(0, (" yes", -2.0)), scored(1, (" no", -1.5))], 0, "no"),
        # " no" is likelier, but much likelier still without the question
        (
            [
                *(scored(0, (" yes", -2.0)), scored(0, (" yes", -5.0), mode="calibration")),
                *(scored(1, (" no", -1.0)), scored(1, (" no", -1.5), mode="calibration")),
            ],
            1,
            "yes",
        ),
        ([scored(0, (" yes", -2.0)), scored(1, (" no", -1.5))], 1, None),  # HELM saw it otherwise
        ([scored(0, ("▁yes", -2.0)), scored(1, ("▁no", -1.5))], 0, None),  # not spelled as in the reference
        ([scored(0, (" yes", -2.0))], 1, None),
        ([scored(0, (" yes", -2.0)), scored(7, (" no", -1.5))], 1, None),
    ],
)
def test_references_that_are_scored_on_their_own(
    tmp_path: Path, requests: list[dict[str, Any]], exact: int, answer: str | None
) -> None:
    run = write_run(tmp_path / "run", [entry(exact_match=exact)], requests)
    assert [row.answer for row in rows(run)] == [answer]
    told = "predicted answers that cannot be told from the requests: 1"
    assert (told in read(run).notes) == (answer is None)


def test_helm_s_own_predicted_index(tmp_path: Path) -> None:
    requests = [scored(0), scored(1)]
    run = write_run(tmp_path / "run", [entry(exact_match=0, predicted_index=1.0)], requests)
    assert [row.answer for row in rows(run)] == ["no"]


def test_without_the_requests_the_answers_are_not_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [entry(exact_match=1)])
    assert read(run).notes == ("no requests in scenario_state.json, so the answers are not known",)


# --- damage ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instance_id": ""}, "2: the row has no id"),
        ({"instance_id": 3}, "2: Expected `str`, got `int`"),
        ({"train_trial_index": -1}, "2: train_trial_index is -1; expected a whole number from 0"),
        ({"stats": [3]}, "2: Expected `object`, got `int`"),
        ({"perturbation": "x"}, "2: Expected `object . null`, got `str`"),
    ],
)
def test_entries_of_the_wrong_kind(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path / "run", [entry(exact_match=1) | fields])
    with pytest.raises(LogError, match=f"per_instance_stats.json:{message}"):
        rows(run / "per_instance_stats.json", format="helm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"request_states": ', "not JSON, or cut off"),
        ("[]", "Expected `object`, got `array`"),
        ('{"request_states": [{}]}', "missing required field `instance`"),
        (
            '{"request_states": [{"instance": {"id": "id1", "references": [{"output": 3, "tags": "x"}]}}]}',
            "Expected `array`",
        ),
        ('{"request_states": ' + "[" * 10**5 + "]" * 10**5 + "}", "nested too deeply|Expected `object`"),
        ('{"request_states": [{"instance": {"id": "id1", "input": ' + "[" * 10**5 + "]" * 10**5 + "}}]}", "too deeply"),
    ],
)
def test_requests_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    run = write_run(tmp_path / "run", [entry(exact_match=1)])
    (run / "scenario_state.json").write_text(text.replace("{", "{\n", 1))
    with pytest.raises(LogError, match=message):
        rows(run)


def test_a_run_without_stats(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [entry(exact_match=1)], [], name="gsm:model=m")
    (run / "per_instance_stats.json").unlink()
    with pytest.raises(LogError, match=r"per_instance_stats.json: cannot be read \(No such file or directory\)"):
        rows(run, format="helm")
