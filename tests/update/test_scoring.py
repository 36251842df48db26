"""Evaluation writes real samples logs; the ensemble is the mean of both models' logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from muscle.measure import compare
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.scoring import Ensemble, evaluate, task_model_lm
from muscle.update.tasks import load_task


def rows(folder: Path) -> list[dict[str, Any]]:
    (samples,) = folder.rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


@pytest.fixture(scope="module")
def logs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<task>/<old|new|ensemble>` on the test split."""
    out = tmp_path_factory.mktemp("logs")
    for name in ("scenes", "sums"):
        old, new = task_model_lm(world / "v1", world / "old"), task_model_lm(world / "v2", world / "new")
        both = Ensemble(old, world / "v2", world / "new")
        for model, lm in (("old", old), ("new", new), ("ensemble", both)):
            evaluate(lm, model, load_task(name, world / "tasks"), "test", out / name / model)
    return out


def mean_logits(world: Path, text: str) -> torch.Tensor:
    ids = load_tokenizer(world / "v1")(text, return_tensors="pt").input_ids
    models = [load_task_model(world / base, world / adapter) for base, adapter in (("v1", "old"), ("v2", "new"))]
    with torch.no_grad():
        return sum((model(input_ids=ids).logits[0] for model in models), torch.zeros(())) / 2


@pytest.mark.parametrize("model", ["old", "new"])
def test_choices_are_scored_by_their_log_likelihood(logs: Path, world: Path, model: str) -> None:
    tokenizer = load_tokenizer(world / "v1")
    task_model = load_task_model(world / {"old": "v1", "new": "v2"}[model], world / model)
    logged = rows(logs / "scenes" / model)
    assert len(logged) == 20
    for row in logged[:3]:
        for choice, (logged_score, _) in zip(row["doc"]["choices"], row["filtered_resps"], strict=True):
            context = tokenizer(row["doc"]["context"])["input_ids"]
            ids = torch.tensor([tokenizer(f"{row['doc']['context']} {choice}")["input_ids"]])
            with torch.no_grad():
                log_p = task_model(input_ids=ids).logits[0].log_softmax(-1)
            expected = sum(log_p[i - 1, ids[0, i]].item() for i in range(len(context), ids.shape[1]))
            assert float(logged_score) == pytest.approx(expected, abs=1e-3)


def test_ensemble_scores_choices_by_mean_logits(logs: Path, world: Path) -> None:
    row = rows(logs / "scenes" / "ensemble")[0]
    start = len(row["doc"]["context"].split())
    for choice, (logged_score, _) in zip(row["doc"]["choices"], row["filtered_resps"], strict=True):
        text = f"{row['doc']['context']} {choice}"
        ids = load_tokenizer(world / "v1")(text)["input_ids"]
        log_p = mean_logits(world, text).log_softmax(-1)
        expected = sum(log_p[i - 1, ids[i]].item() for i in range(start, len(ids)))
        assert float(logged_score) == pytest.approx(expected, abs=1e-3)


def test_ensemble_generates_by_mean_logits(world: Path) -> None:
    """Prompts of unequal length, so that padding must not matter."""
    old = task_model_lm(world / "v1", world / "old")
    both = Ensemble(old, world / "v2", world / "new")
    tokenizer, prompts = both.tokenizer, ["question : lea has 3 nuts .", "how many ?", "rain at dawn . ned is happy"]
    context, mask = both.tok_batch_encode(prompts)
    length = context.shape[1] + 4
    generated = both._model_generate(context, length, ["<eos>"], attention_mask=mask, do_sample=False)
    for prompt, row in zip(prompts, generated, strict=True):
        text = prompt
        for token in row[context.shape[1] :].tolist():
            expected = int(mean_logits(world, text)[-1].argmax())
            assert token == expected
            if token == tokenizer.eos_token_id:
                break
            text += " " + tokenizer.convert_ids_to_tokens(token)


def test_the_log_is_what_compare_reads(logs: Path) -> None:
    for name in ("scenes", "sums"):
        result = compare(logs / name / "old", logs / name / "new", logs / name / "ensemble")
        assert result.update.n == 20
        right = [
            sum(row["acc" if name == "scenes" else "exact_match"] for row in rows(logs / name / m))
            for m in ("old", "new")
        ]
        assert result.update.accuracy_old.value == right[0] / 20
        assert result.update.accuracy_new.value == right[1] / 20
        assert result.inputs["old"].format.startswith("lm-eval")


def test_validation_split_on_request(world: Path, tmp_path: Path) -> None:
    lm = task_model_lm(world / "v1", world / "old")
    evaluate(lm, "old", load_task("scenes", world / "tasks"), "validation", tmp_path)
    validation = (world / "tasks" / "scenes" / "validation.jsonl").read_text().splitlines()
    assert [row["doc"] for row in rows(tmp_path)] == [json.loads(line) for line in validation]
