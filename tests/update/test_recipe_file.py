"""Recipes: what is read, what overrides change, and what a mistake is answered with."""

import difflib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import MuscleError
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.recipe import LoraSettings, TrainingSettings
from muscle.update.recipe_file import make_recipe, read_recipe
from muscle.update.settings import merged

MINIMAL: dict[str, Any] = {"old": {"base": "a"}, "new": {"base": "b"}, "tasks": {"piqa": None}}
DOCS = Path(__file__).parents[2] / "docs"
RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").rglob("*.yaml") if path.parent.name != "tasks"
)

WHOLE = """\
old: {base: old/base@v1, dtype: bfloat16}
new:
  base: new/base
  adapters: {piqa: mine, gsm8k: null}
tasks:
  piqa:
  gsm8k:
    training: {epochs: 7, learning_rate: 1e-5}
    alignment: {ce_share: 0.5}
methods:
  muscle:
  old_right: {weight: old_right, temperature: 1}
controls: [cross_entropy, old_teacher]
training: {epochs: 3, seed: 5}
alignment_training: {epochs: 2}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_defaults_are_the_papers() -> None:
    recipe = make_recipe(MINIMAL)
    assert recipe.lora == LoraSettings(rank=128, alpha=None, dropout=0.0, targets="all-linear")  # alpha: twice the rank
    training = recipe.training_of("piqa")
    assert (training.learning_rate, training.epochs, training.accumulation) == (1e-4, 10, 8)
    assert (training.warmup_steps, training.weight_decay, training.tokens) == (500, 0, "all")
    assert training.select_by == "cross_entropy"
    assert recipe.tasks["piqa"].validation_share == 0.2
    assert recipe.alignment_of("piqa", "muscle") == AlignmentSettings(weight="student_wrong", temperature=2, ce_share=0)
    assert recipe.alignment_training_of("piqa") == training


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alignment": {"search": {}}}, "alignment.search is for methods; write it below one: methods.auto.search"),
        (
            {"tasks": {"piqa": {"alignment": {"search": {}}}}},
            "tasks.piqa.alignment.search is for methods; write it below one: methods.auto.search",
        ),
        (
            {"methods": {"auto": {"search": {"lengths": [0.5, 0.25, 1]}}}},
            "methods.auto.search.lengths: must rise to 1, such as [0.25, 0.5, 1]; correct it",
        ),
        (
            {"methods": {"auto": {"search": {"lengths": [0.25, 0.5]}}}},
            "methods.auto.search.lengths: must rise to 1, such as [0.25, 0.5, 1]; correct it",
        ),
        (
            {"methods": {"auto": {"search": {}, "weight": None}}},
            "methods.auto.search aligns, and weight: null does not; leave one of them out",
        ),
        (
            {"methods": {"auto": {"search": {}}}, "tasks": {"piqa": {"validation_share": 0}}},
            "tasks.piqa.validation_share: method auto chooses on held-out items; raise it, or leave that out",
        ),
        (
            {"methods": {"auto": {"search": {"budget": 0.5}}}},
            "methods.auto.search.budget: expected `float` >= 1.0; correct it",
        ),
    ],
)
def test_searches_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(MuscleError) as error:
        make_recipe(MINIMAL | given)
    assert str(error.value) == f"the recipe: {message}"


@pytest.mark.parametrize("key", ["budget", "floor", "old_shares", "ce_shares", "lengths"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_of_a_search_are_finite(key: str, value: str, tmp_path: Path) -> None:
    value = f"[{value}]" if key.endswith("s") else value
    refused = rf": methods\.auto\.search\.{key}(\[0\])?: expected `float` [<>]= [-0-9.]+; correct it$"
    file = written(tmp_path, WHOLE.replace("methods:\n", f"methods:\n  auto:\n    search:\n      {key}: {value}\n"))
    with pytest.raises(MuscleError, match=rf"recipe\.yaml:\d+{refused}"):
        read_recipe(file)
    override = f"methods.auto.search.{key}={value}"
    with pytest.raises(MuscleError, match=f"^--set {re.escape(override)}{refused}"):
        make_recipe(MINIMAL, [override])


def test_groups_are_merged_from_general_to_special(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, WHOLE))
    assert recipe.training_of("piqa") == TrainingSettings(epochs=3, seed=5)
    assert recipe.training_of("gsm8k") == TrainingSettings(epochs=7, seed=5, learning_rate=1e-5)
    assert recipe.alignment_training_of("gsm8k") == TrainingSettings(epochs=2, seed=5, learning_rate=1e-5)
    assert recipe.alignment_of("gsm8k", "old_right") == AlignmentSettings(
        weight="old_right", temperature=1, ce_share=0.5
    )
    assert recipe.alignment_of("piqa", "cross_entropy").weight is None
    old_only = recipe.alignment_of("gsm8k", "old_teacher")
    assert (old_only.weight, old_only.ce_share) == ("always_old", 0)
    assert recipe.models == ("old", "new", "muscle", "old_right", "cross_entropy", "old_teacher")
    assert recipe.new.adapters == {"piqa": "mine", "gsm8k": None}
    assert recipe.old.loaded_from("x").dtype == "bfloat16"


def test_overrides_come_last(tmp_path: Path) -> None:
    file = written(tmp_path, WHOLE)
    overrides = ["training.epochs=9", "tasks.piqa.lora.rank=4", "new.base=c", "controls=[]", "data=d"]
    recipe = read_recipe(file, overrides, {("new", "base"): "given", ("tasks", "gsm8k"): {}, ("tasks", "arc_easy"): {}})
    assert recipe.training.epochs == 9
    assert recipe.lora_of("piqa").rank == 4
    assert (recipe.new.base, recipe.controls, recipe.data) == ("c", (), "d")
    assert list(recipe.tasks) == ["piqa", "gsm8k", "arc_easy"]
    assert recipe.training_of("gsm8k").epochs == 7


def test_an_override_within_a_given_value_leaves_that_as_it_is() -> None:
    search: dict[str, Any] = {}
    given = {("methods", "auto"): {"search": search}}
    changed = make_recipe(MINIMAL, ["methods.auto.search.budget=7"], given)
    assert (changed.methods["auto"], search) == ({"search": {"budget": 7}}, {})


@pytest.mark.parametrize(
    ("line", "by", "message"),
    [
        ("training: {epochs: 3", "trainin: {epochs: 3", r":14: trainin is no setting; did you mean training\?"),
        ("{epochs: 7", "{epoch: 7", r":8: tasks.gsm8k.training.epoch is no setting; did you mean epochs\?"),
        ("weight: old_right", "weight: older", r":12: methods.old_right.weight: invalid enum value 'older'"),
        ("ce_share: 0.5", "ce_share: 1.5", r":9: tasks.gsm8k.alignment.ce_share: expected `float` <= 1.0"),
        ("seed: 5", "seed: five", r":14: training.seed: expected `int`, got `str`"),
        ("  old_right:", "  ensemble:", r":12: methods.ensemble: that name is taken; choose another"),
        ("  old_right:", "  ../x:", r":12: methods\.\.\./x cannot name a folder; choose another name"),
        ("old/base@v1", "null", r":1: old needs base or scratch, and not both"),
        ("  base: new/base", "  base: new/base\n  scratch: {steps: 3}", r":2: new needs base or scratch, and not both"),
        ("training: {epochs: 3, seed: 5}", "training: 3", r":14: training has no keys; write keys below it"),
        ("old_teacher]", "old_teachers]", r":13: controls\[1\]: invalid enum value 'old_teachers'"),
        ("controls: [", "controls: [[", r":14: not YAML"),
        ("piqa: mine", "pika: mine", r":4: new.adapters.pika is no task; did you mean piqa\?"),
        (
            "old_teacher]",
            "reseeded]",
            r":4: new.adapters were not trained by this recipe, so that control",
        ),
        ("old_teacher]", "cross_entropy]", r":13: controls names one twice"),
        ("  old_right:", "  gated:", r":12: methods.gated: that name is taken"),
        (
            "old_teacher]",
            "gated]\nevaluation: {draws: 2}",
            r":13: controls: gated answers each item once, and piqa has several draws; leave one of them out",
        ),
        (
            "controls: [",
            "paper_update: Llama1->2\ncontrols: [",
            r":13: paper_update is no row of the paper; did you mean Llama 1->2\?",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, line: str, by: str, message: str) -> None:
    assert line in WHOLE
    with pytest.raises(MuscleError, match=message):
        read_recipe(written(tmp_path, WHOLE.replace(line, by)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", r"--set training.epoch=3: training.epoch is no setting; did you mean epochs\?"),
        ("training.epochs=0", r"--set training.epochs=0: training.epochs: expected `int` >= 1"),
        ("tasks.piqa.lora.rank=x", r"--set tasks.piqa.lora.rank=x: tasks.piqa.lora.rank: expected `int`, got `str`"),
        ("tasks=[piqa]", r"tasks has no keys"),
        ("tasks={}", r"tasks is empty; name an lm-eval task"),
        ("training", r"--set training: expected KEY=VALUE"),
        ("training..epochs=3", r"expected KEY=VALUE"),
        ("data=[", r"the value is not YAML"),
    ],
)
def test_a_mistaken_override_is_named(override: str, message: str) -> None:
    with pytest.raises(MuscleError, match=message):
        make_recipe(MINIMAL, [override])


def test_what_is_no_recipe(tmp_path: Path) -> None:
    for text in ("", "[1]", "text"):
        with pytest.raises(MuscleError, match=r"recipe.yaml: (has no keys|.* missing required field)"):
            read_recipe(written(tmp_path, text))
    with pytest.raises(MuscleError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


@given(st.sampled_from(sorted(TrainingSettings.__struct_fields__)), st.data())
def test_a_misspelt_key_is_never_swallowed(field: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(field) - 1))
    misspelt = field[:at] + field[at + 1 :]
    if misspelt in TrainingSettings.__struct_fields__ or not misspelt:
        return
    with pytest.raises(MuscleError, match=rf"training\.{misspelt} is no setting") as raised:
        make_recipe(MINIMAL | {"training": {misspelt: 1}})
    close = difflib.get_close_matches(misspelt, TrainingSettings.__struct_fields__, n=1)
    assert not close or f"did you mean {close[0]}?" in str(raised.value)


def test_settings_survive_their_plain_form() -> None:
    recipe = make_recipe(MINIMAL | {"lora": {"targets": ["q", "v"]}, "training": {"report_to": ["wandb"]}})
    assert make_recipe(recipe.as_dict()) == recipe
    assert merged(recipe.training, {"epochs": "4"}) == merged(recipe.training, {"epochs": 4})


def test_every_recipe_of_the_project_is_one() -> None:
    assert len(RECIPES) > 15
    recipes = {path.stem: read_recipe(path) for path in RECIPES}
    assert all(recipe.description for recipe in recipes.values())


def test_the_page_of_keys_is_that_of_the_source() -> None:
    spec = importlib.util.spec_from_file_location("make_recipe_keys", DOCS / "make_recipe_keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "recipes.md").read_text()
    assert module.page() == page, "run docs/make_recipe_keys.py"
    keys = [line for line in page.partition("## Keys")[2].splitlines() if line.startswith("| `")]
    assert len(keys) > 60
    assert not [line for line in keys if line.endswith("|  |")]
