"""Task and compatibility adapters, from real task to a PEFT folder that loads."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from muscle.errors import MuscleError
from muscle.update.adapters import train_compatibility_adapter, train_task_adapter
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.recipe import AlignmentSettings, LoraSettings, TrainingSettings
from muscle.update.tasks import PaddingCollator, TokenizedExamples, examples, load_task

SETTINGS = TrainingSettings(epochs=3, learning_rate=3e-2, batch_size=8)


def silent(*_: object) -> None: ...


def log_probabilities(model: torch.nn.Module, world: Path) -> torch.Tensor:
    """Of every next token of the training texts (N, V)."""
    data = TokenizedExamples(examples(load_task("scenes", world / "tasks"), "training"), load_tokenizer(world / "v1"))
    batch = PaddingCollator(0)([data[i] for i in range(len(data))])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1].log_softmax(-1)[batch["labels"][:, 1:] != -100]


def divergence_from(teacher: str, base: str, student: torch.nn.Module, world: Path) -> float:
    """Nats per token from a task model of the world to the student."""
    ours, theirs = (
        log_probabilities(student, world),
        log_probabilities(load_task_model(world / base, world / teacher), world),
    )
    return kl_div(ours, theirs, reduction="batchmean", log_target=True).item()


@pytest.fixture(scope="module")
def align(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[AlignmentSettings], Path]:
    task = load_task("scenes", world / "tasks")

    def run(alignment: AlignmentSettings) -> Path:
        out = tmp_path_factory.mktemp("adapter")
        pairs = (world / "v1", world / "old", world / "v2", world / "new")
        train_compatibility_adapter(*pairs, task, alignment, SETTINGS, out, silent)
        return out

    return run


def test_task_adapter_is_an_ordinary_peft_adapter(world: Path, tmp_path: Path) -> None:
    task = load_task("sums", world / "tasks")
    train_task_adapter(world / "v1", task, LoraSettings(4, 8), SETTINGS, tmp_path, silent)
    assert {"adapter_config.json", "adapter_model.safetensors", "training.json"} <= {p.name for p in tmp_path.iterdir()}
    assert not (tmp_path / "checkpoints").exists()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    linear = {*(f"{x}_proj" for x in "qkvo"), "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == linear
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["training"]["epochs"] == 3
    assert len(record["result"]["validation_cross_entropy"]) == 3
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "v1"), str(tmp_path)).eval()
    assert not torch.allclose(
        log_probabilities(loaded, world), log_probabilities(AutoModelForCausalLM.from_pretrained(world / "v1"), world)
    )


def test_distilling_the_old_model_moves_towards_it(align: Callable[[AlignmentSettings], Path], world: Path) -> None:
    student = load_task_model(world / "v2", align(AlignmentSettings("always_old")))
    start = load_task_model(world / "v2", world / "new")
    assert divergence_from("old", "v1", student, world) < 0.9 * divergence_from("old", "v1", start, world)
    assert divergence_from("new", "v2", student, world) > 0


def test_muscle_differs_from_both_single_objectives(align: Callable[[AlignmentSettings], Path], world: Path) -> None:
    runs = [
        load_task_model(world / "v2", align(alignment))
        for alignment in (
            AlignmentSettings("student_wrong"),
            AlignmentSettings("student_wrong", ce_share=0.3),
            AlignmentSettings("always_old"),
            AlignmentSettings(None),
        )
    ]
    said = [log_probabilities(model, world) for model in runs]
    for i, one in enumerate(said):
        assert all(not torch.allclose(one, other, atol=1e-4) for other in said[i + 1 :])


def test_training_starts_from_the_new_task_adapter(world: Path, tmp_path: Path) -> None:
    """At a learning rate that changes nothing, the new task model comes back."""
    pairs = (world / "v1", world / "old", world / "v2", world / "new")
    still = replace(SETTINGS, learning_rate=1e-12, epochs=1)
    task = load_task("scenes", world / "tasks")
    train_compatibility_adapter(*pairs, task, AlignmentSettings("student_wrong"), still, tmp_path, silent)
    student = log_probabilities(load_task_model(world / "v2", tmp_path), world)
    torch.testing.assert_close(student, log_probabilities(load_task_model(world / "v2", world / "new"), world))


def test_bases_with_different_tokenizers_are_refused(world: Path, tmp_path: Path) -> None:
    other = tmp_path / "v1"
    shutil.copytree(world / "v1", other)
    file = other / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    words = vocabulary["model"]["vocab"]
    words["scene"], words["at"] = words["at"], words["scene"]
    file.write_text(json.dumps(vocabulary))
    pairs = (other, world / "old", world / "v2", world / "new")
    task = load_task("scenes", world / "tasks")
    with pytest.raises(MuscleError, match=r"tokenize 'scene : .*differently: .* two bases that share a tokenizer"):
        train_compatibility_adapter(*pairs, task, AlignmentSettings("always_old"), SETTINGS, tmp_path, silent)


def test_plain_cross_entropy_needs_no_old_model(world: Path, tmp_path: Path) -> None:
    task, nowhere = load_task("scenes", world / "tasks"), tmp_path / "nowhere"
    control = AlignmentSettings(None)
    (tmp_path / "out").mkdir()
    pairs = (nowhere, nowhere, world / "v2", world / "new")
    train_compatibility_adapter(*pairs, task, control, SETTINGS, tmp_path / "out", silent)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["alignment"] == {"weight": None, "temperature": 1.0, "ce_share": 0.0}
