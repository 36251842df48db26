"""What a run is predicted to take: counts, bytes and refusals, against what stages really do."""

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager  # noqa: F401  # first, since it is what takes long
from msgspec import structs
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from muscle.demo.bases import build_tokenizer
from muscle.errors import MuscleError
from muscle.update import estimate, stages
from muscle.update.across.old_teachers import read_likelihoods
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.estimate import check_weights, forecast, memory, print_estimate, probe, refuse, shapes
from muscle.update.estimate.forecast import Cost, Forecast
from muscle.update.estimate.inputs import SAMPLE, Inputs, is_taught
from muscle.update.estimate.memory import Bytes
from muscle.update.lora import add_adapter
from muscle.update.models import load_base
from muscle.update.pipeline import CHECKPOINTS, Report, Stage
from muscle.update.plan import Plan
from muscle.update.recipe import Base, EvaluationSettings, LoraSettings, Recipe, Side, TaskSettings, TrainingSettings
from muscle.update.recipe_file import read_recipe
from muscle.update.scratch import train_tokenizer
from muscle.update.teacher_cache import Texts, compute_states
from muscle.update.teachers import LiveTeacher
from muscle.update.tokenized import PaddingCollator, TokenizedExamples

from . import commands
from .commands import run, stop_when

LORA = LoraSettings(rank=4, alpha=8)
TRAINING = TrainingSettings(epochs=2, batch_size=5, accumulation=2, warmup_steps=0, learning_rate=1e-3)


@pytest.fixture(scope="module")
def recipe(world: Path) -> Recipe:
    task = TaskSettings(include_path=str(world / "tasks"), validation_share=None)
    return Recipe(
        old=Side(base=str(world / "v1")),
        new=Side(base=str(world / "v2")),
        tasks={"scenes": task, "sums": task},
        controls=("cross_entropy", "ensemble"),
        lora=LORA,
        training=TRAINING,
    )


@pytest.fixture(scope="module")
def plan(recipe: Recipe) -> list[Stage]:
    return Plan(recipe).stages()


@pytest.fixture(scope="module")
def done(plan: Sequence[Stage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages of one of the tasks, run one after the other in this process."""
    root = tmp_path_factory.mktemp("run")
    for stage in plan:
        if "sums" in stage.name and stage.function is not stages.package:
            _run(stage, root)
    return root


def _run(stage: Stage, root: Path) -> None:
    folder = root / stage.name
    folder.mkdir(parents=True)
    stage.function(
        folder, lambda *_: None, **stage.settings, **{key: root / name for key, name in stage.inputs.items()}
    )
    for path in sorted((folder / CHECKPOINTS).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _inputs(plan: Sequence[Stage], work: Path) -> Inputs:
    return Inputs(plan, work / "nowhere", frozenset(), work / "work")


def _stage(plan: Sequence[Stage], name: str) -> Stage:
    return next(stage for stage in plan if stage.name == name)


@pytest.fixture
def counted() -> Iterator[dict[str, int]]:
    """Texts and tokens that go forward through a whole model in training."""
    seen = {"texts": 0, "tokens": 0}

    def count(module: nn.Module, _: object, given: dict[str, Tensor]) -> None:
        if isinstance(module, LlamaForCausalLM) and module.training:
            seen["texts"] += len(given["attention_mask"])
            seen["tokens"] += int(given["attention_mask"].sum())

    class Hook(nn.Module):
        pass

    own = LlamaForCausalLM.forward

    def forward(self: LlamaForCausalLM, *args: Tensor, **given: Tensor) -> object:
        count(self, args, given)
        return own(self, *args, **given)

    LlamaForCausalLM.forward = forward  # type: ignore[assignment,method-assign]
    yield seen
    LlamaForCausalLM.forward = own  # type: ignore[method-assign]


@pytest.mark.parametrize("task", ["scenes", "sums"])
def test_texts_and_tokens_are_those_of_the_training(
    plan: list[Stage], task: str, counted: dict[str, int], tmp_path: Path
) -> None:
    stage = _stage(plan, f"adapters/{task}/old")
    texts = _inputs(plan, tmp_path).texts(stage)
    _run(stage, tmp_path)
    assert (counted["texts"], counted["tokens"]) == (2 * texts.training, 2 * texts.tokens)


def test_items_are_those_of_the_log(plan: list[Stage], done: Path) -> None:
    inputs = _inputs(plan, done)
    for name in ("logs/sums/old", "logs/sums/muscle"):
        (log,) = (done / name).rglob("samples_*.jsonl")
        assert inputs.items(_stage(plan, name)).number == len(log.read_text().splitlines())


def test_items_are_as_long_as_prompts_with_their_shots(plan: list[Stage], tmp_path: Path) -> None:
    stage, tokenizer = _stage(plan, "logs/sums/old"), build_tokenizer()
    shots = 3
    task = {**stage.settings["task"], "settings": {**stage.settings["task"]["settings"], "num_fewshot": shots}}
    items = _inputs(plan, tmp_path).items(replace(stage, settings={**stage.settings, "task": task}))
    rows = stages.task_of(task, None).examples("training")[:SAMPLE]
    assert items.longest == (1 + shots) * max(len(tokenizer.tokenize(row.context + row.answer)) for row in rows)
    assert items.answer == 2  # a number, and the end of text
    assert _inputs(plan, tmp_path).items(_stage(plan, "logs/scenes/old")).answer is None


def test_adapter_and_adam_have_the_predicted_bytes(world: Path) -> None:
    model = add_adapter(load_base(Base(base=str(world / "v1"))), LORA, 0)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    optimizer.step()
    moments = [each for state in optimizer.state.values() for each in state.values() if each.dim()]
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    config = AutoConfig.from_pretrained(world / "v1")
    predicted = memory.ADAM * shapes.adapter_weights(config, LORA)
    assert predicted == sum(each.nbytes for each in (*trained, *gradients, *moments))


def test_base_and_kept_states_have_the_predicted_bytes(plan: list[Stage], world: Path, tmp_path: Path) -> None:
    stage = _stage(plan, "adapters/scenes/muscle")
    base, counts = load_base(Base(base=str(world / "v1"))), _inputs(plan, tmp_path)
    config = counts.config(stage, "old")
    assert memory.base_bytes(config, stage.settings["old"]["base"]) == sum(each.nbytes for each in base.parameters())
    tokenizer = build_tokenizer()
    data = TokenizedExamples(stages.task_of(stage.settings["task"], None).examples("training"), tokenizer)
    states = compute_states(base, Texts(data, PaddingCollator(0)), "auto", None, lambda *_: None)
    texts = counts.texts(stage)
    # the first token of a text is no target
    assert memory.cache_bytes(stage, counts, "old", texts) == states.rows.nbytes


@pytest.fixture(scope="module")
def retokenized(recipe: Recipe, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe with an old base that reads bytes and pieces of words; its weights are not there."""
    folder = tmp_path_factory.mktemp("pieces")
    tokenizer = train_tokenizer((world / "tasks/scenes/train.jsonl").read_text().splitlines(), 330)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.from_pretrained(world / "v1")
    config.vocab_size = len(tokenizer)
    config.save_pretrained(folder)
    return structs.replace(recipe, old=Side(base=str(folder)))


def _aligned(recipe: Recipe, work: Path, **alignment: Any) -> tuple[Stage, Inputs]:
    plan = Plan(structs.replace(recipe, alignment=AlignmentSettings(**alignment))).stages()
    return _stage(plan, "adapters/sums/muscle"), _inputs(plan, work)


def test_an_old_teacher_with_another_tokenizer_leaves_what_it_says_of_its_own_tokens(
    recipe: Recipe, retokenized: Recipe, tmp_path: Path
) -> None:
    stage, inputs = _aligned(retokenized, tmp_path, across="likelihood")
    assert _inputs([stage], tmp_path).texts(_stage(Plan(recipe).stages(), stage.name)).old_targets is None
    folder = Path(stage.settings["old"]["base"]["base"])
    rows = stages.task_of(stage.settings["task"], None).examples("training")
    theirs = Texts(TokenizedExamples(rows, AutoTokenizer.from_pretrained(folder)), PaddingCollator(0))
    network = LlamaForCausalLM(AutoConfig.from_pretrained(folder))
    said = read_likelihoods(LiveTeacher(network), theirs, torch.zeros(0, dtype=torch.bool), None, lambda *_: None)
    kept = sum(each.nbytes for each in vars(said).values())
    assert memory.cache_bytes(stage, inputs, "old", inputs.texts(stage)) == kept
    states = compute_states(network, theirs, "auto", None, lambda *_: None)
    for across in (None, "shared"):
        stage, inputs = _aligned(retokenized, tmp_path, across=across)
        assert memory.cache_bytes(stage, inputs, "old", inputs.texts(stage)) == states.rows.nbytes
    # named, it goes that way with one tokenizer as well
    stage, inputs = _aligned(recipe, tmp_path, across="texts")
    assert memory.cache_bytes(stage, inputs, "old", inputs.texts(stage)) == 9 * inputs.texts(stage).targets


def test_an_old_teacher_with_another_tokenizer_is_gone_before_training(
    recipe: Recipe, retokenized: Recipe, tmp_path: Path
) -> None:
    found = {}
    for cache in ("memory", "disk", "off"):
        stage, inputs = _aligned(retokenized, tmp_path, teacher_cache=cache, across="likelihood")
        found[cache] = forecast.bytes_of(stage, inputs)
    kept = memory.cache_bytes(stage, inputs, "old", inputs.texts(stage))
    new = memory.cache_bytes(stage, inputs, "new", inputs.texts(stage))
    assert [found[cache].host for cache in found] == [kept + new, 0, kept]
    for cache, less in (("memory", memory.head_bytes), ("off", memory._loaded)):  # without the old head, the old model
        same = _aligned(recipe, tmp_path, teacher_cache=cache)
        assert forecast.bytes_of(*same).memory - found[cache].memory == less(*same, "old"), cache
    rates = probe.probe(stage, inputs)  # in which the old teacher reads, teachers off or not
    assert rates.per_text > 0
    assert probe.teachers(stage, inputs) == ("old",)


@pytest.mark.parametrize("lora", [LORA, None])
def test_saved_activations_are_those_of_a_real_forward_pass(lora: LoraSettings | None) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    body = add_adapter(model.requires_grad_(False), lora, 0).get_base_model().model if lora else model.model
    own = {weight.untyped_storage().data_ptr() for weight in body.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        body.train()(input_ids=torch.zeros(3, 40, dtype=torch.long), attention_mask=torch.ones(3, 40), use_cache=False)
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert shapes.saved_bytes(config, lora, 3, 40) == pytest.approx(real, rel=0.1)


def test_disk_is_what_a_run_leaves_and_time_is_that_of_its_stages(plan: list[Stage], done: Path) -> None:
    missing = [stage for stage in plan if (done / stage.name).exists()]
    found = forecast.forecast(_inputs(plan, done), missing, 1, 1e12, start_up=0.0)
    for kind in ("adapters", "logs", "checks"):
        left = sum(path.stat().st_size for path in (done / kind).rglob("*") if path.is_file())
        predicted = sum(cost.bytes.left for name, cost in found.costs.items() if name.startswith(kind))
        assert predicted == pytest.approx(left, rel=0.3), kind
    assert all(cost.seconds for cost in found.costs.values())
    one, twice = (found.costs[f"adapters/sums/{name}"].seconds for name in ("new", "muscle"))
    assert twice > one  # teachers read the texts first


@dataclass
class Clock:
    """A clock that only miniatures move."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_rates_are_those_of_a_training_whose_parts_take_known_time(
    plan: list[Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, inputs, clock = _stage(plan, "adapters/sums/muscle"), _inputs(plan, tmp_path), Clock()
    monkeypatch.setattr(inputs, "of", lambda stage, changes, layers: ({**stage.settings, **changes}, {}))
    texts = replace(inputs.texts(stage), opening=1.0, preparing=30.0)
    inputs.remember(inputs.counts_key(stage), texts)
    monkeypatch.setattr(probe, "time", clock)
    setup, opening, reading, update, validation, save = 7.0, 1.0, 3.2, 2.0, 2.5, 0.25

    def train(destination: Path, report: Report, **settings: Any) -> None:
        share = settings["task"]["settings"]["train_limit"] / texts.training
        clock.now += setup + opening + 30.0 * share
        for _ in range(2):  # teachers
            for _ in range(3):
                clock.now += reading
                report(0.0, "")
        for _ in range(2):
            for _ in range(probe.UPDATES):
                clock.now += update
                report(0.0, "")
            clock.now += validation + save
        (destination / "log.jsonl").write_text('{"loss": 1}\n' * 2 * probe.UPDATES)

    monkeypatch.setattr(stages, "align", train)
    monkeypatch.setattr(probe, "TRAINING", (train,))
    rates = probe.probe(replace(stage, function=train), inputs)
    assert rates.per_step == pytest.approx(update)
    texts_read = min(texts.training, probe.UPDATES * 10)
    assert rates.per_text == pytest.approx(3 * reading / texts_read)  # each teacher reads them in three batches
    assert rates.setup == pytest.approx(setup)
    held_out = rates.per_held_out * texts.held_out
    assert rates.boundary + held_out == pytest.approx(validation + save)
    assert rates.tail + held_out == pytest.approx(validation + save)


def test_teachers_that_another_stage_keeps_are_not_read_again(recipe: Recipe, tmp_path: Path) -> None:
    disk = structs.replace(recipe, alignment=AlignmentSettings(teacher_cache="disk"))
    plan = Plan(disk).stages()
    inputs, rates = _inputs(plan, tmp_path), probe.Rates(setup=1.0, per_text=1.0)
    texts = replace(inputs.texts(_stage(plan, "adapters/sums/muscle")), opening=0.0, preparing=0.0)
    for stage in plan:
        if ("sums" in stage.name and "training" in stage.settings) or stage.name.startswith("teachers/sums"):
            inputs.remember(inputs.counts_key(stage), texts)
    seconds = {
        stage.name: forecast._cost(stage, rates, Bytes(0), inputs).seconds
        for stage in plan
        if "sums" in stage.name and is_taught(stage)
    }
    assert seconds["teachers/sums/old"] == seconds["teachers/sums/new"] == 1.0 + texts.training
    assert seconds["adapters/sums/muscle"] == 1.0


def test_evaluations_on_other_back_ends_are_not_measured(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = structs.replace(recipe, evaluation=EvaluationSettings(backend="vllm"))
    plan = [replace(stage, inputs={}) for stage in Plan(served).stages() if stage.name.startswith("logs/")]
    console = Console(width=100, file=io.StringIO())
    monkeypatch.setattr(
        estimate,
        "_measure",
        lambda stages, root, done, *_: forecast.forecast(Inputs(stages, root, done, tmp_path), stages, 1, 1e12, 0.0),
    )
    assert print_estimate(plan, tmp_path / "run", 1, console)
    assert console.file.getvalue().count("not measured") == 2  # a line for each task


def test_done_stages_take_nothing_and_stages_side_by_side_take_the_time_of_the_longest_chain() -> None:
    def stage(name: str, *reads: str) -> Stage:
        return Stage(name, stages.adapt, {}, {read: read for read in reads})

    whole = [stage("a"), stage("b"), stage("c", "a", "b"), stage("d", "a"), stage("e", "a")]
    costs = {name: Cost(name, seconds, Bytes(1.0)) for name, seconds in zip("abcde", (3, 5, 4, 1, 6), strict=True)}
    found = Forecast(costs, process=10.0, start_up=2.0)
    assert found.seconds(whole, 1) == 2 + 19
    # a 0-5, b 0-7, d 5-6, e 6-12, c 7-11
    assert found.seconds(whole, 2) == 12
    assert found.memory(2) == 22
    del costs["a"], costs["e"]
    assert found.seconds(whole, 1) == 2 + 10


def test_what_does_not_fit_is_refused_with_the_changes_that_would_make_it(plan: list[Stage], tmp_path: Path) -> None:
    missing = [stage for stage in plan if stage.function is stages.align]
    counts = _inputs(plan, tmp_path)
    costs = {each.name: Cost(each.name, None, forecast.bytes_of(each, counts)) for each in missing}
    found = Forecast(costs, process=0.0, start_up=0.0)
    one = found.memory(1)
    assert "--jobs 1" in forecast.remedies(found, missing, counts, 2, one)
    named = forecast.remedies(found, missing, counts, 1, 0.8 * one)
    assert any("batch_size: 1" in words for words in named)
    assert not any("dtype: bfloat16" in words for words in forecast.remedies(found, missing, counts, 1, 0.8 * one))
    assert forecast.remedies(found, missing, counts, 1, 10.0) == ()
    assert "smaller bases" in (refuse(found, 1, memory=10.0, disk=1e12) or "")
    assert "disk" in (refuse(found, 1, memory=1e12, disk=10.0) or "")
    assert refuse(found, 1, memory=1e12, disk=1e12) is None


@pytest.fixture
def huge(world: Path, tmp_path: Path) -> Path:
    """A recipe whose new base has the configuration of a model of 70 billion weights, and no weights."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "huge")
    build_tokenizer().save_pretrained(tmp_path / "huge")
    task = {"include_path": str(world / "tasks"), "validation_share": None}
    base = {"base": str(tmp_path / "huge")}
    recipe = {"old": base, "new": base, "tasks": {"scenes": task}, "lora": {"rank": 8}, "training": {"warmup_steps": 0}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return tmp_path


def test_seventy_billion_weights_are_refused_by_their_configuration_alone(huge: Path, tmp_path: Path) -> None:
    plan = Plan(read_recipe(huge / "recipe.yaml")).stages()
    with pytest.raises(MuscleError, match=r"needs 141\.\d GB of memory for its weights alone"):
        check_weights(plan, huge / "run")
    inputs = Inputs(plan, huge / "run", frozenset(), tmp_path / "work")
    checked = [stage for stage in plan if not stage.name.startswith("checks/")]
    found = forecast.forecast(inputs, checked, 1, 1e11, start_up=0.0)
    assert found.memory(1) > 141e9
    assert all(cost.seconds is None for cost in found.costs.values())
    assert any("4bit" in words for words in found.remedies)


@pytest.mark.slow
def test_estimate_of_what_does_not_fit_ends_with_code_2_and_writes_nothing(huge: Path) -> None:
    before = sorted(huge.rglob("*"))
    done = run("update", "recipe.yaml", "--estimate", cwd=huge)
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stdout.split())
    assert "It does not fit: it needs about 1" in said  # 141 GB of weights
    assert "smaller base" in said or "quantization" in said
    assert sorted(huge.rglob("*")) == before


@pytest.mark.slow
def test_estimate_of_an_update_measures_in_other_processes(world: Path, tmp_path: Path) -> None:
    task = {"include_path": str(world / "tasks"), "validation_share": None}
    sides = {side: {"base": str(world / version)} for side, version in (("old", "v1"), ("new", "v2"))}
    recipe = {**sides, "tasks": {"sums": task}, "lora": LORA.as_dict(), "training": TRAINING.as_dict()}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = run("update", "recipe.yaml", "--estimate", "--jobs", "2", cwd=tmp_path, seconds=400)
    assert (done.returncode, done.stderr) == (0, "")
    assert "It fits." in done.stdout
    assert "not measured" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_base_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"old": {"base": "no/such"}, "new": {"base": "no/such"}, "tasks": {"piqa": {}}})
    )
    done = run("update", "recipe.yaml", "--estimate", cwd=tmp_path)
    assert done.returncode == 2
    assert "no/such" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    def __init__(self, config):
        {first}
        super().__init__(config)
"""


def with_code(world: Path, root: Path, first: str = "pass") -> Path:
    """A folder with a recipe whose bases come with code of their own, which does something first."""
    for version in ("v1", "v2"):
        shutil.copytree(world / version, root / version)
        file = root / version / "config.json"
        own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "own", "auto_map": own}))
        (root / version / "own.py").write_text(CODE.format(first=first))
    task = {"include_path": str(world / "tasks"), "validation_share": None, "training": {"epochs": 1}}
    sides = {
        side: {"base": str(root / version), "trust_remote_code": True}
        for side, version in (("old", "v1"), ("new", "v2"))
    }
    recipe = {**sides, "tasks": {"sums": task}, "lora": LORA.as_dict(), "training": TRAINING.as_dict()}
    (root / "recipe.yaml").write_text(json.dumps({**recipe, "controls": []}))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--estimate",)])
def test_bases_with_code_of_their_own_are_updated_and_estimated(
    how: tuple[str, ...], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(commands.ENVIRONMENT, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    done = run("update", "recipe.yaml", *how, cwd=with_code(world, tmp_path), seconds=400)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("It fits." in done.stdout) == bool(how)


def test_code_that_does_not_run_without_weights_is_left_uncounted(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with_code(world, tmp_path, "import torch; torch.ones(1).tolist()")  # which no tensor without storage can tell
    plan = Plan(read_recipe(tmp_path / "recipe.yaml")).stages()
    check_weights(plan, tmp_path / "run")
    with pytest.raises(shapes.UncountableError, match=r"base .*/v[12]: what it takes cannot be told") as raised:
        forecast.bytes_of(_stage(plan, "adapters/sums/old"), _inputs(plan, tmp_path))
    assert isinstance(raised.value, MuscleError)


def test_bases_with_code_of_their_own_count_as_others_do(
    world: Path, plan: list[Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = Plan(read_recipe(with_code(world, tmp_path) / "recipe.yaml")).stages()
    for name in ("adapters/sums/old", "logs/sums/old"):
        found = [forecast.bytes_of(_stage(each, name), _inputs(each, tmp_path / "work")) for each in (own, plan)]
        assert found[0] == replace(found[1], left=found[0].left)
    rates = probe.probe(_stage(own, "logs/sums/old"), _inputs(own, tmp_path / "work"), layers=1)
    assert rates.per_text > 0


def test_a_run_that_is_done_is_checked_without_the_libraries(plan: list[Stage], tmp_path: Path) -> None:
    """In a process of its own, in which nothing else has loaded them."""
    code = """
import sys
from pathlib import Path
from muscle.update import estimate
estimate.done_stages = lambda stages, root, keep: frozenset({"a"})
class Stage: name = "a"
estimate.check_weights([Stage()], Path("nowhere"))
print(sorted({"torch", "transformers", "peft"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_estimate_that_is_stopped_leaves_nothing_behind(
    by: signal.Signals, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "temporary"
    work.mkdir()
    monkeypatch.setitem(commands.ENVIRONMENT, "TMPDIR", str(work))
    task = {"include_path": str(world / "tasks"), "validation_share": None}
    sides = {side: {"base": str(world / version)} for side, version in (("old", "v1"), ("new", "v2"))}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**sides, "tasks": {"sums": task}}))
    begun = "muscle-estimate-*/miniatures/*"
    code, _, _ = stop_when(
        lambda: any(work.glob(begun)), "update", "recipe.yaml", "--estimate", "--jobs", "2", cwd=tmp_path, by=by
    )
    assert code == 128 + by
    assert not list(work.glob("muscle-estimate-*"))


def test_a_search_keeps_teachers_on_disk(recipe: Recipe, tmp_path: Path) -> None:
    """Whatever its recipe says, but off: all its trials read them."""
    methods: dict[str, dict[str, Any]] = {"plain": {}, "auto": {"search": {}}}
    plan = Plan(structs.replace(recipe, methods=methods)).stages()
    inputs = _inputs(plan, tmp_path)
    plain, auto = (forecast.bytes_of(_stage(plan, f"adapters/sums/{name}"), inputs) for name in methods)
    assert plain.host > auto.host == 0
    assert auto.passing == plain.passing + plain.host


def test_a_configuration_may_name_its_precision() -> None:
    """As one that was read and written again does."""
    config = AutoConfig.for_model("llama", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    plain = {"dtype": "auto", "quantization": None}
    for dtype in ("bfloat16", torch.bfloat16):
        config.dtype = dtype
        assert memory.base_bytes(config, plain) == memory.base_bytes(config, {**plain, "dtype": "float32"}) / 2
