"""Launched in two processes by test_distributed.py: trains with DDP, shards with FSDP2, writes what came out."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from muscle.update.distributed import SharedLoader, over_processes, process, save_adapter
from muscle.update.objectives import Compatibility
from muscle.update.trainer import TrainingResult, mean_cross_entropy, outcome
from tests.update.training_world import COLLATOR, TRAINING, VALIDATION, compatibility, run, student, weights

RUNS = {
    "even": {"batch_size": 4, "accumulation": 2},
    "one left": {"batch_size": 10},  # of 21 texts: the second process has nothing to do in the last batch, nor in
}  # the validation, and still takes part


class Killed(BaseException):
    """Ends a run in all processes."""


def train_with_ddp(out: Path) -> None:
    """The same runs that the test makes in one process with twice the batch size."""
    for name, sizes in RUNS.items():
        asked: list[int] = []

        def flips(_: torch.nn.Module, asked: list[int] = asked, name: str = name) -> float:
            asked.append(1)
            if name == "one left" and len(asked) == 2:
                raise Killed
            return 7.0 + process()[0] - len(asked)  # the processes disagree: the main one is believed

        def attempt(sizes: dict[str, int] = sizes, name: str = name, flips: Any = flips) -> tuple[Any, TrainingResult]:
            return run(
                out / name / "work",
                objective=compatibility(),
                optimizer="sgd",
                learning_rate=0.5,
                select_by="flips",
                flips=flips,
                **sizes,
            )

        try:
            model, result = attempt()
        except Killed:
            model, result = attempt()  # resumes after the first epoch
        if process()[0] == 0:
            save_file(weights(model), out / name / "adapter.safetensors")
            curves = {"cross_entropy": result.validation_cross_entropy, "flips": result.validation_flips}
            (out / name / "result.json").write_text(json.dumps(curves))


def sharded(model: PeftModel) -> PeftModel:
    """FSDP2: each layer a group, and the rest."""
    mesh = init_device_mesh("cpu", (process()[1],))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # gathered anew for the backward pass, as accelerate can
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    return model


def shard_with_fsdp2(out: Path) -> None:
    """Loss and gradient of one batch of all texts, the validation cross-entropy, and the saved adapter."""
    model, objective = sharded(student()), compatibility()
    teachers = Compatibility(*(type(t)(sharded(t.model)) for t in (objective.old, objective.new)), objective.aims)
    (batch,) = SharedLoader(TRAINING, 20, COLLATOR)  # 20 texts, and one
    total, own_count, sums = outcome(model, teachers, batch)
    device = torch.device("cpu")
    loss, count, *statistics = over_processes([float(total), float(own_count), *map(float, sums.values())], device)
    (total / count * process()[1]).backward()  # FSDP averages over the processes
    gradients = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert isinstance(weight.grad, DTensor)
            gradients[name] = weight.grad.full_tensor()
    validation = mean_cross_entropy(model, SharedLoader(VALIDATION, 10, COLLATOR))  # the second process has no text
    save_adapter(model, out / "sharded adapter")
    if process()[0] == 0:
        save_file(gradients, out / "gradients.safetensors")
        said = dict(zip(sums, (value / count for value in statistics), strict=True))
        (out / "sharded.json").write_text(
            json.dumps({"loss": loss / count, "validation": validation, "statistics": said})
        )


if __name__ == "__main__":
    out = Path(sys.argv[1])
    PartialState()  # as the stages do, which load teachers before there is a trainer
    train_with_ddp(out)
    assert "gloo" in distributed.get_backend_config()
    shard_with_fsdp2(out)
    distributed.destroy_process_group()
