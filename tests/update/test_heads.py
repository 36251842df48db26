"""How final hidden states become logits, and models that are run no further than that."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, Gemma2ForCausalLM

from muscle.errors import MuscleError
from muscle.update import heads
from muscle.update.heads import Head, head_is_known, read_states
from muscle.update.lora import add_adapter
from muscle.update.recipe import LoraSettings
from tests.update.architectures import ARCHITECTURES, build

IDS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))


def states_of(model: nn.Module) -> torch.Tensor:
    """Final hidden states (B, T, H), as `read_states` finds them."""
    with torch.no_grad():
        return read_states(model, lambda hidden, _: hidden, input_ids=IDS, use_cache=False)


def logits_of(model: nn.Module) -> torch.Tensor:
    """What the model itself says."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_head_makes_the_models_own_logits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(name, 40, seed=0).to(dtype)
    hidden, logits = states_of(model), logits_of(model)
    head, own = Head.of(model), Head.within(model)
    head.save(tmp_path / "head.safetensors", hidden)
    inside = read_states(model, lambda hidden, head: head(hidden), input_ids=IDS, use_cache=False)
    assert head_is_known(model)
    assert torch.equal(inside, own(hidden))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # the head is a copy
    assert not own(hidden).any()
    close = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for found in (head, Head.load(tmp_path / "head.safetensors")):
        assert hidden.dtype == found(hidden).dtype == dtype
        assert not any(weight.requires_grad for weight in found.parameters())
        torch.testing.assert_close(found(hidden), logits, rtol=close, atol=close)
        assert torch.equal(found(hidden), inside)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "cohere", "granite"])
def test_head_alone_is_not_enough(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an architecture that scales or caps its logits in a way that is not known would be seen."""
    model = build(name, 40, seed=0)
    assert head_is_known(model)
    monkeypatch.setattr(heads, "_scale_and_softcap", lambda _: (1.0, None))
    assert not head_is_known(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_and_adapter_are_part_of_the_head(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build("phi", 40, seed=0)
    assert model.lm_head.bias.abs().min() > 0
    model.lm_head.bias.data += 4  # beside which little is left of weights in 16 bits
    model = model.to(dtype)
    adapted = add_adapter(model, LoraSettings(rank=2, targets=("lm_head",)), 0)
    nn.init.normal_(adapted.base_model.model.lm_head.lora_B["default"].weight)
    hidden, logits = states_of(adapted.eval()), logits_of(adapted)
    torch.testing.assert_close(Head.of(adapted)(hidden), logits)
    Head.of(adapted).save(tmp_path / "head.safetensors", hidden)
    close = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(Head.load(tmp_path / "head.safetensors")(hidden), logits, rtol=close, atol=close)


def test_a_model_is_as_before_when_its_states_have_been_read() -> None:
    model = build("llama", 40, seed=0)
    before, layer = logits_of(model), model.lm_head

    def fail(*_: object) -> None:
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            read_states(model, fail, input_ids=IDS)
        assert "forward" not in vars(layer)
        assert torch.equal(logits_of(model), before)
    layer.forward = own = lambda hidden: 2 * nn.Linear.forward(layer, hidden)  # as accelerate's hooks do
    torch.testing.assert_close(read_states(model, lambda hidden, head: head(hidden), input_ids=IDS), 2 * before)
    assert layer.forward is own


def test_models_without_a_usable_head_are_refused() -> None:
    shape = BertConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(MuscleError, match="BertModel has no output head: use a causal"):
        states_of(BertModel(shape))

    class Elsewhere(Gemma2ForCausalLM):
        def get_output_embeddings(self) -> nn.Module:
            return self.get_submodule("unused")

    model = Elsewhere(ARCHITECTURES["gemma2"](40))
    model.unused = nn.Linear(16, 40)
    assert not head_is_known(model)
    with pytest.raises(MuscleError, match=r"Elsewhere makes logits .*`teacher_cache: off`"):
        states_of(model)
