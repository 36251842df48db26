"""Task and compatibility adapters, from real task to a PEFT folder that loads."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import kl_div
from transformers import AutoConfig, AutoModelForCausalLM

from muscle.errors import MuscleError
from muscle.update import adapters, models, teachers
from muscle.update.across.same_tokenizer import tokenizer_difference
from muscle.update.adapters import (
    cache_teacher,
    train_compatibility_adapter,
    train_task_adapter,
)
from muscle.update.alignment_settings import AlignmentSettings, WeightName
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.pipeline import Report
from muscle.update.plan import Plan
from muscle.update.recipe import Base, EvaluationSettings, LoraSettings, TaskModel, TaskSettings, TrainingSettings
from muscle.update.recipe_file import make_recipe
from muscle.update.settings import SideName
from muscle.update.tasks import Task, load_task
from muscle.update.tokenized import PaddingCollator, TokenizedExamples

SETTINGS = TrainingSettings(epochs=3, learning_rate=3e-2, batch_size=8, accumulation=1, warmup_steps=0)
LORA = LoraSettings(rank=4, alpha=8)


def base(world: Path, name: str) -> Base:
    return Base(base=str(world / name))


def model(world: Path, name: str, adapter: str | Path) -> TaskModel:
    return TaskModel(base=base(world, name), adapter=str(world / adapter))


def task_of(world: Path, name: str) -> Task:
    return load_task(name, TaskSettings(include_path=str(world / "tasks"), validation_share=None))


def silent(*_: object) -> None: ...


def log_probabilities(network: torch.nn.Module, world: Path) -> torch.Tensor:
    """Of every next token of the training texts (N, V)."""
    data = TokenizedExamples(task_of(world, "scenes").examples("training"), load_tokenizer(base(world, "v1")))
    batch = PaddingCollator(0)([data[i] for i in range(len(data))])
    with torch.no_grad():
        logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1].log_softmax(-1)[batch["labels"][:, 1:] != -100]


def divergence_from(teacher: str, teacher_base: str, student: torch.nn.Module, world: Path) -> float:
    """Nats per token from a task model of the world to the student."""
    ours, theirs = (
        log_probabilities(student, world),
        log_probabilities(load_task_model(model(world, teacher_base, teacher)), world),
    )
    return kl_div(ours, theirs, reduction="batchmean", log_target=True).item()


def train(
    world: Path,
    alignment: AlignmentSettings,
    settings: TrainingSettings,
    out: Path,
    old: TaskModel | None = None,
    new: TaskModel | None = None,
    report: Report = silent,
) -> None:
    """Align on scenes, by default the world's two task models."""
    train_compatibility_adapter(
        old or model(world, "v1", "old"),
        new or model(world, "v2", "new"),
        task_of(world, "scenes"),
        alignment,
        LORA,
        settings,
        EvaluationSettings(),
        out,
        report,
    )


@pytest.fixture(scope="module")
def align(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[AlignmentSettings], Path]:
    def run(alignment: AlignmentSettings) -> Path:
        out = tmp_path_factory.mktemp("adapter")
        train(world, alignment, SETTINGS, out)
        return out

    return run


def test_task_adapter_is_an_ordinary_peft_adapter(world: Path, tmp_path: Path) -> None:
    train_task_adapter(base(world, "v1"), task_of(world, "sums"), LORA, SETTINGS, tmp_path, silent)
    files = {"adapter_config.json", "adapter_model.safetensors", "training.json", "provenance.json", "log.jsonl"}
    assert files <= {p.name for p in tmp_path.iterdir()}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    linear = {*(f"{x}_proj" for x in "qkvo"), "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == linear
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["training"]["epochs"] == 3
    assert len(record["result"]["validation_cross_entropy"]) == 3
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "v1"), str(tmp_path)).eval()
    assert not torch.allclose(
        log_probabilities(loaded, world), log_probabilities(AutoModelForCausalLM.from_pretrained(world / "v1"), world)
    )


def test_distilling_the_old_model_moves_towards_it(align: Callable[[AlignmentSettings], Path], world: Path) -> None:
    student = load_task_model(model(world, "v2", align(AlignmentSettings(weight="always_old"))))
    start = load_task_model(model(world, "v2", "new"))
    assert divergence_from("old", "v1", student, world) < 0.9 * divergence_from("old", "v1", start, world)
    assert divergence_from("new", "v2", student, world) > 0


def test_muscle_differs_from_both_single_objectives(align: Callable[[AlignmentSettings], Path], world: Path) -> None:
    runs = [
        load_task_model(model(world, "v2", align(alignment)))
        for alignment in (
            AlignmentSettings(weight="student_wrong", temperature=1.0),
            AlignmentSettings(weight="student_wrong", temperature=1.0, ce_share=0.3),
            AlignmentSettings(weight="always_old", temperature=1.0),
            AlignmentSettings(weight=None),
        )
    ]
    said = [log_probabilities(run, world) for run in runs]
    for i, one in enumerate(said):
        assert all(not torch.allclose(one, other, atol=1e-4) for other in said[i + 1 :])


def test_training_starts_from_the_new_task_adapter(world: Path, tmp_path: Path) -> None:
    """At a learning rate that changes nothing, the new task model comes back."""
    still = replace(SETTINGS, learning_rate=1e-12, epochs=1)
    train(world, AlignmentSettings(), still, tmp_path)
    student = log_probabilities(load_task_model(model(world, "v2", tmp_path)), world)
    torch.testing.assert_close(student, log_probabilities(load_task_model(model(world, "v2", "new")), world))


@pytest.mark.parametrize("weight", ["student_wrong", "always_old"])
def test_cached_and_live_teachers_teach_alike(
    weight: WeightName, align: Callable[[AlignmentSettings], Path], world: Path
) -> None:
    memory, disk, live = (
        log_probabilities(load_task_model(model(world, "v2", align(alignment))), world)
        for alignment in (AlignmentSettings(weight=weight, teacher_cache=where) for where in ("memory", "disk", "off"))
    )
    assert torch.equal(memory, disk)
    torch.testing.assert_close(memory, live, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["memory", "disk", "off"])
@pytest.mark.parametrize("select_by", ["cross_entropy", "flips"])
@pytest.mark.parametrize("adapter", ["new", None])
def test_no_base_is_loaded_beside_one_that_is_not_needed(
    where: Any, select_by: Any, adapter: str | None, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the student there is the old model where it is live, and never the new one a second time."""
    alive: list[weakref.ref[torch.nn.Module]] = []
    peak = [0]
    load_base = models.load_base

    def counting(wanted: Base) -> Any:
        base = load_base(wanted)
        alive.append(weakref.ref(base))
        peak.append(sum(there() is not None for there in alive))
        return base

    monkeypatch.setattr(models, "load_base", counting)
    gc.collect()
    gc.disable()  # what is gone must not be gone by chance
    try:
        settings = replace(SETTINGS, epochs=1, select_by=select_by)
        new = TaskModel(base=base(world, "v2"), adapter=adapter and str(world / adapter))
        train(world, AlignmentSettings(teacher_cache=where), settings, tmp_path, new=new)
    finally:
        gc.enable()
    assert max(peak) == (2 if where == "off" else 1)
    assert len(alive) == (3 if select_by == "flips" else 2)


@pytest.mark.parametrize("where", ["memory", "disk", "off"])
def test_teachers_are_as_they_were_after_a_resumption(
    where: Any, align: Callable[[AlignmentSettings], Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student that a checkpoint brings is not the new teacher: only its start is."""
    alignment = AlignmentSettings(teacher_cache=where)

    def killed(share: float, words: str) -> None:
        if words.startswith("epoch 2"):
            raise KeyboardInterrupt

    straight = align(alignment)
    with pytest.raises(KeyboardInterrupt):
        train(world, alignment, SETTINGS, tmp_path, report=killed)
    assert any((tmp_path / "checkpoints").glob("checkpoint-*/whole.json"))
    if where == "disk":  # they are there still, so that nothing is run again
        monkeypatch.setattr(teachers, "compute_states", None)
    train(world, alignment, SETTINGS, tmp_path)
    for name in ("adapter_model.safetensors", "log.jsonl"):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize("where", ["memory", "off"])
def test_what_is_saved_holds_nothing_of_the_teachers(
    where: Any, align: Callable[[AlignmentSettings], Path], world: Path
) -> None:
    out = align(AlignmentSettings(teacher_cache=where))
    saved, start = (load_file(folder / "adapter_model.safetensors") for folder in (out, world / "new"))
    assert saved.keys() == start.keys()
    assert not any("states" in path.name for path in out.iterdir())
    for checkpoint in (out / "checkpoints").glob("checkpoint-*"):
        assert load_file(checkpoint / "adapter_model.safetensors").keys() == start.keys()


def test_teachers_that_a_stage_has_kept_are_not_run_again(
    align: Callable[[AlignmentSettings], Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alignment, task = AlignmentSettings(teacher_cache="disk"), task_of(world, "scenes")
    old, new = model(world, "v1", "old"), model(world, "v2", "new")
    kept: dict[SideName, Path] = {"old": tmp_path / "old", "new": tmp_path / "new"}
    for side, given in (("old", old), ("new", None)):
        cache_teacher(given, new, task, "all", "auto", kept[side], silent)  # type: ignore[index]
    straight, out = align(alignment), tmp_path / "out"
    monkeypatch.setattr(teachers, "compute_states", None)
    train_compatibility_adapter(old, new, task, alignment, LORA, SETTINGS, EvaluationSettings(), out, silent, kept)
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (out, straight)]
    assert weights[0] == weights[1]
    assert not (out / "checkpoints" / "teachers").exists()


@pytest.mark.parametrize("flag", ["FSDP", "DEEPSPEED", "PARALLELISM_CONFIG", None])
def test_where_weights_are_to_be_sharded_no_teacher_shares_them(
    flag: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flag:
        monkeypatch.setenv(f"ACCELERATE_USE_{flag}", "true")
    assert adapters._is_sharded(SETTINGS) == bool(flag)
    assert adapters._is_sharded(replace(SETTINGS, deepspeed="zero2.json"))


def test_a_model_that_was_fine_tuned_whole_gets_a_fresh_adapter(world: Path, tmp_path: Path) -> None:
    whole = TaskModel(base=base(world, "v2"))
    train(world, AlignmentSettings(weight="always_old"), SETTINGS, tmp_path, TaskModel(base=base(world, "v1")), whole)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (LORA.rank, LORA.alpha)
    student = log_probabilities(load_task_model(model(world, "v2", tmp_path)), world)
    start, teacher = (log_probabilities(load_task_model(TaskModel(base=base(world, v))), world) for v in ("v2", "v1"))
    assert torch.dist(student, teacher) < 0.95 * torch.dist(start, teacher)


def test_selection_by_flips_keeps_the_epoch_with_the_fewest(world: Path, tmp_path: Path) -> None:
    by_flips = replace(SETTINGS, select_by="flips", learning_rate=1e-2)
    train(world, AlignmentSettings(weight="always_old", temperature=1.0), by_flips, tmp_path)
    result = json.loads((tmp_path / "training.json").read_text())["result"]
    flips = result["validation_flips"]
    assert len(flips) == 3
    assert flips[result["best_epoch"] - 1] == min(flips)


def test_a_word_of_the_evaluation_alone_makes_a_difference(world: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(world / "tasks", tasks)
    test = tasks / "scenes/test.jsonl"
    test.write_text(test.read_text().replace("scene :", "zebra :", 1))
    sides = []
    for version, number in (("v1", 7), ("v2", 8)):
        shutil.copytree(world / version, tmp_path / version)
        file = tmp_path / version / "tokenizer.json"
        vocabulary = json.loads(file.read_text())
        vocabulary["model"]["vocab"]["zebra"] = number
        file.write_text(json.dumps(vocabulary))
        sides.append(Base(base=str(tmp_path / version)))
    task = load_task("scenes", TaskSettings(include_path=str(tasks), validation_share=None))
    for _ in range(8):  # the word shares its id with another, and only one of the two is in what a tokenizer writes
        assert "tokenize 'zebra : " in (tokenizer_difference(*sides, load_tokenizer(sides[1]), task) or "")
    assert tokenizer_difference(sides[1], sides[1], load_tokenizer(sides[1]), task) is None


def test_plain_cross_entropy_needs_no_old_model(world: Path, tmp_path: Path) -> None:
    arguments = (model(world, "v2", "new"), task_of(world, "scenes"), AlignmentSettings(weight=None), LORA, SETTINGS)
    train_compatibility_adapter(None, *arguments, EvaluationSettings(), tmp_path, silent)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["alignment"]["weight"] is None
    assert len(json.loads((tmp_path / "provenance.json").read_text())["models"]) == 1


def test_the_log_of_steps_tells_what_the_loss_is_made_of(align: Callable[[AlignmentSettings], Path]) -> None:
    lines = [json.loads(line) for line in (align(AlignmentSettings()) / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 9
    wanted = {"old_divergence", "new_divergence", "aligned_to_old", "token_accuracy", "cross_entropy", "learning_rate"}
    for step in steps:
        assert wanted <= step.keys()
        assert step["aligned_to_old"] == pytest.approx(1 - step["token_accuracy"], abs=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"max_position_embeddings": 8},
            r"a training text has \d+ tokens, .* a window of 8: leave such items out",
        ),
        ({"vocab_size": 50}, r"the tokenizer gives token \d+, and .*v2 knows 50: resize its embeddings"),
    ],
)
def test_texts_that_do_not_fit_the_base_are_refused(
    world: Path, tmp_path: Path, config: dict[str, int], message: str
) -> None:
    small = shutil.copytree(world / "v2", tmp_path / "v2")
    changed = AutoConfig.from_pretrained(small, **config)
    AutoModelForCausalLM.from_config(changed).save_pretrained(small)
    with pytest.raises(MuscleError, match=message):
        train_task_adapter(Base(base=str(small)), task_of(world, "scenes"), LORA, SETTINGS, tmp_path / "out", silent)


def test_nothing_to_train_on_is_said(world: Path, tmp_path: Path) -> None:
    task = load_task("scenes", TaskSettings(include_path=str(world / "tasks"), validation_share=1.0))
    with pytest.raises(MuscleError, match="task scenes: nothing to train on: lower validation_share"):
        train_task_adapter(base(world, "v1"), task, LORA, SETTINGS, tmp_path, silent)


def test_without_held_out_items_the_last_epoch_is_kept(world: Path, tmp_path: Path) -> None:
    task = load_task("scenes", TaskSettings(include_path=str(world / "tasks"), validation_share=0.0))
    train_task_adapter(base(world, "v1"), task, LORA, SETTINGS, tmp_path, silent)
    result = json.loads((tmp_path / "training.json").read_text())["result"]
    assert (result["validation_cross_entropy"], result["best_epoch"]) == ([], 3)


def test_the_stages_of_a_recipe_hand_their_states_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "old": {"base": str(world / "v1"), "adapters": {"scenes": str(world / "old")}},
        "new": {"base": str(world / "v2"), "adapters": {"scenes": str(world / "new")}},
        "tasks": {"scenes": {"include_path": str(world / "tasks"), "validation_share": None}},
        "training": SETTINGS.as_dict() | {"epochs": 1},
        "alignment": {"teacher_cache": "disk"},
    }
    stages = {stage.name: stage for stage in Plan(make_recipe(content)).stages()}
    for name in ("teachers/scenes/old", "teachers/scenes/new", "adapters/scenes/muscle"):
        if name.startswith("adapters"):
            monkeypatch.setattr(teachers, "compute_states", None)  # all is there
        stage = stages[name]
        inputs = {keyword: tmp_path / read for keyword, read in stage.inputs.items()}
        (tmp_path / name).mkdir(parents=True)
        stage.function(tmp_path / name, silent, **stage.settings, **inputs)
    assert (tmp_path / "adapters/scenes/muscle/adapter_model.safetensors").exists()
