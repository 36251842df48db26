"""The cache says what the live teacher says."""

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from muscle.errors import MuscleError
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.tasks import PaddingCollator, TokenizedExamples, examples, load_task
from muscle.update.teachers import CachedTeacher


@pytest.fixture
def data(world: Path) -> TokenizedExamples:
    rows = [row for name in ("scenes", "sums") for row in examples(load_task(name, world / "tasks"), "training")]
    return TokenizedExamples(rows, load_tokenizer(world / "v1"))  # two lengths, so that rows are padded


def test_cached_logits_are_the_live_ones(world: Path, data: TokenizedExamples) -> None:
    model, collator = load_task_model(world / "v1", world / "old"), PaddingCollator(0)
    teacher = CachedTeacher(model, data, collator, batch_size=7)
    order = [47, 3, 25, 0]
    batch = collator([data[i] for i in order])
    with torch.no_grad():
        live = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    cached = teacher.logits(batch["index"])
    read = batch["attention_mask"].bool()
    assert not cached.requires_grad
    torch.testing.assert_close(cached[read], live[read], rtol=1e-5, atol=1e-5)


def test_logits_changed_after_the_head_are_refused(data: TokenizedExamples) -> None:
    config = Gemma2Config(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.1,
        initializer_range=0.5,
    )
    with pytest.raises(MuscleError, match="Gemma2ForCausalLM changes its logits after the output head"):
        CachedTeacher(Gemma2ForCausalLM(config), data, PaddingCollator(0))
