"""Stage functions that workers of the pipeline tests import."""

import os
import signal
import time
from pathlib import Path

from muscle.errors import MuscleError
from muscle.update.pipeline import Report


def write(out: Path, report: Report, *, text: str) -> None:
    """Writes its text, and says that it ran."""
    print("chatter of a library")
    report(1.0, "written")
    (out / "text").write_text(text)
    (out / "ran").write_text(str(time.time_ns()))


def join(out: Path, report: Report, *, between: str, left: Path, right: Path) -> None:
    """Joins the texts of two stages."""
    write(out, report, text=between.join((folder / "text").read_text() for folder in (left, right)))


class UnpicklableError(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


def show_device(out: Path, report: Report, *, other: str) -> None:
    """Writes which device its process sees, and waits until another stage, in another process, has begun."""
    (out / "device").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    root = out.parents[2]
    while not any((root / part / other / "device").exists() for part in (".", ".partial")):
        time.sleep(0.05)


def fail(out: Path, report: Report, *, way: str, left: Path) -> None:
    """Leaves half an output, then fails in one of three ways."""
    (out / "text").write_text("half")
    if way == "raise":
        time.sleep(0.5)  # so that the stage beside it is in full flow
        raise MuscleError("no such tokenizer: choose another")
    if way == "unpicklable":
        raise UnpicklableError(reason="lost")
    if way == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError(way)


def chat(out: Path, report: Report, *, left: Path) -> None:
    """Reports without pause until it is stopped."""
    while True:
        report(0.5, "still at it")
