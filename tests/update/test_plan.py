"""Which stages a recipe has, and which of them a changed recipe runs again. Nothing here is trained."""

import fnmatch
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from muscle.update.pipeline import Stage, fingerprint
from muscle.update.plan import PROJECT_TASKS, RESEED, Plan
from muscle.update.provenance import files_digest
from muscle.update.recipe import Recipe
from muscle.update.recipe_file import make_recipe, read_recipe
from muscle.update.run import stand_in

HUB: dict[str, Any] = {
    "old": {"base": "models/v1", "architecture": "llama"},
    "new": {"base": "models/v2", "architecture": "qwen3"},
    "tasks": {"piqa": {}, "samsum": {}},
    "methods": {"muscle": {}, "paper": {"temperature": 2.0}},
    "controls": ["cross_entropy", "old_teacher", "reseeded", "ensemble"],
}
SCRATCH = HUB | {"old": {"scratch": {"seed": 1}}, "new": {"scratch": {"seed": 2}}}
RECIPES = sorted(PROJECT_TASKS.parent.rglob("[!_]*.yaml"))


def plan(content: Mapping[str, Any], *overrides: str) -> list[Stage]:
    return Plan(make_recipe(content, overrides)).stages()


def rerun(before: list[Stage], after: list[Stage]) -> set[str]:
    """Names of the stages of `after` that a run of `before` has not done."""
    done, wanted = fingerprint(before), fingerprint(after)
    return {name for name, value in wanted.items() if done.get(name) != value}


def matching(stages: list[Stage], *patterns: str) -> set[str]:
    """Names of stages by patterns; "!" before one takes its stages away."""
    names, chosen = [stage.name for stage in stages], set[str]()
    for pattern in patterns:
        found = set(fnmatch.filter(names, pattern.removeprefix("!")))
        assert found, f"no stage is called {pattern}"
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    return chosen


def recipes() -> list[Any]:
    files = [file for file in RECIPES if file.parent != PROJECT_TASKS]
    return [pytest.param(read_recipe(file), id=str(file.relative_to(PROJECT_TASKS.parent))) for file in files]


ON_DISK = {"alignment": {"teacher_cache": "disk"}}


@pytest.mark.parametrize("recipe", [*recipes(), *map(make_recipe, (HUB, SCRATCH, HUB | ON_DISK, SCRATCH | ON_DISK))])
def test_a_stage_comes_after_what_it_reads_and_is_plain(recipe: Recipe) -> None:
    for version in (recipe, stand_in(recipe)):
        stages = Plan(version).stages()
        seen = set[str]()
        for stage in stages:
            assert set(stage.inputs.values()) <= seen, stage.name
            assert stage.name not in seen
            assert json.dumps(stage.settings)
            seen.add(stage.name)
        logs = {f"logs/{task}/{model}" for task in version.tasks for model in version.models}
        cards = {f"models/{task}/{method}" for task in version.tasks for method in version.methods}
        assert {name for name in seen if name.startswith("logs/")} == logs
        assert {name for name in seen if name.startswith("models/")} == cards
        read = {name for stage in stages for name in stage.inputs.values()}
        assert {name for name in seen - read if not name.startswith(("checks/", "logs/", "models/"))} == set()


def test_planning_and_status_load_no_torch(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe": make_recipe(HUB).as_dict()}))
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; "
        "from muscle.update.run import print_status; print_status(Path(sys.argv[1]), Console()); "
        "assert not sys.modules.keys() & {'torch', 'transformers', 'peft', 'lm_eval', 'datasets'}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"0 of {len(plan(HUB))} stages are done" in done.stdout


TRAINED = ("adapters/*/muscle", "adapters/*/paper", "adapters/*/cross_entropy", "adapters/*/old_teacher")
EVERY_MODEL = "*/*/*"
CHANGES: Mapping[str, tuple[str, ...]] = {
    "description=Another": ("models/*",),
    "paper_update=Llama 1->2": (),
    # what the loss reads, where the control of plain cross-entropy has none of it
    "alignment.temperature=1": ("adapters/*/muscle", "adapters/*/old_teacher", "logs/*/muscle", "logs/*/old_teacher",
                                "models/*"),
    "alignment.ce_share=0.5": ("*/muscle", "*/paper"),  # the control that distils the old model only has none
    "alignment.teacher_cache=off": (*TRAINED, "!*/cross_entropy", "logs/*/muscle", "logs/*/paper", "logs/*/old_teacher",
                                "models/*"),
    "alignment.weight=old_right": ("*/muscle", "*/paper"),
    "methods.paper.temperature=4": ("*/paper",),
    "methods.third={ce_share: 0.1}": ("*/third",),
    "controls=[cross_entropy]": ("checks/*", "models/*"),  # no ensemble, for which both must have one tokenizer
    # how adapters are made
    "training.epochs=3": (EVERY_MODEL,),
    "lora.rank=8": (EVERY_MODEL,),
    "alignment_training.epochs=3": (EVERY_MODEL, "!*/old", "!*/new", "!*/reseeded", "!*/ensemble"),
    # how they are evaluated
    "evaluation.limit=5": ("logs/*", "models/*"),
    "evaluation.draws=3": ("logs/*", "models/*"),
    # one task
    "tasks.piqa.seed=3": ("checks/piqa", "*/piqa/*",),
    "tasks.piqa.lora.rank=8": ("*/piqa/*",),
    "tasks.piqa.training.epochs=3": ("*/piqa/*",),
    "tasks.piqa.alignment.temperature=3": ("*/piqa/muscle", "*/piqa/old_teacher", "models/piqa/*"),
    "tasks.piqa.evaluation.limit=5": ("logs/piqa/*", "models/piqa/*"),
    # all text of the evaluation, shots included, is what both tokenizers must agree on before they are aligned
    "tasks.piqa.num_fewshot=2": ("checks/piqa", "*/piqa/*", "!adapters/*/old", "!adapters/*/new",
                                 "!adapters/*/reseeded", "!adapters/*/cross_entropy"),
    "tasks.arc_easy={}": ("checks/arc_easy", "*/arc_easy/*"),
    # one base
    "old.base=models/v0": ("checks/*", EVERY_MODEL, "!adapters/*/new", "!logs/*/new", "!adapters/*/reseeded",
                           "!logs/*/reseeded", "!adapters/*/cross_entropy", "!logs/*/cross_entropy"),
    "new.base=models/v3": ("checks/*", EVERY_MODEL, "!adapters/*/old", "!logs/*/old"),
    "new.dtype=bfloat16": ("checks/*", EVERY_MODEL, "!adapters/*/old", "!logs/*/old"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), CHANGES.items(), ids=list(CHANGES))
def test_a_change_runs_again_what_depends_on_it(change: str, expected: tuple[str, ...]) -> None:
    changed = plan(HUB, change)
    assert rerun(plan(HUB), changed) == matching(changed, *expected)


def test_teachers_on_disk_are_computed_once_for_all_that_read_them() -> None:
    disk = "alignment.teacher_cache=disk"
    stages = {stage.name: stage for stage in plan(HUB, disk)}
    for task in HUB["tasks"]:
        both = {"old_states": f"teachers/{task}/old", "new_states": f"teachers/{task}/new"}
        for model, read in {"muscle": both, "paper": both, "old_teacher": {"old_states": both["old_states"]},
                            "cross_entropy": {}, "new": {}}.items():  # fmt: skip
            inputs = stages[f"adapters/{task}/{model}"].inputs
            assert {keyword: name for keyword, name in inputs.items() if keyword.endswith("states")} == read
        assert stages[both["old_states"]].inputs == {"old_adapter": f"adapters/{task}/old"}
        assert stages[both["new_states"]].inputs == {"new_adapter": f"adapters/{task}/new"}
    assert len([name for name in stages if name.startswith("teachers/")]) == 4
    assert not any(stage.name.startswith("teachers/") for stage in plan(HUB))

    alone = plan(HUB, disk, "methods={}", "controls=[old_teacher]")
    assert {name for name in map(str, fingerprint(alone)) if "teachers/" in name} == {
        "teachers/piqa/old",
        "teachers/samsum/old",
    }
    rounded = plan(HUB, disk, "methods.paper.cache_dtype=bfloat16")
    assert {stage.name for stage in rounded} - stages.keys() == {
        f"teachers/{task}/{side}-bfloat16" for task in HUB["tasks"] for side in ("old", "new")
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    {
        "alignment.temperature=1": (),
        "alignment_training.epochs=3": (),
        "evaluation.limit=5": (),
        "tasks.piqa.num_fewshot=2": (),
        "alignment_training.tokens=answer": ("teachers/*",),
        "training.epochs=3": ("teachers/*",),
        "alignment.cache_dtype=float32": ("teachers/*",),
        "tasks.piqa.seed=3": ("teachers/piqa/*",),
        "old.base=models/v0": ("teachers/*/old",),
        "new.base=models/v3": ("teachers/*",),  # whose tokenizer makes the texts
    }.items(),
)
def test_a_change_computes_again_the_teachers_that_depend_on_it(change: str, expected: tuple[str, ...]) -> None:
    disk = "alignment.teacher_cache=disk"
    changed = plan(HUB, disk, change)
    again = {name for name in rerun(plan(HUB, disk), changed) if name.startswith("teachers/")}
    assert again == matching(changed, *expected)


def test_texts_beyond_the_gold_ones_are_kept_once_for_all_that_read_them() -> None:
    changes = (
        "alignment.teacher_cache=disk",
        "tasks.piqa.unlabelled=more",
        "tasks.samsum.unlabelled=rest",
        "methods={plain: {}, wide: {texts: choices}, more: {unlabelled: true}, "
        "both: {texts: choices, unlabelled: true}, again: {unlabelled: true, ce_share: 0.5}, "
        "ce: {weight: null, unlabelled: true}}",
        "controls=[cross_entropy]",
    )
    stages = {stage.name: stage for stage in plan(HUB, *changes)}
    kinds = ("", "-choices", "-unlabelled", "-choices-unlabelled")
    kept = [f"{side}{kind}" for kind in kinds for side in ("old", "new")]
    for task, named in (("piqa", "more"), ("samsum", "rest")):
        assert {name for name in stages if name.startswith(f"teachers/{task}/")} == {
            f"teachers/{task}/{name}" for name in (*kept, "answers")
        }
        read = {
            "plain": {"old_states": "old", "new_states": "new"},
            "wide": {"old_states": "old-choices", "new_states": "new-choices"},
            "more": {"old_states": "old-unlabelled", "new_states": "new-unlabelled", "answers": "answers"},
            "both": {"old_states": "old-choices-unlabelled", "new_states": "new-choices-unlabelled"},
            "ce": {},
        }
        read["again"] = read["more"]
        for method, expected in read.items():
            stage = stages[f"adapters/{task}/{method}"]
            found = {key: name for key, name in stage.inputs.items() if name.startswith("teachers/")}
            assert found == {key: f"teachers/{task}/{name}" for key, name in expected.items()}
            asks = method in ("more", "both", "again")
            assert stage.settings["task"]["settings"].get("unlabelled") == (named if asks else None)
        answers = stages[f"teachers/{task}/answers"]
        assert answers.inputs == {f"{side}_adapter": f"adapters/{task}/{side}" for side in ("old", "new")}
        assert answers.settings["evaluation"].keys() == {"backend", "backend_args", "batch_size"}
        assert stages[f"teachers/{task}/old-unlabelled"].inputs["answers"] == answers.name
        check = stages[f"checks/{task}"].settings
        assert (check["choices"], check["unlabelled"], check["task"]["settings"]["unlabelled"]) == (True, True, named)


def test_what_a_search_will_read_is_checked_first() -> None:
    stages = {stage.name: stage for stage in plan(HUB, "methods={auto: {search: {}}}", "tasks.piqa.unlabelled=more")}
    checks = {task: stages[f"checks/{task}"].settings for task in ("piqa", "samsum")}
    assert checks["piqa"]["unlabelled"]
    assert checks["piqa"]["task"]["settings"]["unlabelled"] == "more"
    assert "unlabelled" not in checks["samsum"]


def test_only_what_reads_inputs_without_labels_depends_on_their_name() -> None:
    before = plan(HUB, "methods.more={unlabelled: true}", "tasks.piqa.unlabelled=one", "tasks.samsum.unlabelled=one")
    after = plan(HUB, "methods.more={unlabelled: true}", "tasks.piqa.unlabelled=other", "tasks.samsum.unlabelled=one")
    assert rerun(before, after) == matching(after, "checks/piqa", "teachers/piqa/answers", "*/piqa/more")
    before, after = plan(HUB), plan(HUB, "tasks.piqa.unlabelled=one")
    assert rerun(before, after) == set()
    limited = plan(HUB, "methods.more={unlabelled: true}", "evaluation.limit=5")
    assert rerun(plan(HUB, "methods.more={unlabelled: true}"), limited) == matching(limited, "logs/*", "models/*")


def test_who_reads_no_old_model_does_not_wait_for_it() -> None:
    stage = {stage.name: stage for stage in plan(HUB, "methods={alone: {weight: mixture, old_share: 0}}")}
    assert "old" not in stage["adapters/piqa/alone"].settings
    assert stage["adapters/piqa/alone"].inputs == {"new_adapter": "adapters/piqa/new"}


def test_a_new_control_leaves_what_is_there_but_the_cards() -> None:
    before, after = plan(HUB, "controls=[cross_entropy]"), plan(HUB, "controls=[cross_entropy, reseeded]")
    assert rerun(before, after) == matching(after, "*/reseeded", "models/*")


def test_references_with_both_models_differ_by_their_name_alone() -> None:
    """The ensemble's record has none, so that finished runs stay finished."""
    stages = {stage.name: stage for stage in plan(HUB, "controls=[ensemble, reranked, gated]")}
    ensemble = stages["logs/piqa/ensemble"]
    assert set(ensemble.settings) == {"task", "evaluation", "split", "old", "new"}
    for name in ("reranked", "gated"):
        reference = stages[f"logs/piqa/{name}"]
        assert reference.settings == {**ensemble.settings, "name": name}
        assert (reference.function, reference.inputs) == (ensemble.function, ensemble.inputs)


def test_what_selects_by_flips_depends_on_the_evaluation_and_the_old_model() -> None:
    flips = "alignment_training.select_by=flips"
    before = plan(HUB, flips)
    for change in ("evaluation.limit=5", "tasks={piqa: {num_fewshot: 2}, samsum: {num_fewshot: 2}}"):
        after = plan(HUB, flips, change)
        assert rerun(before, after) - matching(after, "checks/*") == matching(after, *TRAINED, "logs/*", "models/*")
    after = plan(HUB, flips, "old.base=models/v0")
    assert "adapters/piqa/cross_entropy" in rerun(before, after)


def test_bases_from_scratch_depend_on_every_task_and_on_their_own_keys() -> None:
    before, apart = plan(SCRATCH), ("checks/*", EVERY_MODEL)  # the ensemble needs one tokenizer
    for change, expected in {
        "old.scratch.steps=7": ("bases/old", EVERY_MODEL, "!*/new", "!*/reseeded", "!*/cross_entropy"),
        "tasks.piqa.train_limit=9": ("checks/piqa", "bases/*", EVERY_MODEL),
        "old.scratch.vocabulary=2500": ("bases/old*", *apart, "!*/new", "!*/reseeded", "!*/cross_entropy"),
        "old.scratch.tokenizer=words": ("bases/old*", *apart, "!*/new", "!*/reseeded", "!*/cross_entropy"),
        "new.scratch.tokenizer=words": ("bases/*", *apart),
        "evaluation.limit=5": ("logs/*", "models/*"),
        "tasks.samsum={num_fewshot: 1}": ("checks/samsum", "*/samsum/*", "!adapters/*/old", "!adapters/*/new",
                                          "!adapters/*/reseeded", "!adapters/*/cross_entropy"),
        "training.epochs=2": (EVERY_MODEL,),
    }.items():  # fmt: skip
        after = plan(SCRATCH, change)
        assert rerun(before, after) == matching(after, *expected), change


def test_bases_from_scratch_share_a_tokenizer_if_they_ask_for_the_same() -> None:
    def tokenizers(*overrides: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
        stages = {stage.name: stage for stage in plan(SCRATCH, *overrides)}
        read = {side: stages[f"bases/{side}"].inputs["tokenizer"] for side in ("old", "new")}
        return {side: (name, stages[name].settings) for side, name in read.items()}

    shared = tokenizers()
    assert shared["old"] == shared["new"]
    assert shared["new"][1].keys() == {"vocabulary", "tasks"}
    assert "tokenizer" not in next(stage for stage in plan(SCRATCH) if stage.name == "bases/old").settings["scratch"]
    both = tokenizers("old.scratch.tokenizer=grouped", "new.scratch.tokenizer=grouped")
    assert both["old"] == both["new"]
    assert both["new"][1]["kind"] == "grouped"
    for change, value in (("tokenizer", "metaspace"), ("vocabulary", "900")):
        apart = tokenizers(f"old.scratch.{change}={value}")
        assert apart["new"] == shared["new"]
        assert apart["old"][0] == "bases/old_tokenizer"
        assert value in map(str, apart["old"][1].values())


def test_bases_depend_on_the_documents_that_they_read(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        (tmp_path / f"{version}.txt").write_text(f"{version} was here\n")
    chosen = (f"data={tmp_path}", "old.scratch.documents=v1.txt", "new.scratch.documents=v2.txt")
    before = plan(SCRATCH, *chosen)
    read = {stage.name: [file["file"] for file in stage.settings.get("documents", [])] for stage in before}
    assert read["bases/old"] == [str(tmp_path / "v1.txt")]
    assert set(read["bases/tokenizer"]) == {str(tmp_path / "v1.txt"), str(tmp_path / "v2.txt")}
    (tmp_path / "v1.txt").write_text("v1 was there\n")
    after = plan(SCRATCH, *chosen)
    assert rerun(before, after) == matching(after, "bases/*", EVERY_MODEL)  # new has words of the old one's documents


def test_a_changed_file_runs_again_the_task_that_reads_it(tmp_path: Path) -> None:
    for task in HUB["tasks"]:
        (tmp_path / task).mkdir()
        (tmp_path / task / "train.jsonl").write_text("{}\n")
    chosen = f"data={tmp_path}"
    before = plan(HUB, chosen)
    assert rerun(before, plan(HUB, chosen)) == set()
    (tmp_path / "samsum" / "train.jsonl").write_text("{}\n\n")
    after = plan(HUB, chosen)
    assert rerun(before, after) == matching(after, "checks/samsum", "*/samsum/*")

    yaml, include = tmp_path / "mine" / "mine.yaml", f"tasks.piqa.include_path={tmp_path / 'mine'}"
    yaml.parent.mkdir()
    yaml.write_text("task: mine\n")
    before = plan(HUB, include)
    yaml.write_text("task: yours\n")
    after = plan(HUB, include)
    assert rerun(before, after) == matching(after, "checks/piqa", "*/piqa/*")


def test_a_local_base_is_known_by_its_files(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = plan(HUB, f"new.base={tmp_path}")
    weights.write_bytes(b"two")
    after = plan(HUB, f"new.base={tmp_path}")
    assert rerun(before, after) == matching(after, "checks/*", EVERY_MODEL, "!adapters/*/old", "!logs/*/old")


def test_adapters_that_are_there_are_not_trained(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    there = f"old.adapters={{piqa: {tmp_path}, samsum: null}}"
    stages = {stage.name: stage for stage in plan(HUB, there)}
    assert not any(name.startswith("adapters/") and name.endswith("/old") for name in stages)
    assert stages["logs/piqa/old"].settings["model"]["adapter"] == str(tmp_path)
    assert stages["logs/samsum/old"].settings["model"]["adapter"] is None
    assert not stages["logs/piqa/old"].inputs
    for name in ("adapters/piqa/muscle", "logs/piqa/ensemble"):
        assert stages[name].settings["old"]["adapter"] == str(tmp_path)
        assert stages[name].inputs == {"new_adapter": "adapters/piqa/new"}

    before = plan(HUB, there)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    after = plan(HUB, there)
    assert rerun(before, after) == matching(
        after, "*/piqa/*", "!*/new", "!*/reseeded", "!adapters/*/cross_entropy", "!logs/*/cross_entropy"
    )


def test_the_shape_of_adapters_matters_where_one_is_made() -> None:
    there = "new.adapters={piqa: mine/adapter, samsum: null}"
    alone = "controls=[cross_entropy]"
    before, after = plan(HUB, there, alone), plan(HUB, there, alone, "lora.rank=8")
    again = rerun(before, after)
    assert "adapters/samsum/cross_entropy" in again  # a fresh adapter on a base that was fine-tuned whole
    assert "adapters/piqa/cross_entropy" not in again


def test_the_reseeded_adapter_differs_by_its_seed_alone() -> None:
    stages = {stage.name: stage for stage in plan(HUB, "training.seed=5")}
    new, again = (stages[f"adapters/piqa/{name}"] for name in ("new", "reseeded"))
    assert again.settings["training"] == {**new.settings["training"], "seed": 5 + RESEED}
    assert {**again.settings, "training": 0} == {**new.settings, "training": 0}
    assert (again.function, again.inputs) == (new.function, new.inputs)


def test_bases_and_tasks_that_other_stages_write_are_read_from_there() -> None:
    produced = {"old": "made/v1", "tasks": "made/tasks"}
    for stage in Plan(make_recipe(HUB), produced).stages():
        if stage.name.startswith("models/"):
            continue
        assert stage.inputs["tasks_folder"] == "made/tasks"
        read = set(stage.inputs.values())
        reads_old = stage.name.rpartition("/")[2] in ("old", "ensemble") or (
            stage.name.startswith("adapters/") and stage.name.endswith(("/muscle", "/paper", "/old_teacher"))
        )
        assert ("made/v1" in read) == reads_old, stage.name


def test_where_the_files_lie_decides_nothing(tmp_path: Path) -> None:
    digests = set()
    for definitions, data in (("a", "b"), ("b", "a")):
        root = tmp_path / definitions
        for folder, name in ((definitions, "task.yaml"), (data, "train.jsonl")):
            (root / folder).mkdir(parents=True)
            (root / folder / name).write_text(name)
        digests.add(files_digest([root / definitions], root / data))
    assert len(digests) == 1
