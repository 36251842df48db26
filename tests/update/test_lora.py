"""Adapters on every architecture, through PEFT's files and back; its options; targets that are not there."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from muscle.errors import MuscleError
from muscle.update.lora import add_adapter
from muscle.update.recipe import LoraSettings
from tests.update.architectures import ARCHITECTURES, build

SMALL = LoraSettings(rank=2, alpha=4)
IDS = torch.randint(3, 40, (6, 12), generator=torch.Generator().manual_seed(0))
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def adapted(model: PeftModel) -> set[str]:
    """Last parts of the names of what has an adapter."""
    wrapped = (name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name)
    return {name.removesuffix(".base_layer").rpartition(".")[2] for name in wrapped}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapter_of_every_linear_layer_learns_and_survives_peft_files(name: str, tmp_path: Path) -> None:
    base = build(name, 40, seed=0)
    before = logits(base)
    model = add_adapter(base, SMALL, seed=1)
    torch.testing.assert_close(logits(model), before)  # a fresh adapter is the identity

    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name and weight.dtype == torch.float32 for name, weight in weights.items())
    linear = {n.rpartition(".")[2] for n, module in build(name, 40, 0).named_modules() if isinstance(module, nn.Linear)}
    assert adapted(model) >= linear - {"lm_head"}
    assert "lm_head" not in adapted(model)

    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    for _ in range(2):  # in the first step, lora_B is zero and so is the gradient of lora_A
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            model.train()(input_ids=IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
        ).backward()
        optimizer.step()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights.values())

    model.save_pretrained(tmp_path)
    fresh = build(name, 40, seed=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
        loaded = PeftModel.from_pretrained(fresh, tmp_path)
    trained = logits(model)
    assert (trained - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded), trained)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)  # the base is untouched


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_fused_experts_are_linear_layers_too(name: str) -> None:
    model = add_adapter(build(name, 40, 0), SMALL, 0)
    assert adapted(model) == {*ATTENTION, "gate", "experts"}


def test_fused_experts_alone() -> None:
    settings = LoraSettings(rank=2, targets=(), target_parameters=("experts.gate_up_proj", "experts.down_proj"))
    model = add_adapter(build("qwen3_moe", 40, 0), settings, 0)
    assert adapted(model) == {"experts"}
    shapes = {tuple(weight.shape) for name, weight in model.named_parameters() if "layers.0" in name and "lora" in name}
    assert shapes == {(8, 16), (16, 8), (8, 8)}  # four experts of rank two: gate_up (16 -> 16), down (8 -> 16)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), r".*\.(q|v)_proj"])
def test_targets_by_name_or_expression(targets: str | tuple[str, ...]) -> None:
    assert adapted(add_adapter(build("llama", 40, 0), LoraSettings(targets=targets), 0)) == {"q_proj", "v_proj"}


def test_options_reach_the_adapter_and_its_configuration(tmp_path: Path) -> None:
    settings = LoraSettings(rank=4, alpha=6, dropout=0.5, targets=("q_proj",), dora=True, rslora=True)
    model = add_adapter(build("llama", 40, 0), settings, 0)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.5, "use_dora": True, "use_rslora": True}
    assert {key: saved[key] for key in wanted} == wanted
    assert (saved["target_modules"], saved["task_type"]) == (["q_proj"], "CAUSAL_LM")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 3.0  # alpha / sqrt(rank)
    assert layer.lora_A["default"].weight.shape == (4, 16)
    assert layer.lora_magnitude_vector["default"].weight.requires_grad
    assert isinstance(layer.lora_dropout["default"], nn.Dropout)


def test_the_seed_decides_the_initial_weights() -> None:
    first, same, other = (
        torch.cat(
            [w.flatten() for n, w in add_adapter(build("llama", 40, 0), SMALL, seed).named_parameters() if "_A" in n]
        )
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_an_adapter_of_a_base_in_bfloat16_is_float32() -> None:
    model = add_adapter(build("llama", 40, 0).to(torch.bfloat16), SMALL, 0)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llama", {"targets": ("q_porj", "v_proj")}, r"lora\.targets: the base has no 'q_porj': did you mean q_proj\?"),
        ("llama", {"targets": ("zzz",)}, r"the base has no 'zzz': there are down_proj, gate_proj, k_proj, lm_head, o_"),
        (
            "llama",
            {"targets": "q_proj"},
            "whole name matches the regular expression 'q_proj': give a list of names, of d",
        ),
        ("llama", {"targets": "(q"}, r"lora\.targets: '\(q' is no regular expression \(missing \)"),
        ("llama", {"targets": ()}, r"lora\.targets is empty: name modules, or leave it out"),
        (
            "llama",
            {"targets": ("norm",)},
            "PEFT refuses .* LlamaForCausalLM: Target module LlamaRMSNorm.* not supported",
        ),
        (
            "llama",
            {"target_parameters": ("experts.up",)},
            "target_parameters: the base has no 'experts.up': there are none",
        ),
        ("mixtral", {"target_parameters": ("experts.down",)}, "no 'experts.down': did you mean experts.down_proj"),
        (
            "mixtral",
            {"dora": True},
            "PEFT refuses these lora settings for MixtralForCausalLM: .* use_dora=True: change",
        ),
    ],
)
def test_targets_that_cannot_be_had(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(MuscleError, match=message) as raised:
        add_adapter(build(name, 40, 0), LoraSettings(**settings), 0)
    assert raised.value.__cause__ is None
    assert "\\n" not in str(raised.value)
