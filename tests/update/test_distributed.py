"""Two processes do what one does with twice the batch size."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from muscle.update.distributed import SharedLoader, _Batches
from muscle.update.prompts import Example
from muscle.update.tokenized import PaddingCollator, TokenizedExamples
from muscle.update.trainer import mean_cross_entropy, outcome

from .architectures import build_tokenizer
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
    total, count, sums = outcome(model, compatibility(), batch)
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


def lengths(texts: int) -> list[int]:
    draw = torch.Generator().manual_seed(texts)
    return torch.randint(1, 40, (texts,), generator=draw).tolist()


def padding(batches: list[list[int]], of: list[int]) -> int:
    return sum(max(of[text] for text in batch) - of[text] for batch in batches for text in batch)


def steps(batches: list[list[int]], accumulation: int) -> list[list[int]]:
    """The texts of each optimiser step, in their order."""
    starts = range(0, len(batches), accumulation)
    return [[text for batch in batches[start : start + accumulation] for text in batch] for start in starts]


@pytest.mark.parametrize(("texts", "batch_size"), [(21, 4), (16, 4), (3, 4), (1, 1), (9, 1)])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("accumulation", "pool"), [(1, 1), (2, 1), (2, 3)])
def test_every_text_counts_once_and_in_the_same_step(
    texts: int, batch_size: int, processes: int, accumulation: int, pool: int
) -> None:
    settings: dict[str, int] = {"accumulation": accumulation, "length_pool": pool, "epoch": 2}
    of = lengths(texts)
    whole = list(_Batches(of, batch_size * processes, 7, 0, 1, **settings))
    shares = [list(_Batches(of, batch_size, 7, rank, processes, **settings)) for rank in range(processes)]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert [text for part in parts for text in part if text >= 0] == step
        assert all(0 < len(part) <= batch_size for part in parts)
        assert all(-1 - text in step for part in parts for text in part if text < 0)
    assert sorted(text for step in whole for text in step) == list(range(texts))


@given(texts=st.integers(1, 200), batch_size=st.integers(1, 5), accumulation=st.integers(2, 6), epoch=st.integers(0, 3))
def test_sorted_texts_stay_in_their_step(texts: int, batch_size: int, accumulation: int, epoch: int) -> None:
    of = lengths(texts)
    plain = list(_Batches(of, batch_size, 7, 0, 1, epoch=epoch))
    found = list(_Batches(of, batch_size, 7, 0, 1, accumulation, epoch=epoch))
    assert [len(batch) for batch in found] == [len(batch) for batch in plain]
    for before, after in zip(steps(plain, accumulation), steps(found, accumulation), strict=True):
        assert set(after) == set(before)
        assert [of[text] for text in after] == sorted((of[text] for text in before), reverse=True)
    whole = texts // (batch_size * accumulation) * accumulation  # the batches of the last step may differ in size
    assert padding(found[:whole], of) <= padding(plain[:whole], of)


@given(texts=st.integers(1, 200), pool=st.integers(2, 9), seed=st.integers(0, 9))
def test_pools_of_steps(texts: int, pool: int, seed: int) -> None:
    """Each text once, whatever the batches and processes that a step is made of; texts left over stay the last step."""
    size, of = 12, lengths(texts)
    ways = []
    for processes, accumulation in ((1, 2), (1, 3), (2, 2), (3, 4)):
        each = size // processes // accumulation
        shares = [[*_Batches(of, each, seed, rank, processes, accumulation, pool, 1)] for rank in range(processes)]
        batches = [[text for part in parts for text in part if text >= 0] for parts in zip(*shares, strict=True)]
        ways.append(steps(batches, accumulation))
    assert ways[0] == ways[1] == ways[2] == ways[3]
    assert sorted(text for step in ways[0] for text in step) == list(range(texts))
    assert [len(step) for step in ways[0][:-1]] == [size] * (len(ways[0]) - 1)
    drawn = [text for batch in _Batches(of, size, seed, 0, 1, epoch=1) for text in batch]
    for start in range(0, texts - texts % size, size * pool):
        stop = min(start + size * pool, texts - texts % size)
        together = ways[0][start // size : stop // size]
        assert {text for step in together for text in step} == set(drawn[start:stop])
        by_length = sorted(([of[text] for text in step] for step in together), reverse=True)
        assert [n for step in by_length for n in step] == sorted((of[text] for text in drawn[start:stop]), reverse=True)
    assert set(drawn[texts - texts % size :]) == {text for step in ways[0][texts // size :] for text in step}


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=60),
    batch_size=st.integers(1, 4),
    processes=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    pool=st.integers(1, 3),
    seed=st.one_of(st.none(), st.integers(0, 9)),
)
def test_the_texts_of_an_item_share_a_batch(
    sizes: list[int], batch_size: int, processes: int, accumulation: int, pool: int, seed: int | None
) -> None:
    """Items are dealt out as texts are that stand alone, each with all of its texts, which count once."""
    count, of = sum(sizes), lengths(len(sizes))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()  # texts lie anywhere
    ends = np.cumsum(sizes).tolist()
    items = [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    counted = []
    for rank in range(processes):
        settings = (batch_size, seed, rank, processes, accumulation, pool)
        grouped, alone = [*_Batches(of, *settings, texts=items)], [*_Batches(of, *settings)]
        assert len(grouped) == len(alone)
        for texts, numbers in zip(grouped, alone, strict=True):
            if numbers[0] < 0:
                assert texts == [-1 - items[-1 - numbers[0]][0]]
                continue
            assert texts == [text for item in numbers for text in items[item]]
            counted += texts
    assert sorted(counted) == list(range(count))


def test_an_item_is_as_long_as_its_longest_text() -> None:
    rows = [("1 2 3", 0), ("1", 1), ("1 2 3 4 5", 1), ("1 2 3 4", 2), ("1 2", 0)]
    data = TokenizedExamples([Example(text, "", item) for text, item in rows], build_tokenizer(6, eos_token="<eos>"))
    batches = [batch["index"].tolist() for batch in SharedLoader(data, 1, PaddingCollator(0))]
    assert batches == [[1, 2], [3], [0, 4]]
    plain = TokenizedExamples([Example(text, "") for text, _ in rows], build_tokenizer(6, eos_token="<eos>"))
    assert [batch["index"].tolist() for batch in SharedLoader(plain, 1, PaddingCollator(0))] == [
        [2],
        [3],
        [0],
        [4],
        [1],
    ]


def test_padding_falls_and_steps_of_a_pool_come_in_random_order() -> None:
    of = lengths(960)
    ways = {pool: list(_Batches(of, 4, 0, 0, 1, 8, pool)) for pool in (1, 5, 30)}
    unsorted = padding(list(_Batches(of, 4, 0, 0, 1)), of)
    assert padding(ways[1], of) < 0.35 * unsorted
    assert padding(ways[5], of) < 0.5 * padding(ways[1], of)
    firsts = [of[step[0]] for step in steps(ways[30], 8)]
    assert firsts != sorted(firsts, reverse=True)
    other = [of[step[0]] for step in steps([*_Batches(of, 4, 0, 0, 1, 8, 30, epoch=1)], 8)]
    assert sorted(firsts) == sorted(other)
    assert firsts != other


def test_a_data_set_that_is_only_gone_through_is_sorted_whole() -> None:
    (longest, *_, shortest) = SharedLoader(VALIDATION, 2, COLLATOR)
    by_length = sorted((len(text) for text in VALIDATION.ids), reverse=True)
    assert longest["attention_mask"].sum(1).tolist() == by_length[:2]
    assert shortest["attention_mask"].sum(1).tolist() == by_length[-1:]


def test_configurations_of_the_docs_are_understood() -> None:
    fsdp = load_config_from_file(str(REPOSITORY / "docs" / "configs" / "fsdp.yaml"))
    assert fsdp.distributed_type == "FSDP"
    assert fsdp.fsdp_config["fsdp_version"] == 2
    zero = HfDeepSpeedConfig(str(REPOSITORY / "docs" / "configs" / "zero2.json"))
    assert zero.is_zero2()


def test_order_changes_with_the_epoch_and_the_seed() -> None:
    alike = [1] * 21
    orders = [
        next(iter(_Batches(alike, 21, seed, 0, 1, epoch=epoch))) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len(set(map(tuple, orders))) == 4
    assert [*_Batches(alike[:5], 2, None, 0, 1)] == [[0, 1], [2, 3], [4]]


def test_a_text_that_does_not_count_has_no_target() -> None:
    loader = SharedLoader(TRAINING, 4, COLLATOR)
    silent, text = loader.dataset[-1 - 3], TRAINING[3]
    assert torch.equal(silent["input_ids"], text["input_ids"])
    assert (silent["labels"] == -100).all()
