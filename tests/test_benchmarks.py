"""The benchmarks: what they wrote can be read, is all there, and is what the READMEs say; and they still run."""

import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BARS = {
    "scoring": 4,  # zero-shot, 5-shot with shots that differ, 5-shot with shared ones, real tasks
    "generation": 1,
    "training": 5,  # 10 epochs against each peer, 1 epoch, peak memory of two models
    "text_scores": 2,  # ROUGE-1 without and with stems
    "startup": 2,  # --help, compare
    "reading": 2,  # time and peak memory
    "across": 12,  # loss and gradient of four kinds, the old model read once, an epoch; combined and likelihood
    "chunking": 4,  # alone and with tokenizing, in equal prompts and in chat templates
    "gpu": 5,  # training against each peer, its memory, scoring against each peer
}


@pytest.fixture
def module(monkeypatch):
    """A script's module by name; they import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return import_module(name)

    return load


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", BARS)
def test_committed_results_can_be_read_and_judge_their_bars_rightly(script, module):
    common = module("common")
    results = msgspec.json.decode((BENCHMARKS / "results" / f"{script}.json").read_bytes(), type=common.Results)
    assert len(results.bars) >= BARS[script]
    for bar in results.bars:
        if bar.ours is None:
            assert bar.note.startswith("not run: ")
            assert bar.met is None
        elif bar.goal is None:
            assert bar.met is None
        else:
            figure = bar.ours if bar.ratio is None else bar.ratio
            assert bar.met == common.reaches(figure, bar.goal.removesuffix(bar.unit))
        if bar.ratio is not None:
            memory = bar.unit == "MB"
            assert bar.ratio == pytest.approx(bar.ours / bar.peer if memory else bar.peer / bar.ours, rel=1e-2)


def test_the_latest_bars_are_all_there_once_and_those_of_the_scripts(module):
    harness = module("run")
    latest = msgspec.json.decode((BENCHMARKS / "results" / "latest.json").read_bytes(), type=harness.Latest)
    counted = Counter(entry.script for entry in latest.bars)
    assert {script: counted[script] for script, least in BARS.items() if counted[script] < least} == {}
    assert max(Counter(entry.name for entry in latest.bars).values()) == 1
    assert latest == harness.gather(BENCHMARKS / "results")


def test_readmes_show_the_latest_bars(module):
    harness = module("run")
    latest = harness.gather(BENCHMARKS / "results")
    for path, whole in harness.READMES.items():
        text = path.read_text(encoding="utf-8")
        assert text == harness.written(text, harness.markdown(latest, whole))
        assert text.count("\n| ") >= sum(whole or bar.goal is not None for bar in latest.bars)


def test_rows_say_met_missed_and_not_run(module):
    harness, bar = module("run"), module("common").Bar
    met, missed = (bar.time("a step", 2.0, peer, "naive", ">= 2.5", 3) for peer in (5.0, 4.9))
    assert harness.cells(met) == ("a step", "2 s", "5 s: naive", "2.5", ">= 2.5", "met")
    assert harness.cells(missed)[-3:] == ("2.45", ">= 2.5", "missed")
    assert harness.cells(bar.memory("it", 30, 50, "naive", "<= 0.6", 1))[-3:] == ("0.6", "<= 0.6", "met")
    assert harness.cells(bar.limit("--help", 0.2, "<= 0.15 s", 9))[1:] == ("0.2 s", "", "", "<= 0.15 s", "missed")
    idle = bar.not_run("a step", "s", "naive", ">= 2.5", "no GPU")
    assert harness.cells(idle) == ("a step", "", "naive", "", ">= 2.5", "not run: no GPU")


def test_a_readme_without_markers_is_refused(module):
    with pytest.raises(SystemExit, match="lacks the markers"):
        module("run").written("# Title\n", "| table |")


def test_memory_of_a_process_is_its_own(module):
    big = bytearray(400_000_000)
    finished = module("common").in_own_process(module("common").versions, ["msgspec", "no-such-package"])
    assert finished.result == {"msgspec": msgspec.__version__, "no-such-package": None}
    assert finished.peak_mb < 200 < len(big) / 1e6
    assert finished.cpu_seconds > 0
    with pytest.raises(SystemExit, match="ended with 3"):
        module("common").run_program([sys.executable, "-c", "raise SystemExit(3)"])


def test_competitors_take_turns(module):
    turns: list[str] = []
    timed = module("common").alternate({name: lambda name=name: turns.append(name) for name in "ab"}, 3)
    assert turns == [*"ababab"]
    assert [len(each.seconds) for each in timed.values()] == [3, 3]


def test_a_quick_run_measures_start_up_and_leaves_the_readmes_alone(module):
    readme = (BENCHMARKS / "README.md").read_bytes()
    printed = run("benchmarks/run.py", "--quick", "--only", "startup")
    assert "== startup: done" in printed
    assert "--help" in printed
    quick = msgspec.json.decode((BENCHMARKS / "results/quick/startup.json").read_bytes(), type=module("common").Results)
    assert all(bar.ours for bar in quick.bars)
    assert (BENCHMARKS / "README.md").read_bytes() == readme


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "measured"),
    [
        ("training", ["training, S model, 10 epochs, against a plain script", "training, S model, peak memory"]),
        (
            "gpu",
            [
                "GPU, tiny model, training, 10 epochs, against a plain script",
                "GPU, tiny model, packed scoring, 4 answers a question, against lm-eval's HFLM",
            ],
        ),
    ],
)
def test_training_and_scoring_give_what_the_peers_give(script, measured, module):
    run(f"benchmarks/{script}.py", "--quick")  # asserts that gradients and log-likelihoods are those of the peers
    file = BENCHMARKS / "results" / "quick" / f"{script}.json"
    quick = msgspec.json.decode(file.read_bytes(), type=module("common").Results)
    bars = {bar.name: bar for bar in quick.bars}
    assert all(bars[name].ratio for name in measured)
    assert len(quick.bars) == BARS[script]


def test_a_gpu_is_named_where_it_is_needed_and_missing(module):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    bars = module("gpu").not_run("7b", "no GPU")
    assert len(bars) == BARS["gpu"]
    assert {bar.note for bar in bars} == {"not run: no GPU"}
