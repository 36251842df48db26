"""Packed scoring gives lm-eval's own log-likelihoods, reads common beginnings once, and knows where it cannot."""

import logging
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lm_eval
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from muscle.update import packed, packing
from muscle.update.backends import LocalLM
from muscle.update.ensemble import Ensemble
from muscle.update.lora import add_adapter
from muscle.update.models import load_base, load_task_model, load_tokenizer
from muscle.update.packed import Answer, Request
from muscle.update.packing import Group, Texts, tree
from muscle.update.prompts import templates_compiled_once
from muscle.update.recipe import Base, EvaluationSettings, LoraSettings, TaskSettings
from muscle.update.tasks import load_task

from . import architectures
from .real_data import some_rows
from .test_scoring import model as task_model

WORDS = 60


def local(model: nn.Module, batch_size: int = 8, **backend_args: Any) -> LocalLM:
    tokenizer = architectures.build_tokenizer(WORDS, eos_token="<eos>", pad_token="<pad>")
    return LocalLM(model, tokenizer, EvaluationSettings(batch_size=batch_size, backend_args=backend_args))


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return architectures.build("llama", WORDS, seed=0)


def words(draw: random.Random, number: int) -> list[int]:
    return [draw.randrange(3, WORDS) for _ in range(number)]


def questions(shots: int, number: int = 6, seed: int = 0) -> list[Request]:
    """Four choices of several lengths each, after common shots and a context; the last question comes twice."""
    draw = random.Random(seed)
    common = words(draw, shots)
    asked: list[Request] = []
    for name in range(number):
        context = common + words(draw, draw.randint(5, 12))
        asked += [((str(name), str(i)), context, words(draw, draw.randint(1, 5))) for i in range(4)]
    return asked + asked[-4:]


def hflm(lm: LocalLM, requests: list[Request]) -> list[Answer]:
    answers: list[Answer] = HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)
    return answers


def ours(lm: LocalLM, requests: list[Request]) -> list[Answer]:
    """Through the packed path, or not at all."""
    answers = lm._packed(requests, disable_tqdm=True)
    assert answers is not None, "fell back"
    return answers


def assert_equal(found: list[Answer], expected: list[Answer], tolerance: float = 1e-4) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([one for one, _ in found], [one for one, _ in expected], rtol=0, atol=tolerance)


@pytest.mark.parametrize("shots", [0, 60])
@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_every_architecture_is_packed(name: str, shots: int) -> None:
    """Also those whose windows of 8 tokens end within a text, and between prefix and branch."""
    lm, requests = local(architectures.build(name, WORDS, seed=0)), questions(shots)
    assert_equal(ours(lm, requests), hflm(lm, requests))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_attention_that_adds_its_mask(name: str, implementation: str) -> None:
    model = architectures.build(name, WORDS, seed=0)
    model.set_attn_implementation(implementation)
    lm, requests = local(model), questions(40)
    assert_equal(ours(lm, requests), hflm(lm, requests))


OTHERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, True),
    "opt": ("OPT", {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "word_embed_proj_dim": 16, "init_std": 0.3}, True),
    "alibi": ("Bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}, False),
    "state space": ("Mamba", {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "num_heads": 2}, False),
    "chunked": ("Llama4Text", {**architectures.GROUPED, "head_dim": 8, "attention_chunk_size": 8,
                               "intermediate_size_mlp": 24, "num_local_experts": 2}, False),
}  # fmt: skip
"""Configuration, its settings, and whether a model of it is read in trees."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_give_the_same_whatever_their_path(name: str) -> None:
    kind, shape, packs = OTHERS[name]
    make = getattr(transformers, f"{kind}Config")
    torch.manual_seed(0)
    config = make(**{**shape, "vocab_size": WORDS, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1})
    lm = local(transformers.AutoModelForCausalLM.from_config(config).eval(), batch_size=1)
    requests = questions(40, number=3)
    assert (lm._packed(requests, disable_tqdm=True) is not None) == packs
    assert_equal(lm._loglikelihood_tokens(requests, disable_tqdm=True), hflm(lm, requests))


class Deaf(LlamaForCausalLM):
    """A model that takes all arguments, and heeds few."""

    unheeded = ""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(self.unheeded, None)
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("unheeded", ["attention_mask", "position_ids", "past_key_values"])
def test_a_model_that_ignores_an_argument_falls_back(unheeded: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, packed.__name__)
    torch.manual_seed(0)
    config: LlamaConfig = architectures.ARCHITECTURES["llama"](WORDS)  # type: ignore[assignment]
    model = Deaf(config).eval()
    model.unheeded = unheeded
    lm, requests = local(model), questions(40)
    assert lm._packed(requests, disable_tqdm=True) is None
    assert "cannot be read in trees" in caplog.text
    assert_equal(lm._loglikelihood_tokens(requests, disable_tqdm=True), hflm(lm, requests))


def test_a_model_is_tried_once_and_again_on_longer_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is evaluated, as in training, where each epoch has an evaluation of its own."""
    model, tried = architectures.build("llama", WORDS, seed=0), []
    plain = LocalLM._agrees_with_hflm
    monkeypatch.setattr(LocalLM, "_agrees_with_hflm", lambda lm, text: tried.append(len(text)) or plain(lm, text))
    for shots in (20, 20, 10, 30):
        ours(local(model), questions(shots))
    assert len(tried) == 2
    assert tried[1] - tried[0] == 10


def test_out_of_memory_is_no_reason_to_fall_back(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    lm = local(llama)
    monkeypatch.setattr(LocalLM, "_score", fail)
    with pytest.raises(torch.OutOfMemoryError):
        lm._loglikelihood_tokens(questions(0), disable_tqdm=True)


token = st.integers(3, 7)  # so few that texts begin alike, and contain each other
texts_of = st.lists(token, min_size=1, max_size=12)
requests_of = st.lists(st.tuples(st.none(), texts_of, st.lists(token, min_size=1, max_size=5)), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(requests=requests_of, prefix=texts_of, kept=st.integers(0, 12), batch_size=st.integers(1, 5))
def test_any_requests(
    llama: PreTrainedModel, requests: list[Request], prefix: list[int], kept: int, batch_size: int
) -> None:
    """Prefixes of each other, one-token choices, the same text cut at several places; prefixes kept for little."""
    shared: list[Request] = [(None, prefix + context, continuation) for _, context, continuation in requests]
    lm = local(llama, batch_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PASS", kept)
        assert_equal(lm._loglikelihood_tokens(shared, disable_tqdm=True), hflm(lm, shared))


@settings(max_examples=200, deadline=None)
@given(
    sets=st.lists(texts_of, min_size=1, max_size=30, unique_by=tuple),
    kept=st.integers(0, 6),
    budget=st.integers(1, 60),
    tokens=st.integers(1, 60),
    data=st.data(),
)
def test_plans_and_trees(sets: list[list[int]], kept: int, budget: int, tokens: int, data: st.DataObject) -> None:
    """Every text is in one row, made of the prefix and a path whose every token sees its own text alone."""
    unread = [data.draw(st.integers(0, len(text) - 1)) for text in sets]
    texts = Texts([np.array(text) for text in sets], unread)
    assert [each.tolist() for each in texts.tokens] == sorted(sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PASS", kept)
        plan = texts.plan(budget)
    seen: list[int] = []
    for group, above in groups_of(plan):
        prefix = texts.tokens[group.text][: group.depth].tolist()
        assert prefix[: len(above)] == above
        assert sorted(row for batch in group.batches(budget, tokens) for row in batch) == sorted(group.rows)
        for batch in group.batches(budget, tokens):
            longest = max(row.size for row in batch)
            assert len(batch) == 1 or len(batch) * (group.depth + longest) <= budget
            assert len(batch) == 1 or len(batch) * longest <= tokens
        for row in group.rows:
            numbers = range(row.start, row.stop)
            seen += numbers
            assert len(numbers) == 1 or group.depth + row.size <= budget
            made = tree(texts, row, group.depth)
            for number, path in zip(numbers, made.paths, strict=True):
                assert group.depth <= unread[texts.order[number]]
                assert prefix + made.tokens[path].tolist() == texts.tokens[number].tolist()
                assert made.depths[path].tolist() == [*range(group.depth, len(texts.tokens[number]))]
                for i, node in enumerate(path):
                    visible = [j for j in range(row.size) if j <= node < made.ends[j]]
                    assert visible == path[: i + 1].tolist()
    assert sorted(seen) == [*range(len(sets))]


def groups_of(plan: Group, above: list[int] | None = None) -> Iterator[tuple[Group, list[int]]]:
    yield plan, above or []
    for group in plan.groups:
        yield from groups_of(group, above)


class Counter:
    """How many tokens a model reads, and how many states its head."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = self.states = self.passes = 0
        model_forward, head_forward = model.forward, model.lm_head.forward

        def read(**inputs: Any) -> Any:
            self.tokens, self.passes = self.tokens + inputs["input_ids"].numel(), self.passes + 1
            return model_forward(**inputs)

        def project(hidden: torch.Tensor) -> torch.Tensor:
            self.states += hidden.shape[:-1].numel()
            return head_forward(hidden)

        monkeypatch.setattr(model, "forward", read)
        monkeypatch.setattr(model.lm_head, "forward", project)


@pytest.fixture
def counted(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Request]], Counter]:
    def count(requests: list[Request], batch_size: int = 8) -> Counter:
        lm = local(llama, batch_size)
        with monkeypatch.context() as patch:
            patch.setitem(packed.READ_IN_TREES, llama, 1000)
            counter = Counter(llama, patch)
            ours(lm, requests)
        return counter

    return count


def test_what_is_read(counted: Callable[..., Counter]) -> None:
    """The context once and the choices' inner tokens; of states, the context's last and the inner ones."""
    draw = random.Random(0)
    context, choices = words(draw, 20), [[i, *words(draw, 4)] for i in range(3, 7)]
    seen = counted([(None, context, choice) for choice in choices])
    assert (seen.tokens, seen.states, seen.passes) == (20 + 4 * 4, 1 + 4 * 4, 1)
    one_token = counted([(None, context, [i]) for i in range(3, 7)] + [(None, context[:-1], [9])])
    assert (one_token.tokens, one_token.states) == (20, 2)


def test_shots_are_read_once(counted: Callable[..., Counter]) -> None:
    draw = random.Random(0)
    shots = words(draw, 100)
    contexts = [[*shots, i, *words(draw, 9)] for i in range(3, 23)]
    asked: list[Request] = [(None, context, [j, 3]) for context in contexts for j in range(3, 7)]
    seen = counted(asked, 3)
    assert seen.tokens == 100 + 20 * (10 + 4)
    assert seen.states == 20 * (1 + 4)
    assert seen.passes > 3


def test_choices_that_no_row_holds_share_their_context(counted: Callable[..., Counter]) -> None:
    """150 labels: with a batch size of 2 they are spread over many rows, on top of a context that is kept."""
    draw = random.Random(0)
    context = words(draw, 30)
    labels = [[i, j, *words(draw, 2)] for i in range(3, 18) for j in range(3, 13)]
    seen = counted([(None, context, label) for label in labels], 2)
    assert seen.tokens == 29 + 150 * (1 + 3)  # from the context's last token on, where the first of a label is scored
    assert seen.states == 150 * (1 + 3)


def test_prefixes_of_prefixes(llama: PreTrainedModel) -> None:
    """Subjects with shots of their own, after an instruction that they share."""
    draw = random.Random(0)
    instruction, requests = words(draw, 100), list[Request]()
    for subject in (3, 4, 5):
        shots = [*instruction, subject, *words(draw, 50)]
        requests += [(None, [*shots, i, *words(draw, 8)], words(draw, 3)) for i in range(3, 15)]
    lm = local(llama, batch_size=1)
    plan = packed._Questions(requests, lm.max_length).texts.plan(162)
    assert [(outer.depth, [inner.depth for inner in outer.groups]) for outer in plan.groups] == [(100, [151] * 3)]
    assert_equal(ours(lm, requests), hflm(lm, requests))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_batch_sizes(llama: PreTrainedModel, batch_size: int) -> None:
    lm, requests = local(llama, batch_size), questions(60)
    assert_equal(ours(lm, requests), hflm(lm, requests))


def test_texts_that_are_too_long(llama: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    """They lose their first tokens, each as many as it has too many."""
    lm, requests = local(llama, max_length=14), questions(4)
    longer = sum(len(context) + len(continuation) > 15 for _, context, continuation in requests)
    assert 0 < longer < len(requests)
    assert_equal(ours(lm, requests), hflm(lm, requests))
    assert f"{longer} of {len(requests)} texts have more than the model's 14 tokens" in caplog.text


@pytest.mark.parametrize("request_", [(None, [], [3]), (None, [3], [4] * 15)])
def test_what_lm_eval_refuses(llama: PreTrainedModel, request_: Request) -> None:
    lm = local(llama, max_length=14)
    with pytest.raises(AssertionError):
        lm._loglikelihood_tokens([request_, (None, [3], [4])], disable_tqdm=True)


@pytest.mark.parametrize("arguments", [{"softmax_dtype": "float64"}, {"mixed_precision_dtype": "bfloat16"}])
def test_precisions(llama: PreTrainedModel, arguments: dict[str, str]) -> None:
    lm, requests = local(llama, **arguments), questions(60)
    found, expected = ours(lm, requests), hflm(lm, requests)
    tolerance = 0.3 if "mixed_precision_dtype" in arguments else 1e-4
    np.testing.assert_allclose(*([one for one, _ in answers] for answers in (found, expected)), rtol=0, atol=tolerance)


def test_bfloat16() -> None:
    lm, requests = local(architectures.build("llama", WORDS, seed=0).bfloat16()), questions(60)
    found, expected = ours(lm, requests), hflm(lm, requests)
    np.testing.assert_allclose(*([one for one, _ in answers] for answers in (found, expected)), rtol=0, atol=0.3)


def test_an_adapter_with_dora() -> None:
    """Its own magnitudes, and a rank-2 update that says something."""
    model = add_adapter(architectures.build("llama", WORDS, seed=0), LoraSettings(rank=2, alpha=4, dora=True), 0)
    requests = questions(40)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    lm = local(model)
    found = ours(lm, requests)
    assert_equal(found, hflm(lm, requests))
    with model.disable_adapter():
        assert max(abs(a - b) for (a, _), (b, _) in zip(found, hflm(lm, requests), strict=True)) > 0.1


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantized_bases(quantization: Literal["4bit", "8bit"], tmp_path: Path) -> None:
    small(WORDS, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)  # whole blocks of quantized weights
    lm, requests = local(load_base(Base(base=str(tmp_path), quantization=quantization, dtype="float32"))), questions(40)
    assert_equal(ours(lm, requests), hflm(lm, requests), tolerance=1e-3)


def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def test_through_lm_evals_interface(llama: PreTrainedModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts, one without a context; answers go to lm-eval's cache, and a bar tells how far it is."""
    lm, kept = local(llama), []
    lm.cache_hook.add_partial = lambda *args: kept.append(args)
    pairs = [("w3 w4 w5", " w6 w7"), ("w3 w4 w5", " w6"), ("", "w4 w5"), ("", "w4"), ("w3 w4 w5", " w6 w7")]
    found = lm.loglikelihood(instances("loglikelihood", pairs))
    assert kept == [("loglikelihood", pair, answer) for pair, answer in zip(pairs, found, strict=True)]
    assert "Running loglikelihood requests: 100%" in capsys.readouterr().err
    encoded = [
        (pair, *(lm._encode_pair(*pair) if pair[0] else ([lm.prefix_token_id], lm.tok_encode(pair[1]))))
        for pair in pairs
    ]
    assert_equal(found, hflm(lm, encoded))


def test_rolling(llama: PreTrainedModel) -> None:
    """Windows of one long text, and texts that begin alike."""
    lm = local(llama, max_length=10)
    draw = random.Random(0)
    texts = [(" ".join(f"w{word}" for word in words(draw, 35)),), ("w3 w4 w5 w6 w7",), ("w3 w4 w5 w6 w8 w9",)]
    found = lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    plain = HFLM(pretrained=llama, tokenizer=lm.tokenizer, backend="causal", max_length=10, softmax_dtype="float32")
    expected = plain.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-4)


def bpe(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Trained on the texts, with merges within words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<eos>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def small(vocabulary: int, **shape: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, **shape}
    config = LlamaConfig(**sizes, vocab_size=vocabulary, eos_token_id=1, pad_token_id=0, initializer_range=0.1)
    return LlamaForCausalLM(config).eval()


def test_tokens_that_reach_over_the_boundary() -> None:
    """A choice that goes on within the context's last word: contexts differ in tokens from choice to choice."""
    tokenizer = bpe(["unbelievable unbearable believer bear bearing bell"] * 9, 300)
    lm = LocalLM(small(len(tokenizer)), tokenizer, EvaluationSettings())
    endings = ("believable", "bearable", "b", "bell", " bear")
    pairs = [("It was un", f"{ending} bearing bell bear believer") for ending in endings]
    pairs += [("It was un ", "bearing"), ("It was ", "unbearable bell")]
    encoded: list[Request] = [(pair, *lm._encode_pair(*pair)) for pair in pairs]
    wholes = [tokenizer("It was un" + choice)["input_ids"] for _, choice in pairs[:2]]
    assert any(whole[: len(encoded[0][1])] != encoded[0][1] for whole in wholes)  # or nothing is tried
    assert_equal(ours(lm, encoded), hflm(lm, encoded))


def test_the_ensemble_is_packed(world: Path) -> None:
    """Mean logits of two models, each with a kept prefix of its own."""
    settings = EvaluationSettings(batch_size=4)
    both = Ensemble(task_model(world, "old"), task_model(world, "new"), settings)
    draw, size = random.Random(0), len(both.tokenizer)
    shots = [draw.randrange(3, size) for _ in range(60)]
    requests: list[Request] = [
        (None, [*shots, q, draw.randrange(3, size)], [c, draw.randrange(3, size)])
        for q in range(3, 9)
        for c in range(3, 7)
    ]
    assert_equal(ours(both, requests), hflm(both, requests))
    alone = LocalLM(load_task_model(task_model(world, "new")), load_tokenizer(task_model(world, "new").base), settings)
    assert max(abs(a - b) for (a, _), (b, _) in zip(ours(alone, requests), ours(both, requests), strict=True)) > 0.1


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedTokenizerFast]:
    """The real tasks' data, some hundred rows of each split, and a tokenizer of their words."""
    folder = some_rows(data, tmp_path_factory.mktemp("real"), 500)
    tasks = [load_task(name, TaskSettings(), folder) for name in ("hellaswag", "piqa")]
    return folder, bpe([each.context + each.answer for task in tasks for each in task.examples("training")[:100]], 600)


@pytest.mark.parametrize(
    ("name", "limit", "shots"),
    [
        ("hellaswag", 3, 2),
        ("piqa", 8, 0),
        pytest.param("hellaswag", 30, 3, marks=pytest.mark.slow),
        pytest.param("hellaswag", 300, 0, marks=pytest.mark.slow),
        pytest.param("piqa", 400, 0, marks=pytest.mark.slow),
        pytest.param("banking77", 20, 0, marks=pytest.mark.slow),
    ],
)
def test_real_questions_through_simple_evaluate(
    real: tuple[Path, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch, name: str, limit: int, shots: int
) -> None:
    """Accuracy, predictions and greedy flags are HFLM's, and so is each log-likelihood within 1e-3 nats."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # seconds of looking at the machine
    folder, tokenizer = real
    task = load_task(name, TaskSettings(num_fewshot=shots), folder)
    model = small(len(tokenizer), max_position_embeddings=2048)
    settings = EvaluationSettings(batch_size=8)
    lms = {
        "ours": LocalLM(model, tokenizer, settings),
        "hflm": HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=8, softmax_dtype="float32"),
    }
    definition, manager = task.for_evaluation("test"), TaskManager(include_defaults=False)
    with templates_compiled_once():
        results = {
            called: lm_eval.simple_evaluate(
                lm, tasks=[definition], limit=limit, bootstrap_iters=0, log_samples=True, task_manager=manager
            )
            for called, lm in lms.items()
        }
    mine, theirs = (next(iter(results[called]["samples"].values())) for called in ("ours", "hflm"))
    assert len(mine) == limit
    for one, other in zip(mine, theirs, strict=True):
        a, b = (np.array([float(score) for score, _ in row["filtered_resps"]]) for row in (one, other))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)
        assert a.argmax() == b.argmax()
        assert [flag for _, flag in one["filtered_resps"]] == [flag for _, flag in other["filtered_resps"]]
        assert [one[metric] for metric in one["metrics"]] == [other[metric] for metric in one["metrics"]]
