"""Evaluation writes real samples logs, draws are read as draws; the ensemble is the mean of both models' logits."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.utils
import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from muscle.errors import MuscleError
from muscle.measure import compare
from muscle.update.backends import LocalLM
from muscle.update.ensemble import Ensemble, _MeanWith
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.recipe import Base, EvaluationSettings, TaskModel, TaskSettings
from muscle.update.scoring import _first_metric, evaluate, flips_on_validation, task_model_lm
from muscle.update.tasks import Task, load_task
from tests.update import architectures

SETTINGS = EvaluationSettings()


def rows(folder: Path) -> list[dict[str, Any]]:
    (samples,) = folder.rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def results(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def model(world: Path, name: str) -> TaskModel:
    base = {"old": "v1", "new": "v2"}[name]
    return TaskModel(base=Base(base=str(world / base)), adapter=str(world / name))


def task(world: Path, name: str, **settings: Any) -> Task:
    return load_task(name, TaskSettings(include_path=str(world / "tasks"), **{"validation_share": None, **settings}))


@pytest.fixture(scope="module")
def logs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<task>/<old|new|ensemble>` on the test split."""
    out = tmp_path_factory.mktemp("logs")
    old, new = model(world, "old"), model(world, "new")
    lms = {
        "old": task_model_lm(old, SETTINGS),
        "new": task_model_lm(new, SETTINGS),
        "ensemble": Ensemble(old, new, SETTINGS),
    }
    for name in ("scenes", "sums"):
        for called, lm in lms.items():
            evaluate(lm, called, task(world, name), "test", out / name / called, SETTINGS)
    return out


def mean_logits(world: Path, text: str) -> torch.Tensor:
    ids = load_tokenizer(Base(base=str(world / "v1")))(text, return_tensors="pt").input_ids
    models = [load_task_model(model(world, name)) for name in ("old", "new")]
    with torch.no_grad():
        return sum((each(input_ids=ids).logits[0] for each in models), torch.zeros(())) / 2


@pytest.mark.parametrize("name", ["old", "new"])
def test_choices_are_scored_by_their_log_likelihood(logs: Path, world: Path, name: str) -> None:
    tokenizer = load_tokenizer(model(world, name).base)
    task_model = load_task_model(model(world, name))
    logged = rows(logs / "scenes" / name)
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
        ids = load_tokenizer(Base(base=str(world / "v1")))(text)["input_ids"]
        log_p = mean_logits(world, text).log_softmax(-1)
        expected = sum(log_p[i - 1, ids[i]].item() for i in range(start, len(ids)))
        assert float(logged_score) == pytest.approx(expected, abs=1e-3)


def test_ensemble_generates_by_mean_logits(world: Path) -> None:
    """Prompts of unequal length, so that padding must not matter."""
    both = Ensemble(model(world, "old"), model(world, "new"), SETTINGS)
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


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "qwen3_moe", "no cache"])
def test_the_ensemble_reads_on_from_its_cache(architecture: str) -> None:
    """Against the whole context read anew: padded prompts, windows that have slid, a row that has ended."""
    other = architectures.build("llama" if architecture == "no cache" else architecture, 12, seed=0)
    if architecture == "no cache":
        whole = other.forward
        other.forward = lambda **inputs: whole(**{**inputs, "use_cache": False})
    prompts = [[0, 0, 0, 5, 6], [3, 4, 5, 6, 7], [0, 8, 3, 3, 9]]
    ids, mask = torch.tensor(prompts), torch.tensor([[int(token > 0) for token in prompt] for prompt in prompts])
    mix, scores = _MeanWith(other, mask), torch.randn(3, 12, generator=torch.manual_seed(0))
    for step in range(12):  # the windows are 8 tokens wide
        mixed = mix(ids, scores)
        for row, prompt in enumerate(prompts):
            with torch.no_grad():
                logits = other(input_ids=ids[row : row + 1, prompt.count(0) :]).logits[0, -1]
            torch.testing.assert_close(mixed[row], (scores[row] + logits) / 2)
        following = mixed.argmax(-1, keepdim=True)
        following[0] = following[0] if step < 4 else 0
        ids = torch.cat([ids, following], 1)


def test_the_ensemble_reads_each_token_once(world: Path) -> None:
    both = Ensemble(model(world, "old"), model(world, "new"), SETTINGS)
    read: list[int] = []
    both._old.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    context, mask = both.tok_batch_encode(["how many ?"])
    both._model_generate(context, context.shape[1] + 3, ["nothing"], attention_mask=mask, min_new_tokens=3)
    assert read == [context.shape[1], 1, 1]


def test_ensemble_refuses_beams(world: Path) -> None:
    both = Ensemble(model(world, "old"), model(world, "new"), SETTINGS)
    context, mask = both.tok_batch_encode(["how many ?"])
    with pytest.raises(MuscleError, match="without beams"):
        both._model_generate(context, 9, ["<eos>"], attention_mask=mask, num_beams=2)


@pytest.mark.parametrize("wider", ["old", "new"])
def test_ensemble_of_padded_vocabularies_knows_the_rows_that_both_have(world: Path, tmp_path: Path, wider: str) -> None:
    """The rows that one model has more than the other would be likeliest, were they looked at."""
    rows_of = {"old": 0, "new": 0, wider: 5}
    models = {}
    for seed, (name, more) in enumerate(rows_of.items()):
        models[name] = padded_base(world, tmp_path / name, seed, more)
    both = Ensemble(models["old"], models["new"], SETTINGS)
    ids = both.tokenizer("how many ?", return_tensors="pt").input_ids
    with torch.no_grad():
        one, other = (load_task_model(each)(input_ids=ids).logits for each in models.values())
    shared = len(both.tokenizer)
    assert one.shape[-1] != other.shape[-1]
    expected = (one[..., :shared] + other[..., :shared]) / 2
    torch.testing.assert_close(both._model_call(ids), expected)
    generated = both._model_generate(ids, ids.shape[1] + 1, ["<eos>"], attention_mask=torch.ones_like(ids))
    assert generated[0, -1] == expected[0, -1].argmax()


def padded_base(world: Path, folder: Path, seed: int, more: int) -> TaskModel:
    tokenizer = load_tokenizer(Base(base=str(world / "v1")))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + more,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    network = LlamaForCausalLM(config)
    if more:
        network.lm_head.weight.data[-more:] *= 30
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TaskModel(base=Base(base=str(folder)))


def test_the_log_is_what_compare_reads(logs: Path) -> None:
    for name in ("scenes", "sums"):
        result = compare(logs / name / "old", logs / name / "new", logs / name / "ensemble")
        assert result.update.n == 20
        metric = "acc" if name == "scenes" else "exact_match"
        right = [sum(row[metric] for row in rows(logs / name / m)) for m in ("old", "new")]
        assert result.update.accuracy_old.value == right[0] / 20
        assert result.update.accuracy_new.value == right[1] / 20
        assert result.inputs["old"].format.startswith("lm-eval")
        assert results(logs / name / "old")["results"][name][f"{metric},none"] == right[0] / 20


def test_results_name_the_model_and_the_settings(logs: Path) -> None:
    written = results(logs / "scenes" / "new")
    assert (written["model_source"], written["model_name"]) == ("hf", "new")
    assert {key: written["config"][key] for key in ("limit", "draws", "seed")} == {"limit": None, "draws": 1, "seed": 0}


def test_evaluation_compiles_each_template_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, sums = task_model_lm(model(world, "old"), SETTINGS), task(world, "sums")
    compiled, compile_template = Counter[str](), lm_eval.utils.env.from_string

    def counted(template: str) -> Any:
        compiled[template] += 1
        return compile_template(template)

    monkeypatch.setattr(lm_eval.utils.env, "from_string", counted)
    evaluate(lm, "old", sums, "test", tmp_path, SETTINGS)
    assert set(compiled.values()) == {1}


def test_validation_split_on_request(world: Path, tmp_path: Path) -> None:
    lm = task_model_lm(model(world, "old"), SETTINGS)
    evaluate(lm, "old", task(world, "scenes"), "validation", tmp_path, SETTINGS)
    validation = (world / "tasks" / "scenes" / "validation.jsonl").read_text().splitlines()
    assert [row["doc"] for row in rows(tmp_path)] == [json.loads(line) for line in validation]


def test_limit_and_shots(world: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(limit=3)
    evaluate(
        task_model_lm(model(world, "old"), settings),
        "old",
        task(world, "sums", num_fewshot=2),
        "test",
        tmp_path,
        settings,
    )
    logged = rows(tmp_path)
    assert [row["doc_id"] for row in logged] == [0, 1, 2]
    for row in logged:
        prompt = row["arguments"]["gen_args_0"]["arg_0"]
        assert prompt.endswith(row["doc"]["context"])
        assert prompt.count("\n\n") == 2


def test_chat_template_and_system_message_reach_the_prompt(world: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(limit=2)
    lm = task_model_lm(model(world, "old"), settings)
    chat = task(world, "sums", chat_template=True, system_instruction="be brief")
    with pytest.raises(MuscleError, match="no chat template"):
        evaluate(lm, "old", chat, "test", tmp_path, settings)
    assert not any(tmp_path.iterdir())
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"
    evaluate(lm, "old", chat, "test", tmp_path, settings)
    for row in rows(tmp_path):
        expected = f"[system] be brief [user] {row['doc']['context']} [assistant]"
        assert row["arguments"]["gen_args_0"]["arg_0"] == expected
    assert results(tmp_path)["system_instruction"] == "be brief"
    assert results(tmp_path)["chat_template"] == lm.tokenizer.chat_template


def test_draws_differ_and_come_again_by_the_seed(world: Path, tmp_path: Path) -> None:
    """Reading them back: every draw is one, though texts repeat."""
    answers = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = EvaluationSettings(draws=3, temperature=1.5, seed=seed, limit=6)
        lm = task_model_lm(model(world, "old"), settings)
        torch.manual_seed(len(answers))  # whatever the process did before
        evaluate(lm, "old", task(world, "sums"), "test", tmp_path / name, settings)
        answers[name] = [row["resps"][0][0] for row in rows(tmp_path / name)]
        assert [row["doc_id"] for row in rows(tmp_path / name)] == [*range(6)] * 3
    first, second, third = (answers["a"][start : start + 6] for start in (0, 6, 12))
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    assert answers["a"] == answers["b"] != answers["c"]
    result = compare(tmp_path / "a", tmp_path / "c", duplicates="draws")
    assert result.update.n == 18
    assert result.repeats is not None
    assert result.repeats.items == 6
    assert result.repeats.fewest_draws == 3
    right = [row["exact_match"] for row in rows(tmp_path / "a")]
    assert results(tmp_path / "a")["results"]["sums"]["exact_match,none"] == pytest.approx(np.mean(right))


def test_draws_come_from_the_whole_vocabulary(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Transformers would otherwise keep the 50 likeliest tokens, and vLLM all of them."""
    asked = spy_on_generate(monkeypatch)
    settings = EvaluationSettings(draws=2, temperature=0.7, limit=1)
    evaluate(task_model_lm(model(world, "old"), settings), "old", task(world, "sums"), "test", tmp_path, settings)
    wanted = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
    sampled = [call for call in asked if call["do_sample"]]  # not what tries which cache the model keeps
    assert len(sampled) >= settings.draws
    assert all(call.items() >= wanted.items() for call in sampled)


def test_generation_settings_of_the_task_reach_the_model(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = spy_on_generate(monkeypatch)
    gentle = custom_task(tmp_path, "generation_kwargs: {until: ['.'], no_repeat_ngram_size: 2, max_gen_toks: 40}")
    evaluate(task_model_lm(model(world, "old"), SETTINGS), "old", gentle, "test", tmp_path / "log", SETTINGS)
    assert [(call["no_repeat_ngram_size"], call["do_sample"]) for call in asked] == [(2, False)]


def custom_task(folder: Path, keys: str, metric: str = "exact_match", higher_is_better: bool = True) -> Task:
    """A generation task with two items held out for validation."""
    docs = [{"context": f"how many ? {number}", "answer": "3"} for number in range(4)]
    files = {}
    for split, chosen in (("train", docs), ("validation", docs[:2]), ("test", docs[:1])):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in chosen))
    (folder / "utils.py").write_text("def length(doc, results):\n    return {'length': len(results[0])}\n")
    (folder / "custom.yaml").write_text(
        f"task: custom\ndataset_path: json\ndataset_kwargs: {json.dumps({'data_files': files})}\n"
        "training_split: train\nvalidation_split: validation\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{context}}'\ndoc_to_target: '{{answer}}'\n"
        f"metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: {json.dumps(higher_is_better)}}}]\n"
        f"{keys}\n"
    )
    return load_task("custom", TaskSettings(include_path=str(folder), validation_share=None))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_grades_that_fell_are_flips(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, higher_is_better: bool
) -> None:
    """Two items, graded by the length of the answer: one grows, one shrinks by more than that."""
    answers = iter([["four", "four"], ["fours!", "x"]])
    monkeypatch.setattr(LocalLM, "generate_until", lambda *_: next(answers))
    graded = custom_task(
        tmp_path, "process_results: !function utils.length", metric="length", higher_is_better=higher_is_better
    )
    tokenizer = load_tokenizer(model(world, "new").base)
    flips = flips_on_validation(model(world, "old"), graded, tokenizer, SETTINGS)
    assert flips(load_task_model(model(world, "new"))) == 0.5
    answers = iter([["longer", "longer"]])
    assert flips(load_task_model(model(world, "new"))) == (0 if higher_is_better else 1)


def test_flips_need_a_number_per_item() -> None:
    with pytest.raises(MuscleError, match="no metric of task 'bleu' is one number per item: select_by cross_entropy"):
        _first_metric({"samples": {"bleu": [{"filter": "none", "metrics": ["bleu"], "bleu": ["a", "b"]}]}}, "bleu")


def spy_on_generate(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []
    generate: Callable[..., Any] = LlamaForCausalLM.generate

    def listening(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "generate", listening)
    return asked


def test_choices_cannot_be_sampled(world: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(draws=2)
    with pytest.raises(MuscleError, match="nothing to sample: leave draws at 1"):
        evaluate(task_model_lm(model(world, "old"), settings), "old", task(world, "scenes"), "test", tmp_path, settings)


def test_a_log_that_is_not_written_whole_is_an_error(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """lm-eval would only warn."""
    monkeypatch.setattr("lm_eval.loggers.EvaluationTracker.save_results_samples", lambda *_: None)
    settings = EvaluationSettings(limit=1)
    with pytest.raises(MuscleError, match="could not be written"):
        evaluate(task_model_lm(model(world, "old"), settings), "old", task(world, "scenes"), "test", tmp_path, settings)


@pytest.mark.parametrize("name", ["scenes", "sums"])
def test_flips_on_validation_are_those_of_the_logs(world: Path, tmp_path: Path, name: str) -> None:
    right = {}
    for called in ("old", "new"):
        lm = task_model_lm(model(world, called), SETTINGS)
        evaluate(lm, called, task(world, name), "validation", tmp_path / called, SETTINGS)
        metric = "acc" if name == "scenes" else "exact_match"
        right[called] = {row["doc_id"]: row[metric] for row in rows(tmp_path / called)}
    expected = sum(right["old"][item] > right["new"][item] for item in right["old"]) / len(right["old"])
    tokenizer = load_tokenizer(model(world, "new").base)
    flips = flips_on_validation(model(world, "old"), task(world, name), tokenizer, SETTINGS)
    assert flips(load_task_model(model(world, "new"))) == expected
    assert flips(load_task_model(model(world, "old"))) == 0
    if name == "scenes":
        assert expected > 0


def test_counting_flips_does_not_disturb_training(world: Path) -> None:
    """The same weights as without it, bit by bit, though there is dropout; and modules that were in evaluation stay."""
    tokenizer = load_tokenizer(model(world, "new").base)
    ids = tokenizer("how many ?", return_tensors="pt").input_ids
    ended = []
    for counts in (False, True):
        flips = flips_on_validation(model(world, "old"), task(world, "scenes"), tokenizer, SETTINGS)
        student = load_task_model(model(world, "new"), trainable=True)
        student.config.attention_dropout = 0.5
        for layer in student.base_model.model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        student.get_output_embeddings().eval()
        modes = [module.training for module in student.modules()]
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=0.1)
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(0)
        for _ in range(3):
            student(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if counts:
                flips(student)
                assert [module.training for module in student.modules()] == modes
        ended.append([weight.clone() for weight in weights])
        ended[-1].append(torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]))
    assert all(torch.equal(one, other) for one, other in zip(*ended, strict=True))
