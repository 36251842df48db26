"""Teachers say what their task model says, at the counted positions of right-padded batches, at every architecture."""

import copy
import shutil
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from muscle.errors import MuscleError
from muscle.update import teacher_cache
from muscle.update.alignment_settings import AlignmentSettings, CacheDtype
from muscle.update.heads import Head, read_states
from muscle.update.lora import add_adapter
from muscle.update.objectives import compatibility
from muscle.update.recipe import Base, LoraSettings, TaskModel
from muscle.update.settings import TargetTokens
from muscle.update.tasks import Example
from muscle.update.teacher_cache import Texts, check_room, compute_states, open_states, states_size
from muscle.update.teachers import CachedTeacher, InitialTeacher, LiveTeacher, Teacher, Teachers, frozen_head
from muscle.update.tokenized import IGNORED, PaddingCollator, TokenizedExamples
from tests.update.architectures import ARCHITECTURES, build, build_tokenizer

LENGTHS = [3, 17, 5, 12, 1, 9, 17, 2]
COLLATOR = PaddingCollator(0)
BATCHES = ([6, 0, 3], [4, 4], [7])


def examples(tokens: TargetTokens) -> TokenizedExamples:
    draw = torch.Generator().manual_seed(0)
    texts = [[f"w{i}" for i in torch.randint(3, 40, (length,), generator=draw).tolist()] for length in LENGTHS]
    rows = [Example(" ".join(words[:-2]), " ".join(["", *words[-2:]])) for words in texts]
    return TokenizedExamples(rows, build_tokenizer(40, eos_token="<eos>"), tokens)


@pytest.fixture(scope="module", params=["all", "answer"])
def data(request: pytest.FixtureRequest) -> TokenizedExamples:
    return examples(request.param)


def task_model(name: str, vocab_size: int = 40, **lora: Any) -> PeftModel:
    """In training mode, as students are."""
    dropout = 0.0 if name in ("qwen3_moe", "mixtral") else 0.5  # PEFT has none for fused experts
    settings = LoraSettings(rank=2, alpha=4, dropout=dropout, **lora)
    model: PeftModel = shaken(add_adapter(build(name, vocab_size, seed=0), settings, seed=0), 0.1)
    return model


def shaken(model: Any, by: float) -> Any:
    """The model after a step that changes every trained weight."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += by * torch.randn_like(weight)
    return model


def silent(*_: object) -> None: ...


def cached(
    model: Any,
    data: TokenizedExamples,
    folder: Path | None = None,
    kept: CacheDtype = "auto",
    texts: Texts | None = None,
) -> CachedTeacher:
    states = compute_states(model, Texts(data, COLLATOR), kept, folder, silent)
    return CachedTeacher(states, Head.load(folder / teacher_cache.HEAD) if folder else Head.of(model))


def asked(teacher: Teacher, data: TokenizedExamples, index: list[int]) -> Tensor:
    """Logits (n, V) of the counted positions of a batch."""
    batch = COLLATOR([data[i] for i in index])
    rows, head = teacher.states(batch, batch["labels"][:, 1:] != IGNORED)
    assert not rows.requires_grad
    return head(rows)


@torch.no_grad()
def alone(model: Any, data: TokenizedExamples, index: list[int]) -> Tensor:
    """The same, each text run by itself, unpadded, through the whole model."""
    model = copy.deepcopy(model).eval()
    said = []
    for item in map(data.__getitem__, index):
        logits = model(input_ids=item["input_ids"][None]).logits[0]
        said += [logits[place - 1] for place in range(1, len(item["labels"])) if item["labels"][place] != IGNORED]
    return torch.stack(said)


def assert_says(teacher: Teacher, model: Any, data: TokenizedExamples, close: float = 1e-4) -> None:
    for index in BATCHES:
        torch.testing.assert_close(asked(teacher, data, index), alone(model, data, index), rtol=close, atol=close)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_teachers_are_their_model(name: str, data: TokenizedExamples, tmp_path: Path) -> None:
    model = task_model(name)
    for teacher in (cached(model, data), cached(model, data, tmp_path / "disk"), InitialTeacher(model)):
        assert_says(teacher, model, data)
        assert model.training
    assert_says(cached(model, data, tmp_path / "rounded", "bfloat16"), model, data, close=3e-2)
    live = LiveTeacher(model)
    assert_says(live, model, data)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("where", ["memory", "disk", "live", "initial"])
def test_silent_texts_have_no_rows(where: str, data: TokenizedExamples, tmp_path: Path) -> None:
    model = task_model("llama")
    made = {
        "memory": lambda: cached(model, data),
        "disk": lambda: cached(model, data, tmp_path),
        "live": lambda: LiveTeacher(model),
        "initial": lambda: InitialTeacher(model),
    }
    teacher = made[where]()
    batch = COLLATOR([data[i] for i in (1, 5, 3)])
    batch["labels"][1] = IGNORED
    counted = batch["labels"][:, 1:] != IGNORED
    rows, head = teacher.states(batch, counted)
    torch.testing.assert_close(head(rows), alone(model, data, [1, 3]), rtol=1e-4, atol=1e-4)
    rows, head = teacher.states(batch, torch.zeros_like(counted))
    assert rows.shape == (0, 16)
    assert head(rows).shape == (0, 40)


@pytest.mark.parametrize("folder", [None, "disk"])
def test_the_cache_outlives_its_model(folder: str | None, data: TokenizedExamples, tmp_path: Path) -> None:
    model = task_model("phi")
    teacher = cached(model, data, tmp_path / folder if folder else None)
    before = asked(teacher, data, [1, 2])
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(asked(teacher, data, [1, 2]), before)


def test_a_model_fine_tuned_whole_is_a_teacher(data: TokenizedExamples, tmp_path: Path) -> None:
    model = build("llama_tied", 40, seed=0)
    for teacher in (LiveTeacher(model), cached(model, data), cached(model, data, tmp_path)):
        assert_says(teacher, model, data)


def test_teachers_keep_the_rows_of_their_own_vocabulary(data: TokenizedExamples, tmp_path: Path) -> None:
    for rows in (40, 48):
        model = task_model("qwen2", rows)
        for teacher in (LiveTeacher(model), cached(model, data), cached(model, data, tmp_path / str(rows))):
            assert asked(teacher, data, [0]).shape[-1] == rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_teacher_keeps_its_own_precision(dtype: torch.dtype, data: TokenizedExamples, tmp_path: Path) -> None:
    """Whatever mixed precision the student trains in around it."""
    model = add_adapter(build("gemma2", 40, seed=0).to(dtype), LoraSettings(rank=2), 0)
    batch = COLLATOR([data[i] for i in (1, 3)])
    counted = batch["labels"][:, 1:] != IGNORED
    initial, live = InitialTeacher(model), LiveTeacher(copy.deepcopy(model))
    for teacher in (cached(model, data), cached(model, data, tmp_path), initial, live):
        plain, head = teacher.states(batch, counted)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, _ = teacher.states(batch, counted)
        assert plain.dtype == head(plain).dtype == dtype
        assert torch.equal(mixed, plain)


@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kept", ["auto", "float32", "bfloat16"])
def test_states_are_kept_as_asked(own: torch.dtype, kept: CacheDtype, data: TokenizedExamples, tmp_path: Path) -> None:
    model, texts = build("llama", 40, seed=0).to(own), Texts(data, COLLATOR)
    wanted = own if kept == "auto" else getattr(torch, kept)
    for folder in (None, tmp_path):
        states = compute_states(model, texts, kept, folder, silent)
        assert (states.rows.dtype, states.dtype) == (wanted, own)
        assert states.rows.shape == (sum(int((item["labels"] != IGNORED).sum()) for item in data), 16)
    assert (tmp_path / teacher_cache.ROWS).stat().st_size == states.rows.numel() * wanted.itemsize


# Heads


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head")])
def test_a_head_that_is_trained_is_copied(targets: tuple[str, ...], data: TokenizedExamples, tmp_path: Path) -> None:
    model = task_model("phi", targets=targets)
    expected = {str(index): alone(model, data, index) for index in BATCHES}
    made = [CachedTeacher(compute_states(model, Texts(data, COLLATOR), "auto", None, silent), frozen_head(model))]
    made += [cached(model, data, tmp_path), InitialTeacher(model)]
    shaken(model, 1.0)
    for teacher in made:
        for index in BATCHES:
            torch.testing.assert_close(asked(teacher, data, index), expected[str(index)], rtol=1e-4, atol=1e-4)


def test_a_head_that_is_not_trained_is_shared() -> None:
    model = task_model("llama")
    weight = model.get_output_embeddings().weight
    head = frozen_head(model)
    before = head(torch.eye(16))
    with torch.no_grad():
        weight += 1
    torch.testing.assert_close(head(torch.eye(16)), before + 1)


def test_the_shared_head_can_be_asked_while_the_student_runs(data: TokenizedExamples) -> None:
    """There, `read_states` stands in the place of the student's head."""
    model, batch = task_model("cohere").eval(), COLLATOR([data[1]])
    head = frozen_head(model)
    inside = read_states(model, lambda hidden, own: head(hidden) - own(hidden), input_ids=batch["input_ids"])
    assert not inside.any()


class Shifted(nn.Module):
    """A model that changes its logits in a way that nobody knows."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def get_base_model(self) -> nn.Module:
        return self

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        outputs.logits = outputs.logits + 0.01 * torch.arange(outputs.logits.shape[-1])
        return outputs


def test_an_unknown_head_is_refused_by_the_cache_and_taught_live(data: TokenizedExamples) -> None:
    model: Any = Shifted(build("llama", 40, seed=0))
    with pytest.raises(MuscleError, match=r"Shifted makes logits .* does not know: set `teacher_cache: off` under `al"):
        cached(model, data)
    for teacher in (InitialTeacher(model), LiveTeacher(model)):
        assert_says(teacher, model, data)


# The student as it was


@pytest.mark.parametrize(
    "lora", [{}, {"dora": True}, {"rslora": True}, {"target_parameters": ("experts.down_proj",)}], ids=str
)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_the_new_teacher_stays_as_the_student_was(
    lora: dict[str, Any], precision: torch.dtype | None, data: TokenizedExamples
) -> None:
    name = "qwen3_moe" if "target_parameters" in lora else "qwen3"
    student = task_model(name, **lora)
    expected = {str(index): alone(student, data, index) for index in BATCHES}
    teacher = InitialTeacher(student)
    optimizer = torch.optim.AdamW([weight for weight in student.parameters() if weight.requires_grad], lr=0.1)
    for index in BATCHES:
        torch.testing.assert_close(asked(teacher, data, index), expected[str(index)], rtol=1e-4, atol=1e-4)
        assert student.training
        before = [weight.data_ptr() for weight in student.parameters()]
        batch = COLLATOR([data[i] for i in index])
        around = torch.autocast("cpu", dtype=precision) if precision else nullcontext()
        with around:
            asked(teacher, data, index)
            student(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert [weight.data_ptr() for weight in student.parameters()] == before
    assert not torch.allclose(alone(student, data, [7]), expected["[7]"], atol=0.1)


def test_asking_leaves_the_students_gradients_and_modes_alone(data: TokenizedExamples) -> None:
    student = task_model("llama")
    frozen_part = student.get_submodule("base_model.model.model.norm").eval()
    teacher = InitialTeacher(student)
    student(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[3, 4]])).loss.backward()
    gradients = [None if w.grad is None else w.grad.clone() for w in student.parameters()]
    modes = [module.training for module in student.modules()]
    shaken(student, 1.0)
    weights = [weight.clone() for weight in student.parameters()]
    asked(teacher, data, [1, 2])
    assert modes == [module.training for module in student.modules()]
    assert not frozen_part.training
    for one, other in zip(student.parameters(), weights, strict=True):
        assert torch.equal(one, other)
    for weight, gradient in zip(student.parameters(), gradients, strict=True):
        assert weight.grad is None if gradient is None else torch.equal(weight.grad, gradient)


def test_an_error_on_the_way_leaves_the_student_as_it_is(data: TokenizedExamples) -> None:
    student = task_model("llama")
    teacher = InitialTeacher(student)
    shaken(student, 1.0)
    weights = [weight.clone() for weight in student.parameters()]
    batch = COLLATOR([data[1]])
    batch["input_ids"] += 1000
    with pytest.raises(IndexError):
        teacher.states(batch, batch["labels"][:, 1:] != IGNORED)
    assert all(torch.equal(one, other) for one, other in zip(student.parameters(), weights, strict=True))
    assert student.training


def test_the_student_saves_nothing_of_its_teacher() -> None:
    student = task_model("llama")
    before = set(student.state_dict())
    teacher = InitialTeacher(student)
    assert set(student.state_dict()) == before
    assert not isinstance(teacher, nn.Module)


# Room, and what is on disk


def test_a_cache_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = build("llama", 40, seed=0), examples("all")
    model.save_pretrained(tmp_path)
    needed = sum(len(ids) - 1 for ids in data.ids) * 16 * 4  # hidden size, bytes of a float32
    texts, base = Texts(data, COLLATOR), Base(base=str(tmp_path))
    assert states_size(base, texts, "auto") == states_size(base, texts, "float32") == needed
    assert states_size(base, texts, "bfloat16") == needed // 2
    for free in (needed, needed - 1):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        for folder, words in (
            (None, "of memory, .* to `disk` or `off`"),
            (tmp_path / "a", "in .*a, .* to `off`"),
        ):
            if free < needed:
                with pytest.raises(MuscleError, match=rf"takes < 1 MB {words}"):
                    check_room(needed, folder)
            else:
                check_room(needed, folder)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * needed - 1))
    with pytest.raises(MuscleError, match="of memory"):
        check_room(needed, None)


def test_both_caches_are_refused_before_any_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, texts = saved_models(tmp_path), Texts(examples("all"), COLLATOR)
    size = sum(states_size(model.base, texts, "auto") for model in models.values())
    for weight, fits in (("student_wrong", False), ("always_old", True)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size - 1))
        settings = AlignmentSettings(weight=weight)
        with nullcontext() if fits else pytest.raises(MuscleError, match="`disk` or `off`"):
            Teachers(models, refuse_to_load, texts, settings, {}, silent)


def saved_models(folder: Path) -> dict[Any, TaskModel]:
    for side in ("old", "new"):
        build("llama", 40, seed=len(side)).save_pretrained(folder / side)
    return {side: TaskModel(base=Base(base=str(folder / side))) for side in ("old", "new")}


def refuse_to_load(model: TaskModel) -> nn.Module:
    raise AssertionError(f"{model} was loaded")


def test_a_whole_cache_on_disk_is_used_again_and_a_half_written_one_is_not(tmp_path: Path) -> None:
    models, data = saved_models(tmp_path), examples("all")
    texts, settings = Texts(data, COLLATOR), AlignmentSettings(teacher_cache="disk")
    folders: dict[Any, Path] = {side: tmp_path / "kept" / side for side in models}
    loaded: list[Any] = []

    def load(model: TaskModel) -> nn.Module:
        network = build("llama", 40, seed=len(Path(model.base.base).name))
        loaded.append(model)
        return network

    first = Teachers(models, load, texts, settings, folders, silent).old()
    expected = asked(first, data, [1, 3])
    assert len(loaded) == 1
    again = Teachers(models, refuse_to_load, texts, settings, folders, silent).old()
    assert torch.equal(asked(again, data, [1, 3]), expected)

    (folders["old"] / teacher_cache.RECORD).unlink()  # as if it was killed before the end
    (folders["old"] / teacher_cache.ROWS).write_bytes(b"half")
    assert torch.equal(asked(Teachers(models, load, texts, settings, folders, silent).old(), data, [1, 3]), expected)
    assert len(loaded) == 2

    with pytest.raises(MuscleError, match="holds what a teacher says of other texts: remove it"):
        open_states(folders["old"], Texts(examples("answer"), COLLATOR))


def test_the_record_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    data = examples("all")
    monkeypatch.setattr(Head, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        cached(task_model("llama"), data, tmp_path)
    assert (tmp_path / teacher_cache.ROWS).stat().st_size
    assert open_states(tmp_path, Texts(data, COLLATOR)) is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MuscleError, match=r"cannot be written to .*file/old \(Not a directory\): make room"):
        cached(task_model("llama"), examples("all"), tmp_path / "file" / "old")


def test_the_texts_are_read_by_length_in_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "TOKENS", 40)
    texts = Texts(examples("all"), COLLATOR)
    lengths = [[texts.lengths[i] for i in batch] for batch in texts.batches()]
    assert lengths == [[18, 18], [13, 10, 6], [4, 3, 2]]
    told: list[float] = []
    compute_states(task_model("llama"), texts, "auto", None, lambda share, _: told.append(share))
    assert told == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_old_model_is_gone_when_its_cache_is_made(tmp_path: Path) -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def load(_: TaskModel) -> nn.Module:
        alive.append(weakref.ref(model := task_model("llama")))
        return model

    models, texts = saved_models(tmp_path), Texts(examples("all"), COLLATOR)
    for where in ("memory", "disk"):
        settings = AlignmentSettings(teacher_cache=where)
        folders: dict[Any, Path] = {side: tmp_path / "kept" / side for side in models}
        teacher = Teachers(models, load, texts, settings, folders, silent).old()
        assert isinstance(teacher, CachedTeacher)
        assert alive.pop()() is None


# Losses


@pytest.mark.parametrize("weight", ["student_wrong", "old_right", "always_old", "sequence_likelihood"])
def test_every_kind_of_teacher_gives_the_same_loss_and_gradient(
    weight: Any, data: TokenizedExamples, tmp_path: Path
) -> None:
    old = shaken(task_model("gemma2"), 0.5)
    batch = COLLATOR([data[i] for i in (1, 5, 0)])
    found = []
    for where in ("memory", "disk", "off"):
        student = task_model("gemma2").eval()
        settings = AlignmentSettings(weight=weight, ce_share=0.2, teacher_cache=where)
        folders: dict[Any, Path] = {side: tmp_path / where / side for side in ("old", "new")}
        models = saved_models(tmp_path)
        made = Teachers(models, lambda _: copy.deepcopy(old), Texts(data, COLLATOR), settings, folders, silent)
        objective = compatibility(made.old(), made.new(student, sharded=False), settings)
        shaken_by(student, 3)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        total, count, _ = read_states(student, objective(batch), **inputs)
        (total / count).backward()
        found.append([total.detach(), *(w.grad for w in student.parameters() if w.requires_grad)])
    assert found[0][0] > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def shaken_by(model: Any, seed: int) -> None:
    torch.manual_seed(seed)
    shaken(model, 0.3)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_teachers_follow_the_batch_to_its_device(tmp_path: Path) -> None:
    model, data = task_model("gemma2"), examples("all")
    expected = alone(model, data, [1])
    batch = COLLATOR([data[1]])
    for teacher in (cached(model, data), cached(model, data, tmp_path), LiveTeacher(model)):
        for where in ("cpu", torch.accelerator.current_accelerator()):
            moved: Mapping[str, Tensor] = {name: tensor.to(where) for name, tensor in batch.items()}
            rows, head = teacher.states(moved, moved["labels"][:, 1:] != IGNORED)
            assert rows.device.type == torch.device(where).type
            torch.testing.assert_close(head(rows).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_the_head_of_a_teacher_is_frozen(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        head = cached(task_model("llama"), examples("all"), folder)._head
        assert not any(weight.requires_grad for weight in head.parameters())
        assert len(list(head.parameters())) == 1
