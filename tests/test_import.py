"""What importing costs, and what is public."""

import subprocess
import sys

import pytest

import muscle
import muscle.cli.measuring
import muscle.measure.logs
import muscle.update

HEAVY = {"torch", "transformers", "polars", "pandas", "numpy", "scipy", "msgspec"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running the code."""
    program = f"{code}\nimport sys; print('MODULES', *{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.rpartition("MODULES")[2].split())


def test_import_and_help_load_nothing_heavy() -> None:
    assert loaded_by("import muscle") & HEAVY == set()
    show_help = (
        "import sys, muscle.cli\nsys.argv = ['muscle', '--help']\ntry: muscle.cli.main()\nexcept SystemExit: pass"
    )
    assert loaded_by(show_help) & (HEAVY | {"rich"}) == set()


def test_measuring_needs_no_training_stack() -> None:
    loaded = loaded_by(
        "import muscle; muscle.compare; import muscle.measure.report.terminal, muscle.measure.report.json"
    )
    assert "numpy" in loaded
    assert loaded & {"torch", "transformers", "polars", "pandas", "lm_eval"} == set()


def test_the_formats_of_the_help_are_the_readers() -> None:
    assert muscle.cli.measuring.FORMATS == muscle.measure.logs.FORMATS


def test_a_missing_training_stack_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muscle.update, "find_spec", lambda name: None if name in {"torch", "peft"} else object())
    with pytest.raises(muscle.MuscleError, match=r"training needs torch, peft: pip install 'muscle-llm\[update\]'"):
        muscle.update.require_training_stack()


def test_public_names() -> None:
    assert muscle.__all__ == ["Comparison", "MuscleError", "__version__", "compare"]
    assert set(muscle.__all__) <= set(dir(muscle))
    assert muscle.compare.__module__ == "muscle.measure.comparison"
    assert issubclass(muscle.MuscleError, Exception)
    with pytest.raises(AttributeError, match="no attribute 'comapre'"):
        muscle.comapre  # noqa: B018
