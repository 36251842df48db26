"""What `adapt`, `align` and `evaluate` run when a recipe lends them its settings. Nothing here is trained."""

from pathlib import Path
from typing import Any

import pytest

from muscle.cli import training
from muscle.errors import MuscleError
from muscle.update import run as running
from muscle.update import stages, verbs
from muscle.update.pipeline import CHECKPOINTS, Stage
from muscle.update.recipe import Recipe
from muscle.update.recipe_file import read_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "llama1_to_llama2.yaml"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """The stages that are run, in place of running them."""
    ran: list[Stage] = []
    monkeypatch.setattr(verbs, "_train", lambda stage, out, subject: ran.append(stage))
    return ran


def test_adapt_trains_the_new_adapter_of_a_recipe_with_controls(world: Path, tmp_path: Path, run: list[Stage]) -> None:
    training.adapt(str(world / "v2"), "piqa", tmp_path / "out", RECIPE, ["training.seed=5"])
    (stage,) = run
    assert stage.name == "adapters/piqa/new"
    assert stage.settings["training"]["seed"] == 5
    assert stage.settings["model"]["base"]["base"] == str(world / "v2")


def test_adapt_trains_an_adapter_that_the_recipe_has_already(world: Path, tmp_path: Path, run: list[Stage]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("old: {base: a}\nnew: {base: b, adapters: {piqa: mine}}\ntasks: {piqa: {}}\n")
    training.adapt(str(world / "v2"), "piqa", tmp_path / "out", recipe)
    assert [stage.name for stage in run] == ["adapters/piqa/new"]


def test_align_takes_the_adapters_it_is_given(world: Path, tmp_path: Path, run: list[Stage]) -> None:
    sides = (str(world / "v1"), str(world / "v2"))
    adapters = (str(world / "old"), str(world / "new"))
    training.align("piqa", *sides, tmp_path / "out", *adapters, recipe=RECIPE)
    (stage,) = run
    assert stage.name == "adapters/piqa/muscle"
    assert (stage.settings["old"]["adapter"], stage.settings["new"]["adapter"]) == adapters
    assert stage.settings["training"]["precision"] == "bfloat16"


@pytest.mark.parametrize(("flag", "wanted"), [("disk", "disk"), ("memory", "memory"), ("off", "off"), (None, "off")])
def test_the_flag_for_teachers_wins_over_the_recipe(
    flag: Any, wanted: str, world: Path, tmp_path: Path, run: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which says off; on disk, a single training keeps them in its own folder."""
    assert read_recipe(RECIPE).alignment.teacher_cache == "off"
    training.align("piqa", str(world / "v1"), str(world / "v2"), tmp_path / "out", recipe=RECIPE, teacher_cache=flag)
    assert run[0].settings["alignment"]["teacher_cache"] == wanted
    assert not run[0].inputs

    ran: list[Recipe] = []
    monkeypatch.setattr(running, "run_update", lambda recipe, *_: ran.append(recipe))
    training.update(RECIPE, out=tmp_path / "run", teacher_cache=flag)
    assert ran[0].alignment.teacher_cache == wanted


def test_evaluate_takes_the_adapter_it_is_given(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(stages, "evaluate", lambda destination, report, **settings: told.append(settings))
    training.evaluate(str(world / "v2"), ["piqa"], tmp_path / "logs", str(world / "new"), recipe=RECIPE)
    assert told[0]["model"]["adapter"] == str(world / "new")


def test_a_begun_training_is_lost_only_on_purpose(tmp_path: Path) -> None:
    """Until a checkpoint is written, other settings take the folder over: nothing is lost."""
    out = tmp_path / "out"
    verbs._claim(out, "a")
    verbs._claim(out, "b")
    assert (out / verbs.BEGUN).read_text() == "b"
    checkpoint = out / CHECKPOINTS / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    verbs._claim(out, "b")
    with pytest.raises(MuscleError, match="begun with other settings, models or data"):
        verbs._claim(out, "a")
    assert (out / verbs.BEGUN).read_text() == "b"
    assert checkpoint.exists()


@pytest.mark.parametrize("work", ["trials/one-2-ab/trial.json", "trials/one-2-ab/checkpoints/checkpoint-3/whole.json"])
def test_a_half_search_goes_on_with_another_budget_and_with_nothing_else(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    claimed = tmp_path / "out"

    def claim(stage: Stage, out: Path, subject: Any) -> None:
        verbs._claim(out, verbs._mark_of(stage))

    monkeypatch.setattr(verbs, "_train", claim)

    def align(*changes: str, **more: Any) -> None:
        sides = (str(world / "v1"), str(world / "v2"))
        training.align("piqa", *sides, claimed, set_=list(changes), **more)

    align()
    align("training.seed=3")
    (claimed / CHECKPOINTS / work).parent.mkdir(parents=True)
    (claimed / CHECKPOINTS / work).touch()
    align("training.seed=3", budget=7)
    for changes in ([], ["training.seed=4"]):
        with pytest.raises(MuscleError, match="holds a training or a search that was begun with other settings"):
            align(*changes)
    with pytest.raises(MuscleError, match="begun with other settings"):
        align("training.seed=3", method="muscle")


def test_a_search_needs_a_weight(world: Path, tmp_path: Path, run: list[Stage]) -> None:
    arguments = ("piqa", str(world / "v1"), str(world / "v2"), tmp_path / "out")
    with pytest.raises(MuscleError, match=r"methods\.auto\.search aligns, and weight: null does not"):
        training.align(*arguments, method="auto", recipe=RECIPE, set_=["alignment.weight=null"])
    assert not run
    training.align(*arguments, method="auto", recipe=RECIPE)
    assert run[0].settings["alignment"]["search"]


def test_a_folder_of_something_else_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(MuscleError, match="is not empty"):
        verbs._claim(tmp_path / "out", "a")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
