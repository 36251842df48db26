"""What all benchmarks share: a bar (one line of the final table), fair timing, memory of a process, and the models.

A script measures ours and its peer on the same work, asserts that they give equal results, and ends with
`write_results`. `run.py` runs all scripts and gathers their bars.
"""

import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("MUSCLE_DATA", REPOSITORY.parent / "shared" / "data"))


class Bar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the final table: what is measured, and the bar that it has to clear."""

    name: str
    """What is done, on which work and model; the same in every run."""
    unit: str
    """Of ours and the peer: s, ms, MB, ..."""
    ours: float | None
    """Median; None where it could not be run."""
    peer: float | None
    """Median; None where it could not be run, or where the bar is a limit of its own."""
    peer_name: str
    """The peer, with its version-independent settings; "" where there is none."""
    ratio: float | None
    """Time: peer / ours, times faster. Memory: ours / peer, the share that is left."""
    goal: str | None
    """Of the ratio, or of ours where its unit is named: ">= 2.5", "<= 0.6", "<= 0.15 s". None is only told."""
    met: bool | None
    """None where there is no goal, or nothing was measured."""
    runs: int = 0
    """How many the medians are of."""
    note: str = ""
    """What a reader must know, for example "not run: no GPU"."""

    @classmethod
    def time(
        cls, name: str, ours: float, peer: float, peer_name: str, goal: str | None, runs: int, unit: str = "s"
    ) -> "Bar":
        """A bar of time, in `unit`: how many times faster than the peer, with a goal such as ">= 2.5"."""
        return _judged(name, unit, ours, peer, peer_name, peer / ours, goal, runs)

    @classmethod
    def memory(cls, name: str, ours: float, peer: float, peer_name: str, goal: str | None, runs: int) -> "Bar":
        """A bar of peak memory, in MB: which share of the peer's, with a goal such as "<= 0.6"."""
        return _judged(name, "MB", ours, peer, peer_name, ours / peer, goal, runs)

    @classmethod
    def limit(cls, name: str, ours: float, goal: str, runs: int, unit: str = "s") -> "Bar":
        """A bar without a peer: the goal is of the figure itself, such as "<= 0.15 s"."""
        met = reaches(ours, goal.removesuffix(unit))
        return cls(name=name, unit=unit, ours=ours, peer=None, peer_name="", ratio=None, goal=goal, met=met, runs=runs)

    @classmethod
    def not_run(cls, name: str, unit: str, peer_name: str, goal: str | None, why: str) -> "Bar":
        """A bar that this machine cannot measure, and why, for example "no GPU"."""
        return cls(
            name=name,
            unit=unit,
            ours=None,
            peer=None,
            peer_name=peer_name,
            ratio=None,
            goal=goal,
            met=None,
            note=f"not run: {why}",
        )


class Results(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a script writes."""

    date: str
    machine: dict[str, Any]
    versions: dict[str, str | None]
    bars: list[Bar]
    details: dict[str, Any]


def _judged(
    name: str, unit: str, ours: float, peer: float, peer_name: str, ratio: float, goal: str | None, runs: int
) -> Bar:
    met = None if goal is None else reaches(ratio, goal)
    return Bar(
        name=name, unit=unit, ours=ours, peer=peer, peer_name=peer_name, ratio=ratio, goal=goal, met=met, runs=runs
    )


def reaches(value: float, goal: str) -> bool:
    """Whether a figure reaches a goal, `>= x` or `<= x`."""
    sign, limit = goal.split()
    compare = {">=": operator.ge, "<=": operator.le}[sign]
    return bool(compare(value, float(limit)))


@dataclass
class Timed:
    """One competitor's runs."""

    seconds: list[float]
    """Of each run."""
    results: list[Any]
    """What each run returned."""

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


def alternate(competitors: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, Timed]:
    """Run competitors in turn, so that a machine that others slow down slows all of them alike.

    Args:
        competitors: By name; what must be ready before the clock starts is ready when they are given.
        runs: Of each.
    """
    timed = {name: Timed([], []) for name in competitors}
    for _ in range(runs):
        for name, run in competitors.items():
            start = time.perf_counter()
            result = run()
            timed[name].seconds.append(time.perf_counter() - start)
            timed[name].results.append(result)
    return timed


@dataclass
class Finished:
    """A process that has ended."""

    printed: str
    """Its standard output."""
    seconds: float
    """From its start to its end."""
    cpu_seconds: float
    """Of the processor."""
    peak_mb: float
    """Its largest resident set, in MB of 10^6 bytes."""

    @property
    def result(self) -> Any:
        """Its last line, read as JSON."""
        return json.loads(self.printed.splitlines()[-1])


# A process begins with its parent's peak memory as its own (Linux keeps it over exec): this parent is small.
_LAUNCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
printed = process.stdout.read()
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
print(json.dumps([printed.decode(), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, status]))
"""
_CALL = """
import importlib, json, sys
_, folder, module, function, arguments = sys.argv
sys.path.insert(0, folder)
print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))
"""


def run_program(command: Sequence[str | Path]) -> Finished:
    """Run a program in a process of its own, while the system keeps count of time and peak memory.

    Raises:
        SystemExit: It failed.
    """
    small = [sys.executable, "-S", "-c", _LAUNCH, *map(str, command)]
    launched = subprocess.run(small, stdout=subprocess.PIPE, check=True, text=True)
    printed, seconds, cpu_seconds, peak, status = json.loads(launched.stdout)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{command[0]} ended with {code}; has the machine enough memory?")
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(printed, seconds, cpu_seconds, peak * unit / 1e6)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Finished:
    """Call a script's function in a fresh Python, for its peak memory to be its own.

    Args:
        function: Of the top level of a script in this folder; what it returns must be JSON (see `Finished.result`).
        *arguments: JSON values.
    """
    file = Path(function.__code__.co_filename).resolve()
    call = [str(file.parent), file.stem, function.__name__, json.dumps(arguments)]
    return run_program([sys.executable, "-c", _CALL, *call])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions(names: Sequence[str]) -> dict[str, str | None]:
    """Installed versions by distribution; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def write_results(script: str, bars: Sequence[Bar], details: Mapping[str, Any], packages: Sequence[str] = ()) -> None:
    """Write benchmarks/results/<script>.json; after `--quick`, which every script has, results/quick/<script>.json.

    Quick figures say nothing, and must not take the place of others.

    Args:
        script: The script's name, or its `__file__`.
        bars: Lines of the final table.
        details: Whatever else was measured: settings, all runs, further figures.
        packages: Distributions whose versions matter, beside muscle-llm.
    """
    results = Results(
        date=datetime.now(UTC).date().isoformat(),
        machine=machine(),
        versions=versions(["muscle-llm", *packages]),
        bars=[_rounded(bar) for bar in bars],
        details=dict(details),
    )
    folder = RESULTS / "quick" if "--quick" in sys.argv[1:] else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(script).stem}.json"
    path.write_text(json.dumps(msgspec.to_builtins(results), indent=2) + "\n", encoding="utf-8")


def _rounded(bar: Bar) -> Bar:
    """Four digits of each figure: no run repeats more."""
    figures = {name: getattr(bar, name) for name in ("ours", "peer", "ratio")}
    return msgspec.structs.replace(bar, **{k: None if v is None else float(f"{v:.4g}") for k, v in figures.items()})


def _processor() -> str:
    """The processor's name where the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> str | None:
    """The GPU's name, asked of torch only where a script has loaded it."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


ModelName = Literal["S", "D", "V"]
SHAPES: dict[ModelName, dict[str, int]] = {
    "S": {"hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 32_000},
    "D": {"hidden_size": 512, "num_hidden_layers": 16, "vocab_size": 32_000},  # head / body 0.32, as of a model of 1B
    "V": {"hidden_size": 512, "num_hidden_layers": 6, "vocab_size": 128_000},
}


def config(name: ModelName) -> "LlamaConfig":
    """Llama's architecture in one of the three shapes: heads of 64, width of the MLP 8/3, untied head."""
    from transformers import LlamaConfig

    shape = SHAPES[name]
    hidden = shape["hidden_size"]
    return LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=hidden,
        num_hidden_layers=shape["num_hidden_layers"],
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        intermediate_size=-(-8 * hidden // 3 // 64) * 64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )


def model(name: ModelName, seed: int = 0) -> "LlamaForCausalLM":
    """A model of random weights in float32, in evaluation mode; the seed tells two models of a shape apart."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    made: LlamaForCausalLM = LlamaForCausalLM(config(name)).eval()  # type: ignore[no-untyped-call]
    return made
