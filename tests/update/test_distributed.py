"""Two processes do what one does with twice the batch size."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from muscle.update.distributed import SharedLoader, _Batches
from muscle.update.trainer import mean_cross_entropy

from .distributed_processes import RUNS
from .training_world import COLLATOR, TRAINING, VALIDATION, compatibility, run, student, weights

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of `accelerate launch` wrote."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # With --cpu accelerate starts one process only; with --multi_gpu and no GPU to be seen it starts two, on the CPU.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.update.distributed_processes", str(out)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize("name", list(RUNS))
def test_ddp_trains_as_one_process_does(two: Path, tmp_path: Path, name: str) -> None:
    sizes = RUNS[name] | {"batch_size": 2 * RUNS[name]["batch_size"]}
    model, result = run(
        tmp_path / "work", objective=compatibility(), optimizer="sgd", learning_rate=0.5, select_by="last", **sizes
    )
    found, start = load_file(two / name / "adapter.safetensors"), weights(student())
    for key, weight in weights(model).items():
        assert (weight - start[key]).abs().max() > 1e-3
        torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-5)
    curves = json.loads((two / name / "result.json").read_text())
    assert curves["cross_entropy"] == pytest.approx(result.validation_cross_entropy, rel=1e-5)
    assert curves["flips"] == {"even": [6, 5, 4], "one left": [6, 4, 3]}[name]  # the main process's; asked once more
    one, several = ((folder / "log.jsonl").read_text().splitlines() for folder in (tmp_path, two / name))
    for line, other in zip(one, several, strict=True):
        said = json.loads(other)
        for key, value in json.loads(line).items():
            assert key == "eval_best_epoch" or said[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key


def test_every_process_is_in_the_checkpoint(two: Path) -> None:
    for name in RUNS:
        (folder,) = (two / name / "work").glob("checkpoint-*")
        assert {"rng_state_0.pth", "rng_state_1.pth", "whole.json"} < {file.name for file in folder.iterdir()}


def test_fsdp2_gives_the_loss_and_gradient_of_one_process(two: Path) -> None:
    model, batch = student(), COLLATOR([TRAINING[i] for i in range(len(TRAINING))])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    total, count, sums = compatibility()(logits, batch)
    (total / count).backward()
    said = json.loads((two / "sharded.json").read_text())
    assert said["loss"] == pytest.approx((total / count).item(), rel=1e-5)
    assert said["statistics"] == pytest.approx({name: float(value / count) for name, value in sums.items()}, rel=1e-5)
    gradients = load_file(two / "gradients.safetensors")
    assert gradients.keys() == weights(model).keys()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert weight.grad.any()
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-7)


def test_fsdp2_validates_and_saves_the_whole_adapter(two: Path) -> None:
    said, model = json.loads((two / "sharded.json").read_text()), student()
    expected = mean_cross_entropy(model, SharedLoader(VALIDATION, 10, COLLATOR))
    assert said["validation"] == pytest.approx(expected, rel=1e-5)
    saved = load_file(two / "sharded adapter" / "adapter_model.safetensors")
    for name, weight in get_peft_model_state_dict(model).items():
        assert torch.equal(saved[name], weight), name
    assert len(saved) == len(get_peft_model_state_dict(model))


@pytest.mark.parametrize(("texts", "batch_size"), [(21, 4), (16, 4), (3, 4), (1, 1), (9, 1)])
@pytest.mark.parametrize("processes", [2, 3])
def test_every_text_counts_once_and_in_the_same_step(texts: int, batch_size: int, processes: int) -> None:
    whole = list(_Batches(texts, batch_size * processes, 7, 0, 1, epoch=2))
    shares = [list(_Batches(texts, batch_size, 7, rank, processes, epoch=2)) for rank in range(processes)]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert [text for part in parts for text in part if text >= 0] == step
        assert all(0 < len(part) <= batch_size for part in parts)
        assert all(-1 - text in step for part in parts for text in part if text < 0)
    assert sorted(text for step in whole for text in step) == list(range(texts))


def test_configurations_of_the_docs_are_understood() -> None:
    fsdp = load_config_from_file(str(REPOSITORY / "docs" / "configs" / "fsdp.yaml"))
    assert fsdp.distributed_type == "FSDP"
    assert fsdp.fsdp_config["fsdp_version"] == 2
    zero = HfDeepSpeedConfig(str(REPOSITORY / "docs" / "configs" / "zero2.json"))
    assert zero.is_zero2()


def test_order_changes_with_the_epoch_and_the_seed() -> None:
    orders = [next(iter(_Batches(21, 21, seed, 0, 1, epoch))) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(map(tuple, orders))) == 4
    assert [*_Batches(5, 2, None, 0, 1)] == [[0, 1], [2, 3], [4]]


def test_a_text_that_does_not_count_has_no_target() -> None:
    loader = SharedLoader(TRAINING, 4, COLLATOR)
    silent, text = loader.dataset[-1 - 3], TRAINING[3]
    assert torch.equal(silent["input_ids"], text["input_ids"])
    assert (silent["labels"] == -100).all()
