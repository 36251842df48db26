"""A training run that is killed and started again ends as if nothing had happened, bit by bit."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muscle.update.trainer import TrainingResult

from .training_world import compatibility, run, student, weights

EPOCHS, STEPS = 4, 6


class Killed(BaseException):
    """Stops everything, as a signal would, but within the process of the test."""


def training(work: Path, **changes: Any) -> tuple[dict[str, Tensor], TrainingResult, bytes]:
    """Adapter, result and log of a run in which all that a checkpoint must hold decides: moments, schedule, dropout."""
    settings = {"epochs": EPOCHS, "objective": compatibility()} | changes
    model, result = run(work, student(dropout=0.2), **settings)
    return weights(model), result, (work.parent / "log.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The run that nobody kills."""
    return training(tmp_path_factory.mktemp("whole") / "work")


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert found[1:] == expected[1:]
    for name, weight in expected[0].items():
        assert torch.equal(found[0][name], weight), name


def die_at(share: float, die: Callable[[], None]) -> Callable[[float, str], None]:
    def report(done: float, words: str) -> None:
        if done >= share:
            die()

    return report


def die_saving(epoch: int, die: Callable[[], None], patch: Callable[[Any, str, Any], None]) -> None:
    """Die with half the scheduler's file of one epoch's checkpoint on disk."""
    save = torch.save

    def half(thing: Any, path: Any, **kwargs: Any) -> None:
        save(thing, path, **kwargs)
        if str(path).endswith(f"checkpoint-{STEPS * epoch}/scheduler.pt"):
            os.truncate(path, 100)
            die()

    patch(torch, "save", half)


def die_removing(die: Callable[[], None], patch: Callable[[Any, str, Any], None]) -> None:
    """Die while the first checkpoint that is no longer needed is removed."""

    def half(path: Path) -> None:
        (path / "optimizer.pt").unlink()
        die()

    patch(shutil, "rmtree", half)


def die_here() -> None:
    raise Killed


@pytest.mark.parametrize("steps", [3, 7, 24])
def test_between_any_two_steps(tmp_path: Path, whole: Any, steps: int) -> None:
    with pytest.raises(Killed):
        training(tmp_path / "work", report=die_at(steps / (EPOCHS * STEPS), die_here))
    done: list[float] = []
    assert_same(training(tmp_path / "work", report=lambda share, _: done.append(share)), whole)
    assert len(done) == EPOCHS * STEPS - (steps - 1) // STEPS * STEPS  # only what no checkpoint holds is done again


@pytest.mark.parametrize("where", ["saving", "removing"])
def test_half_a_checkpoint(tmp_path: Path, whole: Any, where: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if where == "saving":
            die_saving(2, die_here, patch.setattr)
        else:
            die_removing(die_here, patch.setattr)
        with pytest.raises(Killed):
            training(tmp_path / "work")
    done: list[float] = []
    assert_same(training(tmp_path / "work", report=lambda share, _: done.append(share)), whole)
    assert len(done) == EPOCHS * STEPS - {"saving": 1, "removing": 2}[where] * STEPS


def test_after_the_end(tmp_path: Path, whole: Any) -> None:
    training(tmp_path / "work")
    again = training(tmp_path / "work", report=lambda *_: pytest.fail("a step was taken"))
    assert_same(again, whole)


def test_in_a_folder_that_has_moved(tmp_path: Path) -> None:
    answers = [1.0, 3.0, 3.0, 3.0]  # the best epoch is the first
    changes = {"select_by": "flips", "flips": lambda _: answers.pop(0)}
    expected = training(tmp_path / "whole" / "work", **changes)
    answers[:] = [1.0, 3.0, 3.0, 3.0]
    with pytest.raises(Killed):
        training(tmp_path / "1" / "work", report=die_at(0.6, die_here), **changes)
    (tmp_path / "1").rename(tmp_path / "2")
    found = training(tmp_path / "2" / "work", **changes)
    assert found[1].best_epoch == 1
    assert_same(found, expected)


def test_early_stop_is_not_forgotten(tmp_path: Path) -> None:
    def changes() -> dict[str, Any]:
        answers = iter([1.0, 3.0, 3.0, 3.0])
        return {"select_by": "flips", "flips": lambda _: next(answers), "early_stopping": 1}

    expected = training(tmp_path / "work", **changes())
    assert expected[1].steps == 2 * STEPS
    assert_same(training(tmp_path / "work", **changes()), expected)


def test_other_settings_start_anew(tmp_path: Path, whole: Any) -> None:
    training(tmp_path / "work", seed=6)
    assert_same(training(tmp_path / "work"), whole)


def victim(work: Path, where: str) -> None:
    """Trains in a process of its own until the kernel kills it."""
    torch.set_num_threads(1)
    changes: dict[str, Any] = {}

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "saving":
        die_saving(2, die, setattr)
    elif where == "removing":
        die_removing(die, setattr)
    else:
        changes["report"] = die_at(0.9, die)
    training(work, **changes)


@pytest.mark.parametrize(
    "places",
    [["saving"], pytest.param(["saving", "removing", "stepping"], marks=pytest.mark.slow)],
    ids=["once", "three times"],
)
def test_sigkill(tmp_path: Path, whole: Any, places: list[str]) -> None:
    for where in places:  # one after the other, each going on from what the last one left
        process = multiprocessing.get_context("spawn").Process(target=victim, args=(tmp_path / "work", where))
        process.start()
        process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL
    assert_same(training(tmp_path / "work"), whole)
