"""The references that choose between both models' answers, against choices made by hand from each model's own logs."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from muscle.errors import MuscleError
from muscle.update import two_models
from muscle.update.backends import LocalLM
from muscle.update.generation import Generated, generate
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.recipe import Base, EvaluationSettings, TaskModel, TaskSettings
from muscle.update.scoring import evaluate, task_model_lm
from muscle.update.tasks import Task, load_task
from muscle.update.two_models import NO_CANDIDATE, SAMPLES, Gated, Reranked

from .commands import run

SETTINGS = EvaluationSettings()
METRICS = ("acc", "acc_norm", "acc_mutual_info")
Pair = type[Reranked] | type[Gated]


def rows(folder: Path) -> list[dict[str, Any]]:
    (samples,) = folder.rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def scores(row: dict[str, Any]) -> list[float]:
    """Log-likelihoods of an item's choices, and then of each without its context."""
    return [float(score) for score, _ in row["filtered_resps"]]


def model(world: Path, name: str) -> TaskModel:
    base = {"old": "v1", "new": "v2"}[name]
    return TaskModel(base=Base(base=str(world / base)), adapter=str(world / name))


def task(world: Path, name: str, folder: Path | None = None) -> Task:
    return load_task(name, TaskSettings(include_path=str(folder or world / "tasks"), validation_share=None))


def pair(world: Path, kind: Pair, settings: EvaluationSettings = SETTINGS) -> Reranked | Gated:
    return kind(model(world, "old"), model(world, "new"), settings)


@pytest.fixture(scope="module")
def logs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Rows of `<task>/<model>` on the test split."""
    out = tmp_path_factory.mktemp("logs")
    tasks = Path(shutil.copytree(world / "tasks", out / "tasks"))
    more = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS]
    scenes = (tasks / "scenes.yaml").read_text()
    (tasks / "scenes.yaml").write_text(re.sub(r"metric_list:\n(  .*\n)+", f"metric_list: {json.dumps(more)}\n", scenes))
    lms = {name: task_model_lm(model(world, name), SETTINGS) for name in ("old", "new")}
    lms |= {"gated": pair(world, Gated), "reranked": pair(world, Reranked)}
    for name in ("scenes", "sums"):
        for called, lm in lms.items():
            evaluate(lm, called, task(world, name, tasks), "test", out / name / called, SETTINGS)
    return {f"{name}/{called}": rows(out / name / called) for name in ("scenes", "sums") for called in lms}


@pytest.fixture(scope="module")
def log_p(world: Path) -> Callable[[str, str, Sequence[int]], float]:
    """By old or new, prompt and tokens: the log-likelihood of an answer, read alone and unpacked."""
    models = {name: load_task_model(model(world, name)) for name in ("old", "new")}
    tokenizer = load_tokenizer(model(world, "old").base)

    def read(name: str, prompt: str, tokens: Sequence[int]) -> float:
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            found = models[name](input_ids=torch.tensor([[*ids, *tokens]])).logits[0].log_softmax(-1)
        return float(sum(found[len(ids) - 1 + i, token].item() for i, token in enumerate(tokens)))

    return read


def test_the_gate_opens_for_the_model_that_is_surer_of_its_choice(logs: dict[str, list[dict[str, Any]]]) -> None:
    passed = Counter[str]()
    for old, new, gated in zip(*(logs[f"scenes/{each}"] for each in ("old", "new", "gated")), strict=True):
        sure = {}
        for name, row in (("old", old), ("new", new)):
            p = np.exp(np.array(scores(row)[: len(row["doc"]["choices"])]))
            sure[name] = (p / p.sum()).max()
        surer = max(sure, key=lambda name: sure[name])
        chosen = {"old": old, "new": new}[surer]
        assert gated["filtered_resps"] == chosen["filtered_resps"]
        assert [gated[metric] for metric in METRICS] == [chosen[metric] for metric in METRICS]
        passed[surer] += 1
    assert len(passed) == 2  # or nothing is tried


def test_the_gate_opens_for_the_surer_answer(
    world: Path, logs: dict[str, list[dict[str, Any]]], log_p: Callable[[str, str, Sequence[int]], float]
) -> None:
    lms = {name: task_model_lm(model(world, name), SETTINGS) for name in ("old", "new")}
    passed = Counter[str]()
    for row in logs["sums/gated"]:
        asked = list(row["arguments"]["gen_args_0"].values())
        sure, said = {}, {}
        for name, lm in lms.items():
            (answer,) = generate(lm, [(asked[0], asked[1])], disable_tqdm=True)
            sure[name] = log_p(name, asked[0], answer.tokens) / len(answer.tokens)
            said[name] = answer.text
        surer = max(sure, key=lambda name: sure[name])
        assert row["resps"] == [[said[surer]]]
        passed[surer] += said["old"] != said["new"]
    assert len(+passed) == 2


def test_equally_sure_models_leave_it_to_the_new_one(world: Path) -> None:
    same = Gated(model(world, "new"), model(world, "new"), SETTINGS)
    prompt = "question : lea has 3 nuts . how many ?"
    alone = task_model_lm(model(world, "new"), SETTINGS)
    asked = [choice(prompt, f" {number}", i) for i, number in enumerate("123")]
    assert same.loglikelihood(asked, disable_tqdm=True) == alone.loglikelihood(asked, disable_tqdm=True)
    answers = [Generated([5], "old"), Generated([5], "new")]
    picks = iter(answers[::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_models, "generate", lambda *_: [next(picks)])
        assert [each.text for each in same._generated([(prompt, {})], True)] == ["new"]


@pytest.mark.slow
def test_a_run_evaluates_and_shows_them(world: Path, logs: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """With adapters that are there; the logs are those of the models that are evaluated here."""
    sides = {
        name: {"base": str(world / base), "adapters": {task: str(world / name) for task in ("scenes", "sums")}}
        for name, base in (("old", "v1"), ("new", "v2"))
    }
    tasks = {name: {"include_path": str(world / "tasks"), "validation_share": None} for name in ("scenes", "sums")}
    recipe = {**sides, "tasks": tasks, "methods": {}, "controls": ["ensemble", "reranked", "gated"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = run("update", "recipe.yaml", "--out", "run", cwd=tmp_path, seconds=300)
    assert (done.returncode, done.stderr) == (0, "")
    for control in ("reranked", "gated"):
        for name in tasks:
            found, expected = rows(tmp_path / "run/logs" / name / control), logs[f"{name}/{control}"]
            (metric,) = found[0]["metrics"]
            assert [row[metric] for row in found] == [row[metric] for row in expected]
    for label in ("| re-ranked (both ", "| gated (both "):  # a narrow table goes on in the next line
        assert done.stdout.count(label) >= len(tasks)
    written = run("tables", "run", "--markdown", "tables.md", cwd=tmp_path)
    assert (written.returncode, written.stderr) == (0, "")
    assert "| re-ranked (both models) |" in (tmp_path / "tables.md").read_text()


def choice(context: str, answer: str, number: int, doc: int = 0) -> Instance:
    return Instance("loglikelihood", {}, (context, answer), number, ("scenes", doc, 1))


def test_reranked_choices_are_the_old_models_among_the_candidates(logs: dict[str, list[dict[str, Any]]]) -> None:
    dropped = moved = 0
    for old, new, reranked in zip(*(logs[f"scenes/{each}"] for each in ("old", "new", "reranked")), strict=True):
        lengths = [len(each) for each in reranked["doc"]["choices"]]
        (theirs, without), (mine, _), (found, found_without) = (
            (scores(row)[: len(lengths)], scores(row)[len(lengths) :]) for row in (old, new, reranked)
        )
        assert len(without) == len(lengths)
        assert found_without == without
        candidates = [i for i, score in enumerate(found) if score > -NO_CANDIDATE / 2]
        assert int(np.argmax(mine)) in candidates
        for i, score in enumerate(found):
            assert score == (theirs[i] if i in candidates else theirs[i] - NO_CANDIDATE)
        ranks = (theirs, np.divide(theirs, lengths), np.subtract(theirs, without))
        for metric, rank in zip(METRICS, ranks, strict=True):
            best = max(candidates, key=lambda i: rank[i])
            assert reranked[metric] == float(best == int(reranked["target"]))
        dropped += len(found) - len(candidates)
        moved += max(candidates, key=lambda i: theirs[i]) != int(np.argmax(mine))
    assert dropped
    assert moved


def test_choices_are_drawn_from_the_new_models_distribution(world: Path) -> None:
    """Many items of one question: how often a choice is a candidate, against its chance in `SAMPLES` draws."""
    lm, alone = pair(world, Reranked), task_model_lm(model(world, "new"), SETTINGS)
    texts, docs = [" 1", " 2", " 3", " rain"], 600
    one = [choice("how many ?", text, i) for i, text in enumerate(texts)]
    new = np.array([score for score, _ in alone.loglikelihood(one, disable_tqdm=True)])
    p = np.exp(new) / np.exp(new).sum()
    expected = np.where(np.arange(len(p)) == p.argmax(), 1, 1 - (1 - p) ** SAMPLES)
    asked = [choice("how many ?", text, i, doc) for doc in range(docs) for i, text in enumerate(texts)]
    found = np.array([score for score, _ in lm.loglikelihood(asked, disable_tqdm=True)]).reshape(docs, -1)
    share = (found > -NO_CANDIDATE / 2).mean(axis=0)
    assert 0.05 < expected.min() < 0.95  # or nothing is tried
    np.testing.assert_allclose(share, expected, atol=5 / (2 * docs**0.5))


def test_reranked_answers_are_the_old_models_among_the_candidates(
    world: Path,
    log_p: Callable[[str, str, Sequence[int]], float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    made: list[tuple[Sequence[tuple[str, dict[str, Any]]], list[Generated]]] = []

    def listening(lm: LocalLM, asked: Sequence[tuple[str, dict[str, Any]]], quiet: bool) -> list[Generated]:
        made.append((asked, generate(lm, asked, quiet)))
        return made[-1][1]

    monkeypatch.setattr(two_models, "generate", listening)
    settings = EvaluationSettings(limit=6)
    evaluate(pair(world, Reranked, settings), "reranked", task(world, "sums"), "test", tmp_path, settings)
    (asked, own), (asked_often, sampled) = made
    greedy = generate(task_model_lm(model(world, "new"), settings), asked, disable_tqdm=True)
    assert own == greedy
    wanted = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert all(kwargs.items() >= wanted.items() for _, kwargs in asked_often)
    texts = {row["arguments"]["gen_args_0"]["arg_0"]: row["resps"][0][0] for row in rows(tmp_path)}
    for i, (prompt, _) in enumerate(asked):
        assert [each[0] for each in asked_often[i * SAMPLES : (i + 1) * SAMPLES]] == [prompt] * SAMPLES
        candidates = [own[i], *sampled[i * SAMPLES : (i + 1) * SAMPLES]]
        assert len({tuple(each.tokens) for each in candidates}) > 2
        best = max(candidates, key=lambda each: log_p("old", prompt, each.tokens))
        assert texts[prompt] == best.text
    assert list(texts.values()) != [each.text for each in own]


@pytest.mark.parametrize("name", ["scenes", "sums"])
def test_candidates_come_again_by_the_seed(world: Path, tmp_path: Path, name: str) -> None:
    found: dict[str, list[Any]] = {}
    for called, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = EvaluationSettings(seed=seed, limit=8)
        torch.manual_seed(len(found))  # whatever the process did before
        evaluate(pair(world, Reranked, settings), called, task(world, name), "test", tmp_path / called, settings)
        found[called] = [row["resps"] for row in rows(tmp_path / called)]
    assert found["a"] == found["b"] != found["c"]


def test_choices_do_not_depend_on_what_else_a_process_is_asked(world: Path) -> None:
    """Under `accelerate launch` each has a share of the items, and the last request may come twice."""
    prompts = ["how many ?", "question : lea has 3 nuts .", "rain at dawn . ned is happy"]
    items = [
        [choice(prompt, f" {text}", i, doc) for i, text in enumerate(("1", "2", "rain", "ned"))]
        for doc, prompt in enumerate(prompts)
    ]
    for kind in (Reranked, Gated):
        lm = pair(world, kind)
        together = lm.loglikelihood([request for item in items for request in item], disable_tqdm=True)
        for doc, item in enumerate(items):
            found = lm.loglikelihood([*item[::-1], item[-1], item[-1]], disable_tqdm=True)
            expected = together[4 * doc : 4 * doc + 4]
            expected = [*expected[::-1], expected[-1], expected[-1]]
            np.testing.assert_allclose([a for a, _ in found], [a for a, _ in expected], atol=1e-5)


def refused(world: Path, kind: Pair) -> list[tuple[str, Callable[[], object]]]:
    """What each cannot do, and what it says."""
    lm = pair(world, kind)
    whole = Instance("loglikelihood_rolling", {}, ("how many ?",), 0, ("text", 0, 1))
    beams = Instance("generate_until", {}, ("how many ?", {"num_beams": 2, "until": ["."]}), 0, ("text", 0, 1))
    return [
        ("leave draws at 1", lambda: pair(world, kind, EvaluationSettings(draws=2))),
        ("whole texts have none", lambda: lm.loglikelihood_rolling([whole])),
        ("task 'scenes' scores a single one", lambda: lm.loglikelihood([choice("how many ?", " 3", 0)], True)),
        ("change the task's generation_kwargs", lambda: lm.generate_until([beams], True)),
    ]


@pytest.mark.parametrize("kind", [Reranked, Gated])
def test_what_is_not_defined_is_refused(world: Path, kind: Pair) -> None:
    for message, attempt in refused(world, kind):
        with pytest.raises(MuscleError, match=message):
            attempt()


def test_reranking_needs_the_same_tokens(world: Path) -> None:
    lm = pair(world, Reranked)
    request = Instance("generate_until", {}, ("how many ?", {"until": ["."], "max_gen_toks": 3}), 0, ("sums", 0, 1))
    assert len(lm.generate_until([request], disable_tqdm=True)) == 1
    encode = lm._old.tok_encode
    lm._old.tok_encode = lambda text, **kwargs: encode(text, **kwargs)[::-1]
    with pytest.raises(MuscleError, match="their tokenizers differ"):
        lm.generate_until([request], disable_tqdm=True)


def test_tokens_that_the_old_model_has_no_row_for_are_never_its_choice(
    world: Path, log_p: Callable[[str, str, Sequence[int]], float]
) -> None:
    """The new one's vocabulary may be padded to more rows."""
    lm = pair(world, Reranked)
    rows_of_old = len(lm.tokenizer)
    answers = [Generated([4, rows_of_old], "beyond"), Generated([4, 5], "within")]
    beyond, within = two_models._log_likelihoods(lm._old, ["how many ?"] * 2, answers)
    assert beyond == -np.inf
    assert within == pytest.approx(log_p("old", "how many ?", [4, 5]), abs=1e-3)
