"""What a user sees of stages that run in other processes."""

from __future__ import annotations

import threading
from multiprocessing.queues import Queue
from queue import Empty

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class StageDisplay:
    """Progress bars on a terminal; elsewhere one line for each finished stage."""

    def __init__(self, total: int, done: int, news: Queue[tuple[str, float, str]], console: Console) -> None:
        self._console, self._news = console, news
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[words]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._total, self._done = total, done
        self._overall = self._progress.add_task("all stages", total=total, completed=done, words=f"{done}/{total}")
        self._bars: dict[str, TaskID] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> StageDisplay:
        self._progress.start()
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._listener.join(timeout=1)  # a worker that was killed may have left half a message, which never ends
        self._progress.stop()

    def start(self, name: str) -> None:
        with self._lock:
            self._bars[name] = self._progress.add_task(name, total=1.0, words="")

    def finish(self, name: str, seconds: float) -> None:
        with self._lock:
            self._progress.remove_task(self._bars.pop(name))
        self._done += 1
        self._progress.update(self._overall, completed=self._done, words=f"{self._done}/{self._total}")
        if not self._console.is_terminal:
            self._console.print(f"[{self._done}/{self._total}] {name}: {seconds:.1f} s", markup=False, highlight=False)

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                name, share, words = self._news.get(timeout=0.2)
            except Empty:
                continue
            with self._lock:
                if (bar := self._bars.get(name)) is not None:
                    self._progress.update(bar, completed=share, words=words)
