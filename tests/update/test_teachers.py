"""Both teachers say what their task model says, on right-padded batches, at every architecture."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from muscle.errors import MuscleError
from muscle.update.lora import add_adapter
from muscle.update.models import Head
from muscle.update.recipe import LoraSettings
from muscle.update.tasks import Example, PaddingCollator, TokenizedExamples
from muscle.update.teachers import CachedTeacher, LiveTeacher, Teacher
from tests.update.architectures import ARCHITECTURES, build, build_tokenizer

LENGTHS = [3, 17, 5, 12, 1, 9, 17, 2]
COLLATOR = PaddingCollator(0)


@pytest.fixture(scope="module")
def data() -> TokenizedExamples:
    draw = torch.Generator().manual_seed(0)
    texts = [[f"w{i}" for i in torch.randint(3, 40, (length,), generator=draw).tolist()] for length in LENGTHS]
    rows = [Example(" ".join(words[:-1]), " ".join(["", words[-1]])) for words in texts]
    return TokenizedExamples(rows, build_tokenizer(40, eos_token="<eos>"))


def task_model(name: str, vocab_size: int = 40) -> Any:
    model = add_adapter(build(name, vocab_size, seed=0), LoraSettings(rank=2, alpha=4), seed=0)
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            nn.init.normal_(weight, std=0.1)
    return model


@torch.no_grad()
def alone(model: nn.Module, data: TokenizedExamples, index: int) -> Tensor:
    """Logits (T, V) of one text that nothing pads."""
    logits: Tensor = model(input_ids=data[index]["input_ids"][None]).logits[0]
    return logits


def assert_says_what_the_model_says(
    teacher: Teacher, model: nn.Module, data: TokenizedExamples, **close: float
) -> None:
    for index in ([6, 0, 3], [4, 4], [7]):
        batch = COLLATOR([data[i] for i in index])
        logits = teacher.logits(batch)
        assert logits.shape[:2] == batch["input_ids"].shape
        assert not logits.requires_grad
        for row, i in zip(logits, index, strict=True):
            expected = alone(model, data, i)
            torch.testing.assert_close(row[: len(expected)], expected, **close)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_teachers_are_their_model(name: str, data: TokenizedExamples) -> None:
    model = task_model(name).train()
    live, cached = LiveTeacher(model), CachedTeacher(model, data, COLLATOR, batch_size=3)
    for teacher in (live, cached):
        assert_says_what_the_model_says(teacher, model, data, rtol=1e-4, atol=1e-4)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_cache_outlives_its_model(data: TokenizedExamples) -> None:
    model = task_model("phi")
    cached, batch = CachedTeacher(model, data, COLLATOR), COLLATOR([data[i] for i in (1, 2)])
    before = cached.logits(batch)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(cached.logits(batch), before)


def test_a_model_fine_tuned_whole_is_a_teacher(data: TokenizedExamples) -> None:
    model = build("llama_tied", 40, seed=0)
    for teacher in (LiveTeacher(model), CachedTeacher(model, data, COLLATOR)):
        assert_says_what_the_model_says(teacher, model, data, rtol=1e-4, atol=1e-4)


def test_teachers_keep_the_rows_of_their_own_vocabulary(data: TokenizedExamples) -> None:
    batch = COLLATOR([data[0]])
    for rows in (40, 48):
        model = task_model("qwen2", rows)
        for teacher in (LiveTeacher(model), CachedTeacher(model, data, COLLATOR)):
            assert teacher.logits(batch).shape[-1] == rows


def test_wider_padding_than_the_texts_need(data: TokenizedExamples) -> None:
    model = task_model("llama")
    cached = CachedTeacher(model, data, COLLATOR)
    batch = COLLATOR([data[0]])
    wide = {**batch, "input_ids": nn.functional.pad(batch["input_ids"], (0, 4))}
    assert cached.logits(wide).shape[1] == batch["input_ids"].shape[1] + 4
    torch.testing.assert_close(cached.logits(wide)[:, :4], cached.logits(batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_teacher_keeps_its_own_precision(dtype: torch.dtype, data: TokenizedExamples) -> None:
    """Whatever mixed precision the student trains in around it."""
    model = build("gemma2", 40, seed=0).to(dtype)
    batch = COLLATOR([data[i] for i in (1, 3)])
    cached = CachedTeacher(model, data, COLLATOR)
    assert {(hidden.dtype, hidden.device.type) for hidden in cached._hidden} == {(dtype, "cpu")}
    for teacher in (LiveTeacher(model), cached):
        plain = teacher.logits(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = teacher.logits(batch)
        assert plain.dtype == dtype
        assert torch.equal(mixed, plain)


def test_a_cache_that_does_not_fit_is_refused(data: TokenizedExamples, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(map(len, data.ids)) * 16 * 4  # hidden size, bytes of a float32
    model = build("llama", 40, seed=0)
    assert model.config.hidden_size == 16
    for free in (needed, needed - 1):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        if free < needed:
            with pytest.raises(MuscleError, match=r"of 8 texts takes .* more than is free: set `teachers: live`"):
                CachedTeacher(model, data, COLLATOR)
        else:
            CachedTeacher(model, data, COLLATOR)


class Shifted(nn.Module):
    """A model that changes its logits in a way that nobody knows."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, **inputs: Tensor) -> Any:
        outputs = self.model(**inputs)
        outputs.logits = outputs.logits + 0.01 * torch.arange(outputs.logits.shape[-1])
        return outputs


def test_an_unknown_head_is_refused_by_the_cache_and_taught_live(data: TokenizedExamples) -> None:
    model = Shifted(build("llama", 40, seed=0))
    with pytest.raises(MuscleError, match=r"Shifted makes logits .* does not know: set `teachers: live` under `alignm"):
        CachedTeacher(model, data, COLLATOR)
    assert_says_what_the_model_says(LiveTeacher(model), model, data, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_teachers_follow_the_batch_to_its_device(data: TokenizedExamples) -> None:
    model = task_model("gemma2")
    expected = alone(model, data, 1)
    batch = COLLATOR([data[1]])
    for teacher in (LiveTeacher(model), CachedTeacher(model, data, COLLATOR)):
        for where in ("cpu", torch.accelerator.current_accelerator()):
            moved: Mapping[str, Tensor] = {name: tensor.to(where) for name, tensor in batch.items()}
            logits = teacher.logits(moved)
            assert logits.device.type == torch.device(where).type
            torch.testing.assert_close(logits[0].cpu(), expected, rtol=1e-3, atol=1e-3)


def test_the_head_of_a_teacher_is_frozen(data: TokenizedExamples) -> None:
    cached = CachedTeacher(task_model("llama"), data, COLLATOR)
    assert isinstance(cached._head, Head)
    assert not any(weight.requires_grad for weight in cached._head.parameters())
