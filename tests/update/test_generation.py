"""Generation that refills its batch answers as HFLM does, in fewer steps; what it cannot do, HFLM does."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from scipy.stats import chisquare
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.generation.utils import DeferredStopCheck

from muscle.errors import MuscleError
from muscle.update.backends import LocalLM
from muscle.update.ensemble import Ensemble
from muscle.update.generation import can_refill
from muscle.update.recipe import Base, EvaluationSettings, TaskModel
from tests.update.architectures import ARCHITECTURES, build, build_tokenizer

WORDS = 12
TOKENIZER = build_tokenizer(WORDS, eos_token="<eos>", pad_token="<pad>")
GREEDY = {"until": [], "do_sample": False, "max_gen_toks": 12}


def lm(model: PreTrainedModel, batch_size: int = 4, **arguments: Any) -> LocalLM:
    return LocalLM(model, TOKENIZER, EvaluationSettings(batch_size=batch_size, backend_args=arguments))


def prompts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(3, WORDS)}" for _ in range(draw.randint(1, longest))) for _ in range(count)]


def asked(texts: Sequence[str], **kwargs: Any) -> list[Instance]:
    return [Instance("generate_until", {}, (text, {**GREEDY, **kwargs}), i) for i, text in enumerate(texts)]


def by_hflm(each: LocalLM, requests: list[Instance]) -> list[str]:
    answers: list[str] = HFLM.generate_until(each, requests, disable_tqdm=True)
    return answers


def alone(each: LocalLM, requests: list[Instance]) -> list[str]:
    """HFLM's answer to each request by itself."""
    return [by_hflm(each, [request])[0] for request in requests]


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Tokens that the model read in each of its calls."""
    calls: list[int] = []

    def note(_: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        calls.append(inputs["input_ids"].numel())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    yield calls
    hook.remove()


def end_after(model: nn.Module, steps: dict[int, int]) -> None:
    """Answer each token of `steps` with the token that it gives."""

    def say(_: nn.Module, __: Any, inputs: dict[str, Any], output: Any) -> None:
        for row, token in enumerate(inputs["input_ids"][:, -1].tolist()):
            if token in steps:
                output.logits[row, -1, steps[token]] = 1e4

    model.register_forward_hook(say, with_kwargs=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_hflm_s(architecture: str) -> None:
    """Prompts of 1 to 40 tokens, windows that slide; ends by end-of-text, a stop over two tokens, or length."""
    model = build(architecture, WORDS, seed=1)
    requests = asked(prompts(11), until=["w5 w6", "w7"], max_gen_toks=20)
    assert can_refill(lm(model), requests)
    answers = lm(model).generate_until(requests, disable_tqdm=True)
    assert answers == alone(lm(model), requests)
    assert answers == by_hflm(lm(model), requests)
    assert len(set(answers)) > 3


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    until=st.lists(
        st.sampled_from(["w3", "w4 w4", "w5 w", "6 w7", "8", "w9 w9 w9", "1", "w10 w3", "<eos>"]), max_size=3
    ),
    limit=st.integers(1, 16),
    batch_size=st.integers(1, 6),
    punished=st.sampled_from([1.0, 1.3]),
)
def test_any_stop_strings(seed: int, until: list[str], limit: int, batch_size: int, punished: float) -> None:
    """Each answer is what HFLM gives the request alone, stop strings within and across tokens or overlapping."""
    model = build("mistral" if seed % 2 else "llama", WORDS, seed)
    requests = asked(prompts(7, seed), until=until, max_gen_toks=limit, repetition_penalty=punished)
    assert can_refill(lm(model), requests)
    assert lm(model, batch_size).generate_until(requests, disable_tqdm=True) == alone(lm(model), requests)


def test_no_row_waits_for_another() -> None:
    """Answers of 1 to 8 tokens: no token is read for a row that has ended, and its place is taken."""
    model = build("llama", WORDS, seed=0)
    end_after(model, {token: token - 1 for token in range(4, WORDS)} | {3: 1})  # w8, w7, ..., w3, <eos>
    lengths = [1 + number % 8 for number in range(40)]
    texts = [f"{start.split()[0]} w4 w{2 + length}" for start, length in zip(prompts(40), lengths, strict=True)]
    expected = [" ".join(f"w{number}" for number in range(length + 1, 2, -1)) for length in lengths]
    requests, each = asked(texts, max_gen_toks=20), lm(model, batch_size=8)
    with counted(model) as calls:
        assert each.generate_until(requests, disable_tqdm=True) == expected
    with counted(model) as theirs:
        assert by_hflm(each, requests) == expected
    needed = sum(3 + length - 1 for length in lengths)  # each prompt, and its answer but for the last token
    assert sum(calls) == needed + 1  # and the token that shows what the cache is
    assert sum(theirs) > 1.2 * needed
    assert sum(count == 8 for count in calls) > 10  # the batch is full most of the time


def test_rows_with_different_stop_strings_end() -> None:
    """HFLM goes on until one and the same stop string has occurred in all rows."""
    model = build("llama", WORDS, seed=0)
    end_after(model, {5: 6, 6: 5, 7: 8, 8: 7})
    requests = asked(["w5", "w7"], until=["w6 w5", "w8 w7"], max_gen_toks=30)
    with counted(model) as calls:
        assert lm(model).generate_until(requests, disable_tqdm=True) == ["", ""]
    with counted(model) as theirs:
        assert by_hflm(lm(model), requests) == ["", ""]
    assert sum(calls) < 10 < 50 < sum(theirs)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_where_generate_asks_one_step_late(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does on mps: a step more is made before it ends, and undone."""
    each = lm(build(architecture, WORDS, seed=1))
    requests = asked(prompts(11), until=["w5 w6", "w7"], max_gen_toks=20)
    expected = alone(each, requests)
    asked_late = []
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: asked_late.append(1))
    monkeypatch.setattr(torch, "Event", lambda **_: event)
    monkeypatch.setattr(DeferredStopCheck, "is_supported", lambda *_, **__: True)
    assert each.generate_until(requests, disable_tqdm=True) == expected
    assert asked_late


def test_cached_tokens_stay_in_their_place() -> None:
    """The cache has room for tokens to come, and for new rows in the place of others: it seldom has to move."""
    model = build("llama", WORDS, seed=0)
    end_after(model, {5: 6, 6: 5})
    held: list[torch.Tensor] = []  # all of them, for no place to be used twice

    def note(_: nn.Module, __: Any, inputs: dict[str, Any], output: Any) -> None:
        if inputs["input_ids"].shape[1] == 1:
            held.append(output.past_key_values.layers[0].keys)

    model.register_forward_hook(note, with_kwargs=True)
    short = [f"w{3 + number % 9} w{3 + number * 5 % 7}" for number in range(80)]
    requests = asked(short, until=["w7", "w4", "w9"], max_gen_toks=20) + asked(["w5", "w6"], max_gen_toks=150)
    lm(model).generate_until(requests, disable_tqdm=True)
    places = [keys.untyped_storage().data_ptr() for keys in held]
    assert len(places) > 300
    assert sum(here != before for before, here in pairwise(places)) < 11


def test_order_groups_and_the_cache_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of several settings, answered in the order in which they came, each noted for lm-eval's cache."""
    each = lm(build("qwen2", WORDS, seed=2), batch_size=3)
    requests = [
        Instance("generate_until", {}, (text, kwargs), number)
        for number, text in enumerate(prompts(12))
        for kwargs in [({"until": "w4", "max_gen_toks": 3}, {"max_new_tokens": 9, "temperature": 0.0})[number % 2]]
    ]
    noted: dict[str, str] = {}
    monkeypatch.setattr(
        each, "cache_hook", type("Hook", (), {"add_partial": lambda _, __, args, text: noted.update({args[0]: text})})()
    )
    answers = each.generate_until(requests, disable_tqdm=True)
    assert noted == {request.args[0]: answer for request, answer in zip(requests, answers, strict=True)}
    assert answers == alone(each, requests)
    assert each.generate_until([], disable_tqdm=True) == []


def test_long_prompts_are_cut_on_the_left() -> None:
    each = lm(build("llama", WORDS, seed=3), max_length=20)
    requests = asked(prompts(9), max_gen_toks=5)
    answers = each.generate_until(requests, disable_tqdm=True)
    assert answers == alone(each, requests)
    with pytest.raises(MuscleError, match="max_gen_toks 20 leaves no room for a prompt in the model's 20 tokens"):
        each.generate_until(asked(["w3"], max_gen_toks=20), disable_tqdm=True)


@pytest.mark.parametrize("after", ["w5", 5])
def test_thinking_is_left_out(after: str | int) -> None:
    """Greedy loops of w3 w4 w5, whose last w5 ends the thinking."""
    model = build("llama", WORDS, seed=0)
    end_after(model, {3: 4, 4: 5, 5: 3})
    each = lm(model, think_end_token=after)
    requests = asked(["w3", "w4", "w5"], max_gen_toks=7)
    answers = each.generate_until(requests, disable_tqdm=True)
    assert answers == alone(each, requests) == ["w3 w4", "", "w3"]


def test_samples_are_of_the_model_s_distribution_and_reproducible() -> None:
    model = build("llama", WORDS, seed=4)
    end_after(model, {5: 6})
    each = lm(model, batch_size=8)
    requests = asked(["w3 w4 w5"] * 600, do_sample=True, temperature=0.8, top_k=5, max_gen_toks=2)
    assert can_refill(each, requests)
    torch.manual_seed(0)
    answers = each.generate_until(requests, disable_tqdm=True)
    torch.manual_seed(0)
    assert each.generate_until(requests, disable_tqdm=True) == answers
    torch.manual_seed(1)
    assert each.generate_until(requests, disable_tqdm=True) != answers
    with torch.no_grad():
        best = (model(input_ids=torch.tensor([TOKENIZER.encode("w3 w4 w5 w6")])).logits[0, -1] / 0.8).topk(5)
    expected: dict[str, float] = defaultdict(float)
    for token, share in zip(best.indices.tolist(), best.values.double().softmax(0).tolist(), strict=True):
        expected[TOKENIZER.decode([6, token], skip_special_tokens=True)] += 600 * share
    counts = Counter(answers)
    assert counts.keys() == expected.keys()
    assert chisquare([counts[answer] for answer in expected], list(expected.values())).pvalue > 1e-3


def test_under_autocast_like_hflm() -> None:
    model = build("llama", WORDS, seed=5)
    each = lm(model, mixed_precision_dtype="bfloat16")
    seen: list[torch.dtype] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    each.generate_until(asked(["w3 w4"]), disable_tqdm=True)
    assert set(seen) == {torch.bfloat16}
    assert not any(parameter.grad_fn for parameter in model.parameters())


@pytest.mark.parametrize("kwargs", [{"num_beams": 2}, {"min_new_tokens": 3}, {"no_repeat_ngram_size": 2}])
def test_other_ways_to_generate_are_left_to_hflm(kwargs: dict[str, Any]) -> None:
    each = lm(build("llama", WORDS, seed=6))
    requests = asked(prompts(5), **kwargs)
    assert not can_refill(each, requests)
    assert each.generate_until(requests, disable_tqdm=True) == by_hflm(each, requests)


@pytest.mark.parametrize(
    "said", [{"max_new_tokens": 3}, {"cache_implementation": "static"}, {"forced_eos_token_id": 1}]
)
def test_a_model_s_own_settings_count(said: dict[str, Any]) -> None:
    model = build("llama", WORDS, seed=6)
    assert can_refill(lm(model), asked(["w3"]))
    model.generation_config.update(cache_implementation="hybrid")  # as published with Gemma
    assert can_refill(lm(model), asked(["w3"]))
    model.generation_config.update(**said)
    assert not can_refill(lm(model), asked(["w3"]))


def test_a_state_space_model_is_left_to_hflm() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, pad_token_id=0, eos_token_id=1)
    each = lm(MambaForCausalLM(config).eval())
    requests = asked(prompts(3))
    assert not can_refill(each, requests)
    assert each.generate_until(requests, disable_tqdm=True) == by_hflm(each, requests)


def test_the_ensemble_is_left_to_hflm(world: Path) -> None:
    """Its other model keeps a cache of one batch."""
    old, new = (TaskModel(base=Base(base=str(world / name))) for name in ("v1", "v2"))
    both = Ensemble(old, new, EvaluationSettings(batch_size=2))
    requests = asked(["how many ?", "rain at dawn . ned is happy", "question : lea has 3 nuts ."])
    assert not can_refill(both, requests)
    assert both.generate_until(requests, disable_tqdm=True) == by_hflm(both, requests)
