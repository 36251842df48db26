"""A tiny student, two teachers and texts of unequal length, the same in every process of every test of training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from muscle.update.comparison import Aims
from muscle.update.heads import Head, read_states
from muscle.update.objectives import Compatibility, Objective, task_objective
from muscle.update.recipe import TrainingSettings
from muscle.update.tokenized import IGNORED, PaddingCollator
from muscle.update.trainer import TrainingResult, train
from muscle.update.weights import WEIGHTS

torch.set_num_threads(1)  # tiny tensors, and tests run side by side

VOCABULARY = 23
COLLATOR = PaddingCollator(0)


class Texts(Dataset[dict[str, Tensor]]):
    """Counting upwards from a random number, by a stride of one or two: something to learn."""

    def __init__(self, count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.ids: list[Tensor] = []
        for _ in range(count):
            length, start, stride = (
                int(torch.randint(*bounds, (), generator=draw)) for bounds in ((3, 11), (1, 9), (1, 3))
            )
            self.ids.append((start + stride * torch.arange(length)) % VOCABULARY)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        labels = self.ids[index].clone()
        labels[0] = IGNORED
        return {"input_ids": self.ids[index], "labels": labels, "index": torch.tensor(index)}


TRAINING, VALIDATION = Texts(21, seed=1), Texts(7, seed=2)  # fill no batch of an even size


def student(seed: int = 0, dropout: float = 0.0) -> PeftModel:
    """A Llama of 2 layers with a LoRA adapter that is not the identity."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=0.3,
    )
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model: PeftModel = get_peft_model(LlamaForCausalLM(config), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


@dataclass(frozen=True)
class Fixed:
    """A teacher that runs a model beside the student."""

    model: PeftModel

    @torch.no_grad()
    def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
        """Its logits, as states whose head adds nothing: they are whole also where its weights are in shards."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = read_states(self.model, lambda hidden, head: head(hidden), **inputs)
        return logits[:, :-1][counted], Head(torch.nn.Identity())


def compatibility(ce_share: float = 0.25) -> Compatibility:
    """The paper's objective between two teachers."""
    old, new = (Fixed(student(seed).eval()) for seed in (11, 12))
    return Compatibility(old, new, Aims(WEIGHTS["student_wrong"], 2.0, False, ce_share))


def run(
    work: Path,
    model: PeftModel | None = None,
    objective: Objective = task_objective,
    report: Any = lambda *_: None,
    flips: Any = None,
    validated: bool = True,
    **settings: Any,
) -> tuple[PeftModel, TrainingResult]:
    """Train a student with small settings, of which the named ones differ."""
    model = student() if model is None else model
    defaults = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 4, "accumulation": 1, "warmup_steps": 2, "seed": 5}
    chosen = TrainingSettings(**(defaults | settings))
    validation = VALIDATION if validated else None
    return model, train(model, objective, chosen, TRAINING, validation, COLLATOR, work, report, flips)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The adapter, by the names of its tensors."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}
