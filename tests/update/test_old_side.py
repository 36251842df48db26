"""Alignment to an old task model with another tokenizer, from real tasks to adapters."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from msgspec.structs import replace
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from muscle.errors import MuscleError
from muscle.update import teacher_cache, teachers, two_models
from muscle.update.across import old_side
from muscle.update.across.chunks import Chunks
from muscle.update.across.old_side import OldSide, way_across
from muscle.update.across.old_teachers import ChunkTeacher, Likelihoods, joined
from muscle.update.across.translations import shared_tokens
from muscle.update.adapters import train_compatibility_adapter
from muscle.update.alignment_settings import BY_LIKELIHOOD, Across, AlignmentSettings
from muscle.update.answers import keep_answers
from muscle.update.ensemble import Ensemble
from muscle.update.generation import Generated
from muscle.update.lora import add_adapter
from muscle.update.models import load_base, load_task_model, load_tokenizer
from muscle.update.plan import Plan
from muscle.update.prompts import Example
from muscle.update.recipe import (
    Base,
    EvaluationSettings,
    LoraSettings,
    Recipe,
    Reference,
    Scratch,
    Side,
    TaskModel,
    TaskSettings,
    TrainingSettings,
)
from muscle.update.scoring import evaluate, task_model_lm
from muscle.update.tasks import Task, load_task
from muscle.update.teacher_cache import Texts
from muscle.update.tokenized import TokenizedExamples
from muscle.update.training_data import TaskData
from muscle.update.two_models import Gated, reference

LORA = LoraSettings(rank=4, alpha=8)
SETTINGS = TrainingSettings(epochs=2, learning_rate=1e-2, batch_size=8, accumulation=1, warmup_steps=0)


def silent(*_: object) -> None: ...


def task_of(world: Path, name: str, **settings: Any) -> Task:
    return load_task(name, TaskSettings(include_path=str(world / "tasks"), validation_share=None, **settings))


def sides(world: Path, old: Path) -> tuple[TaskModel, TaskModel]:
    adapter = old / "adapter" if (old / "adapter").exists() else world / "old"
    new = TaskModel(base=Base(base=str(world / "v2")), adapter=str(world / "new"))
    return TaskModel(base=Base(base=str(old)), adapter=str(adapter)), new


def align(world: Path, old: Path, out: Path, alignment: AlignmentSettings, task: str = "scenes", **kept: Any) -> Path:
    models = sides(world, old)
    settings = replace(SETTINGS, tokens=kept.pop("tokens", "all"), **kept.pop("training", {}))
    arguments = task_of(world, task), alignment, LORA, settings, EvaluationSettings(), out, silent
    train_compatibility_adapter(*models, *arguments, **kept)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def assert_alike(one: Path, other: Path, tolerance: float = 2e-5) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance)


@pytest.fixture(scope="session")
def renamed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old base with all words under other numbers: the same model in another vocabulary."""
    out = tmp_path_factory.mktemp("renamed")
    network = AutoModelForCausalLM.from_pretrained(world / "v1")
    tokenizer = load_tokenizer(Base(base=str(world / "v1")))
    size = len(tokenizer)
    order = torch.cat([torch.arange(3), 3 + torch.randperm(size - 3, generator=torch.Generator().manual_seed(0))])
    with torch.no_grad():
        for layer in (network.get_input_embeddings(), network.get_output_embeddings()):
            layer.weight[order] = layer.weight.clone()
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = json.loads((out / "tokenizer.json").read_text())
    vocabulary = record["model"]["vocab"]
    record["model"]["vocab"] = {word: int(order[number]) for word, number in vocabulary.items()}
    (out / "tokenizer.json").write_text(json.dumps(record))
    return out


@pytest.fixture(scope="session")
def pieces(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old base and adapter with a byte-level tokenizer, which cuts the world's words into pieces."""
    out = tmp_path_factory.mktemp("pieces")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = (world / "tasks/scenes/train.jsonl").read_text().splitlines()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=330, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(out)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    model = add_adapter(load_base(Base(base=str(out))), LORA, 3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(out / "adapter")
    return out


# --------------------------------------------------------------------------------------- the same model, renamed words


@pytest.mark.parametrize("across", ["shared", "projected", "combined"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight": "mixture", "old_share": 0.6, "ce_share": 0.25}, {"weight": "always_old", "temperature": 1.0}],
)
def test_words_under_other_numbers_are_put_into_the_students(
    world: Path, renamed: Path, tmp_path: Path, across: Across, settings: dict[str, Any]
) -> None:
    same = align(world, world / "v1", tmp_path / "same", AlignmentSettings(**settings))
    every_boundary = AlignmentSettings(**settings, across=across, boundary_threshold=0.0)
    other = align(world, renamed, tmp_path / "other", every_boundary)
    assert_alike(same, other)
    assert json.loads((other / "training.json").read_text())["texts"]["aligned"] == 1.0


def test_nothing_has_to_be_set(world: Path, renamed: Path, tmp_path: Path) -> None:
    """Where the words are the same under other numbers, what is learnt is the same, too."""
    settings = AlignmentSettings(weight="mixture", old_share=0.7, temperature=1.0)
    assert_alike(*(align(world, old, tmp_path / old.name, settings) for old in (world / "v1", renamed)))


@pytest.mark.parametrize("across", ["likelihood", "texts", "ranks"])
def test_likelihoods_do_not_depend_on_the_numbers_of_words(
    world: Path, renamed: Path, tmp_path: Path, across: Across
) -> None:
    settings = AlignmentSettings(weight="mixture", old_share=0.7, temperature=1.0, across=across)
    same = align(world, world / "v1", tmp_path / "same", settings)
    other = align(world, renamed, tmp_path / "other", settings)
    assert_alike(same, other)
    token_by_token = weights(align(world, world / "v1", tmp_path / "full", replace(settings, across=None)))
    assert any(not torch.allclose(tensor, token_by_token[name], atol=1e-3) for name, tensor in weights(other).items())


def test_choices_are_comparable_whatever_the_tokens(world: Path, renamed: Path, tmp_path: Path) -> None:
    settings = AlignmentSettings(weight="always_old", level="choice", texts="choices")
    same = align(world, world / "v1", tmp_path / "same", settings, tokens="answer")
    other = align(world, renamed, tmp_path / "other", settings, tokens="answer")
    assert_alike(same, other)


# ------------------------------------------------------------------------------------------ a tokenizer of another kind


@pytest.mark.parametrize("across", [None, *get_args(Across)])
@pytest.mark.parametrize(("task", "tokens"), [("scenes", "answer"), ("sums", "all")])
def test_training_goes_through_with_any_way_across(
    world: Path, pieces: Path, tmp_path: Path, across: Across | None, task: str, tokens: Any
) -> None:
    settings = AlignmentSettings(weight="mixture", old_share=0.7, temperature=1.0, across=across)
    out = align(world, pieces, tmp_path, settings, task, tokens=tokens)
    record = json.loads((out / "training.json").read_text())
    assert 0 < record["texts"]["aligned"] <= 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(out).values())
    PeftModel.from_pretrained(load_base(Base(base=str(world / "v2"))), out)
    statistics = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any(line.get("old_divergence", 0) > 0 for line in statistics)


@pytest.mark.parametrize("across", get_args(Across))
def test_the_student_comes_nearer_to_the_old_model(world: Path, pieces: Path, tmp_path: Path, across: Across) -> None:
    settings = AlignmentSettings(weight="always_old", temperature=1.0, across=across, chunk_temperature=None)
    out = align(world, pieces, tmp_path, settings, training={"epochs": 8, "learning_rate": 3e-2})
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    distance = [step["old_divergence"] for step in steps if "old_divergence" in step]
    assert sum(distance[-3:]) < 0.8 * sum(distance[:3])


def test_chunks_of_real_models_add_up_to_their_texts(world: Path, pieces: Path) -> None:
    task, (old, new) = task_of(world, "sums"), sides(world, pieces)
    data = TaskData(new.base, task, "answer")
    side, texts = OldSide(old, task, data, "answer", "gold", "likelihood"), Texts(data.training, data.collator)
    said = side._likelihoods(None, silent)
    by_text = ChunkTeacher.by_text(said, side.texts, texts)
    for threshold in (0.0, 0.1, 1.0):
        by_chunk = ChunkTeacher.by_chunk(said, joined(side.parts, said, texts, threshold), texts)
        assert by_chunk.likelihood.sum().item() == pytest.approx(by_text.likelihood.sum().item(), rel=1e-5)
        assert by_chunk.aligned == 1.0
    assert len(by_chunk.likelihood) == len(data.training)  # with 1 nothing ends before the text does


def test_likelihoods_are_the_models_own(world: Path, pieces: Path) -> None:
    task, (old, new) = task_of(world, "scenes"), sides(world, pieces)
    side = OldSide(old, task, TaskData(new.base, task, "all"), "all", "gold", "likelihood")
    said = side._likelihoods(None, silent)
    model, data = load_task_model(old), side._data
    row = data.training[3]
    with torch.no_grad():
        logits = model(input_ids=row["input_ids"][None]).logits[0, :-1].log_softmax(-1)
    some = slice(side.texts.starts[3], side.texts.starts[4])
    gold = logits.gather(-1, row["labels"][1:, None])[:, 0]
    torch.testing.assert_close(said.gold[some], gold, rtol=1e-4, atol=1e-4)
    assert torch.equal(said.right[some], logits.argmax(-1) == row["labels"][1:])
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokens = data.tokenizer.convert_ids_to_tokens(range(len(data.tokenizer)))
    first = [bytes_of[token[0]] if token not in ("<pad>", "<eos>") else 0 for token in tokens]
    word = torch.tensor([byte < 128 and not chr(byte).isalnum() for byte in first])
    torch.testing.assert_close(said.begins[some], logits.exp()[:, word].sum(-1), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("across", "level"), [(None, "token"), *[(across, "token") for across in get_args(Across)], (None, "choice")]
)
def test_what_is_kept_on_disk_is_not_computed_again(
    world: Path, pieces: Path, tmp_path: Path, across: Across | None, level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: Any = "choices" if level == "choice" else "gold"
    settings = AlignmentSettings(weight="always_old", across=across, level=level, texts=texts, teacher_cache="disk")
    task = TaskSettings(include_path=str(world / "tasks"), validation_share=None)
    base = {side: Side(base=model.base.base) for side, model in zip(("old", "new"), sides(world, pieces), strict=True)}
    training = replace(SETTINGS, tokens="answer")
    recipe = Recipe(**base, tasks={"scenes": task}, alignment=settings, alignment_training=training.as_dict())
    (kept_by,) = (stage for stage in Plan(recipe).stages() if stage.name.startswith("teachers/scenes/old"))
    straight = align(world, pieces, tmp_path / "straight", replace(settings, teacher_cache="memory"), tokens="answer")
    models, folder = sides(world, pieces), tmp_path / "kept"
    folder.mkdir()
    kept_by.function(folder, silent, **kept_by.settings, old_adapter=models[0].adapter)
    likelihoods = {file.name for file in folder.iterdir()} == {"likelihoods.safetensors", "likelihoods.json"}
    assert likelihoods == (across in BY_LIKELIHOOD or level == "choice")
    monkeypatch.setattr(old_side, "compute_states", None)
    if likelihoods:
        monkeypatch.setattr(old_side, "read_likelihoods", None)
    kept = {"teacher_states": {"old": folder, "new": tmp_path / "none"}, "tokens": "answer"}
    assert_alike(straight, align(world, pieces, tmp_path / "again", settings, **kept), 0)
    if level == "token":
        with pytest.raises(MuscleError, match=r"kept holds what a teacher says of other texts: remove it"):
            align(world, pieces, tmp_path / "third", settings, "sums", **kept)


def test_room_is_for_what_both_teachers_say(
    world: Path, pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    check = teacher_cache.check_room

    def counted(size: int, *arguments: Any) -> None:
        asked.append(size)
        check(size, *arguments)

    monkeypatch.setattr(old_side, "check_room", counted)
    monkeypatch.setattr(teachers, "check_room", counted)
    align(world, pieces, tmp_path / "out", AlignmentSettings(weight="mixture"))
    new, both = asked
    monkeypatch.setattr(teacher_cache, "free_memory", lambda: (new + both) // 2)
    with pytest.raises(
        MuscleError, match=r"set `across` under `alignment` to likelihood, .*, or `teacher_cache` to `d"
    ):
        align(world, pieces, tmp_path / "no room", AlignmentSettings(weight="mixture"))


# -------------------------------------------------------------------------------------------------- the same token


def test_one_token_on_either_side_may_be_two() -> None:
    """An old tokenizer in lower case, and the student's, which tells "Red" from "red"."""
    texts = ["a Red cube and a red ball .", "the Blue cube ."]

    def words(lower: bool) -> PreTrainedTokenizerFast:
        known = sorted({word for text in texts for word in (text.lower() if lower else text).split()})
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["</s>", *known])}))
        tokenizer.normalizer = normalizers.Lowercase() if lower else None
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")

    sides = [TokenizedExamples([Example("", text) for text in texts], words(lower)) for lower in (False, True)]
    parts = Chunks.of(*sides)
    golds = [side.gold for side in sides]
    assert parts.alone(*golds, None).all()
    same = parts.alone(*golds, shared_tokens(words(False), words(True)).same)
    first = [[*text.split()[1:], "</s>"] for text in texts]  # the first token of a text is no target
    assert same.tolist() == [word == word.lower() for text in first for word in text]
    assert not same.all()


# ------------------------------------------------------------------------------------------------------- the decision


def test_tokenizers_without_offsets_are_heard_by_text_alone(world: Path, pieces: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    AutoModelForCausalLM.from_pretrained(pieces).save_pretrained(slow)
    model = LlamaForCausalLM(LlamaConfig(**{**json.loads((pieces / "config.json").read_text()), "vocab_size": 384}))
    model.save_pretrained(slow)
    ByT5Tokenizer().save_pretrained(slow)
    old = TaskModel(base=Base(base=str(slow)))
    _, new = sides(world, pieces)
    task = task_of(world, "sums")
    arguments = task, AlignmentSettings(weight="always_old"), LORA, SETTINGS, EvaluationSettings()
    with pytest.raises(MuscleError, match=r"tokenize '.*differently, and the tokenizer of .*slow gives no character "):
        train_compatibility_adapter(old, new, *arguments, tmp_path / "out", silent)
    texts = AlignmentSettings(weight="always_old", across="texts")
    train_compatibility_adapter(old, new, task, texts, *arguments[2:], tmp_path / "out", silent)


def test_logits_have_no_way_across(world: Path, pieces: Path, tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="distance: logits compares tokens, and an old model with another tokenizer"):
        align(world, pieces, tmp_path, AlignmentSettings(distance="logits"))


def test_the_settings_may_ask_for_a_way_that_is_not_needed(world: Path) -> None:
    task, models = task_of(world, "sums"), sides(world, world / "v1")
    data = TaskData(models[1].base, task, "all")
    assert way_across(*models, data, task, None) is None
    assert way_across(*models, data, task, "likelihood") == "likelihood"


# ----------------------------------------------------------------------------------------------------------- debiasing


@settings_of_hypothesis(max_examples=100)
@given(data=st.data(), threshold=st.sampled_from([0.0, 0.1, 0.5]))
def test_a_chunk_ends_where_a_word_may_begin(data: Any, threshold: float) -> None:
    """Against a loop over texts and chunks."""
    texts, student, old, starts, old_starts = [], [], [], [0], [0]
    count = 0
    for _ in range(data.draw(st.integers(1, 4))):
        lost = data.draw(st.booleans())
        parts = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=4))
        student += [-1] * lost + [count + i for i, (ours, _) in enumerate(parts) for _ in range(ours)]
        old += [-1] * lost + [count + i for i, (_, theirs) in enumerate(parts) for _ in range(theirs)]
        texts.append(range(count, count + len(parts)))
        count += len(parts)
        starts.append(len(student))
        old_starts.append(len(old))
    begins = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.9]), min_size=len(old), max_size=len(old)))
    )
    gold = -torch.arange(1.0, len(old) + 1)
    right = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(old), max_size=len(old))), dtype=torch.bool)

    parts_of = Chunks(np.array(student, dtype=np.int64), np.array(old, dtype=np.int64), count, 1.0)

    rows: Any = SimpleNamespace(starts=starts)
    said = Likelihoods(gold, right, begins.reshape(-1))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    alone = np.array(data.draw(st.none() | flags))
    given = None if alone.ndim == 0 else alone.astype(bool)
    teacher = ChunkTeacher.by_chunk(said, joined(parts_of, said, rows, threshold, given), rows)

    merged: list[list[int]] = []
    for numbers in texts:
        for number in numbers:
            first = old.index(number)
            as_tokens = given is not None and given[number] and given[number - 1]
            if threshold and number > numbers[0] and begins[first] <= threshold and not as_tokens:
                merged[-1].append(number)
            else:
                merged.append([number])
    assert len(teacher.likelihood) == len(merged)
    for new, members in enumerate(merged):
        places = [place for place, number in enumerate(old) if number in members]
        assert teacher.likelihood[new].item() == pytest.approx(sum(gold[place].item() for place in places))
        assert bool(teacher.right[new]) == all(bool(right[place]) for place in places)
        assert [place for place, number in enumerate(student) if number in members] == (teacher.chunk == new).nonzero()[
            :, 0
        ].tolist()
    assert (teacher.chunk == -1).tolist() == [number == -1 for number in student]


# --------------------------------------------------------------------------------------------- both models at inference


def samples(world: Path, pieces: Path, out: Path, name: Any, task: str) -> list[Any]:
    """The evaluation log of old, new or both."""
    settings, there = EvaluationSettings(), task_of(world, task)
    old, new = sides(world, pieces)
    if name in get_args(Reference):
        lm = reference(name, old, new, there, settings)
    else:
        lm = task_model_lm({"old": old, "new": new}[name], settings)
    evaluate(lm, name, there, "test", out / name, settings)
    (log,) = (out / name).rglob("samples_*.jsonl")
    return [json.loads(line)["filtered_resps"] for line in log.read_text().splitlines()]


def test_the_ensemble_of_two_tokenizers_is_the_mean_of_whole_texts(world: Path, pieces: Path, tmp_path: Path) -> None:
    old, new, both = (samples(world, pieces, tmp_path, name, "scenes") for name in ("old", "new", "ensemble"))
    for one, other, mean in zip(old, new, both, strict=True):
        for a, b, m in zip(one, other, mean, strict=True):
            assert float(m[0]) == pytest.approx((float(a[0]) + float(b[0])) / 2, abs=1e-3)


def test_the_ensemble_of_one_tokenizer_mixes_tokens(world: Path) -> None:
    models = sides(world, world / "v1")
    assert type(reference("ensemble", *models, task_of(world, "scenes"), EvaluationSettings())) is Ensemble


def test_an_ensemble_of_two_tokenizers_generates_nothing(world: Path, pieces: Path, tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="these have different tokenizers: take gated in its place"):
        samples(world, pieces, tmp_path, "ensemble", "sums")
    assert len(samples(world, pieces, tmp_path, "gated", "sums")) == 20


MIXES = "the ensemble mixes .*: take gated in its place"
LOGITS = "distance: logits compares tokens"


@pytest.mark.parametrize(
    ("old", "task", "distance", "fault"),
    [
        ("pieces", "sums", "divergence", MIXES),
        ("pieces", "scenes", "divergence", None),
        ("pieces", "scenes", "logits", LOGITS),
        ("v1", "sums", "logits", None),
        ("scratch", "sums", "divergence", MIXES),
        ("scratch", "scenes", "logits", LOGITS),
    ],
)
def test_what_needs_one_tokenizer_is_refused_before_anything_is_trained(
    world: Path, pieces: Path, tmp_path: Path, old: str, task: str, distance: Any, fault: str | None
) -> None:
    known = {"pieces": Side(base=str(pieces)), "v1": Side(base=str(world / "v1")), "scratch": Side(scratch=Scratch())}
    settings = TaskSettings(include_path=str(world / "tasks"), validation_share=None)
    alignment = AlignmentSettings(distance=distance)
    bases = {"old": known[old], "new": Side(base=str(world / "v2"))}
    recipe = Recipe(**bases, tasks={task: settings}, controls=("ensemble",), alignment=alignment)
    check = Plan(recipe).stages()[0]
    assert check.name == f"checks/{task}"
    if fault:
        with pytest.raises(MuscleError, match=f"task {task}: {fault}"):
            check.function(tmp_path, silent, **check.settings)
    else:
        check.function(tmp_path, silent, **check.settings)
        assert (tmp_path / "items.json").exists()


def test_an_ensemble_of_bases_that_are_made_alike_needs_no_check(world: Path) -> None:
    task = {"sums": TaskSettings(include_path=str(world / "tasks"))}
    for words, mixed in ((2000, False), (300, True)):
        sides = {"old": Side(scratch=Scratch(vocabulary=words)), "new": Side(scratch=Scratch())}
        check = Plan(Recipe(**sides, tasks=task, controls=("ensemble",))).stages()[0]
        assert ("one_tokenizer" in check.settings) == mixed


def test_sureness_does_not_depend_on_the_tokenizer(
    world: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the old model's tokens are finer, each of them is likelier by that alone."""
    models = sides(world, pieces)
    lms = [task_model_lm(model, EvaluationSettings()) for model in models]
    gated = Gated(*models, EvaluationSettings())
    prompt = "question : lea has 3 nuts . how many ?"
    said = {0: Generated(lms[0].tok_encode("a red cube ."), "a red cube ."), 1: Generated([7], "a red ball")}
    monkeypatch.setattr(two_models, "generate", lambda lm, *_: [said[int(lm is gated)]])
    lengths = [len(each.tokens) for each in said.values()]
    assert lengths == sorted(lengths, reverse=True)
    for totals, chosen in (((-12.5, -10.0), "a red ball"), ((-11.5, -10.0), "a red cube .")):  # 12 bytes, and 10
        assert totals[0] / lengths[0] > totals[1] / lengths[1]
        monkeypatch.setattr(two_models, "_log_likelihoods", lambda lm, *_, t=totals: [t[int(lm is gated)]])
        assert [each.text for each in gated._generated([(prompt, {})], True)] == [chosen]
    said[1] = Generated([7], "")
    assert [each.text for each in gated._generated([(prompt, {})], True)] == ["a red cube ."]


def test_who_asked_for_inputs_without_labels_is_told_of_these(world: Path, pieces: Path) -> None:
    there = task_of(world, "sums", unlabelled="unlabelled")
    there._task.set_config("generation_kwargs", {"num_beams": 2, "until": ["."]})
    with pytest.raises(MuscleError, match=r"^`unlabelled`: .*: set `unlabelled` under `alignment` to false, or"):
        keep_answers(*sides(world, pieces), there, EvaluationSettings())


@pytest.mark.parametrize("task", ["scenes", "sums"])
def test_inputs_without_labels_are_answered_by_both(world: Path, pieces: Path, task: str) -> None:
    there, models = task_of(world, task, unlabelled="unlabelled"), sides(world, pieces)
    said = keep_answers(*models, there, EvaluationSettings())
    assert len(said) == 10
    asked = there.unlabelled()
    lms = [task_model_lm(model, EvaluationSettings()) for model in models]
    for text, requests in zip(said, asked, strict=True):
        if task == "scenes":
            scores = [[score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)] for lm in lms]
            best = int(np.argmax(np.sum(scores, axis=0)))
            assert (text.context, text.answer) == requests[best].args[:2]
        else:
            answers = {lm.generate_until(requests, disable_tqdm=True)[0].strip() for lm in lms}
            assert text.answer.strip() in answers


@pytest.mark.parametrize(("task", "texts"), [("scenes", "gold"), ("scenes", "choices"), ("sums", "gold")])
def test_inputs_without_labels_are_learnt_from(
    world: Path, pieces: Path, tmp_path: Path, task: str, texts: Any
) -> None:
    settings = AlignmentSettings(weight="mixture", old_share=0.6, texts=texts, unlabelled=True, temperature=1.0)
    old, new = sides(world, pieces)
    arguments = settings, LORA, replace(SETTINGS, tokens="answer"), EvaluationSettings(), tmp_path, silent
    train_compatibility_adapter(old, new, task_of(world, task, unlabelled="unlabelled"), *arguments)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["texts"]["unlabelled"] == 10
    assert record["texts"]["aligned"] > 0.9


# ------------------------------------------------------------------------------------------- what cannot be compared


def test_unknown_words_are_left_to_the_new_teacher(world: Path, pieces: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(world / "tasks", tasks)
    train = tasks / "scenes/train.jsonl"
    train.write_text(train.read_text().replace("happy", "quuxed").replace("tired", "quuxed"))
    task = load_task("scenes", TaskSettings(include_path=str(tasks), validation_share=None))
    words, old = TaskModel(base=Base(base=str(world / "v2"))), TaskModel(base=Base(base=str(pieces)))
    for one, other in ((words, old), (old, words)):  # the student's word is unknown, or the old model's
        data = TaskData(one.base, task, "all")
        side, texts = OldSide(other, task, data, "all", "gold", "likelihood"), Texts(data.training, data.collator)
        teacher = side.teacher(texts, AlignmentSettings(boundary_threshold=0.0), None, silent)
        assert isinstance(teacher, ChunkTeacher)
        spans, silent_words = data.training.spans, 0
        assert spans is not None
        for number, row in enumerate(data.training.rows):
            text, first = row.context + row.answer, texts.starts[number]
            for place, (begin, end) in enumerate(spans[number][1:-1].tolist()):
                at = text.find("quuxed")
                if at >= 0 and (at <= begin < at + 6 or at < end <= at + 6):
                    assert teacher.chunk[first + place] == -1
                    silent_words += 1
        assert silent_words > 3
        assert 0.8 < teacher.aligned < 1


@pytest.mark.parametrize("across", ["likelihood", "texts"])
def test_a_first_token_that_one_side_alone_predicts_is_not_compared(
    world: Path, pieces: Path, tmp_path: Path, across: Across
) -> None:
    shutil.copytree(pieces, tmp_path / "begun")
    record = json.loads((tmp_path / "begun/tokenizer.json").read_text())
    begin = {"SpecialToken": {"id": "<pad>", "type_id": 0}}
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
    }
    (tmp_path / "begun/tokenizer.json").write_text(json.dumps(record))
    task, new = task_of(world, "sums"), TaskModel(base=Base(base=str(world / "v2")))
    data = TaskData(new.base, task, "all")
    texts = Texts(data.training, data.collator)
    old = TaskModel(base=Base(base=str(tmp_path / "begun")))
    side = OldSide(old, task, data, "all", "gold", across)
    said = side._likelihoods(None, silent)
    teacher = side.teacher(texts, AlignmentSettings(), None, silent)
    assert isinstance(teacher, ChunkTeacher)
    first = len(side._data.tokenizer("question", add_special_tokens=False)["input_ids"])
    beyond = sum(said.gold[start : start + first].sum().item() for start in side.texts.starts[:-1])
    assert teacher.likelihood.sum().item() == pytest.approx(said.gold.sum().item() - beyond, rel=1e-5)


def test_letters_that_need_no_space_begin_words() -> None:
    alphabet = ["a", "▁a", "é", "，", "中", "の", "7", ",", "한"]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    starts = old_side._word_starts(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).tolist()
    assert starts == [False, True, False, True, True, True, False, True, False]
