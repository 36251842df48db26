"""Training texts beyond the gold ones: those of all choices, and of inputs whose labels are not read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from msgspec.structs import replace

from muscle.errors import MuscleError
from muscle.update import adapters, teacher_cache
from muscle.update.adapters import train_compatibility_adapter, training_size
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.answers import all_choices, answers_folder, keep_answers, read_answers
from muscle.update.ensemble import Ensemble
from muscle.update.models import load_tokenizer
from muscle.update.plan import Plan
from muscle.update.prompts import Example
from muscle.update.recipe import Base, EvaluationSettings, LoraSettings, TaskModel, TaskSettings, TrainingSettings
from muscle.update.recipe_file import make_recipe
from muscle.update.scoring import evaluate
from muscle.update.settings import SideName
from muscle.update.tasks import Task, load_task
from muscle.update.teachers import Teachers
from muscle.update.tokenized import IGNORED, PaddingCollator, TokenizedExamples
from muscle.update.training_data import TaskData

from .test_tasks import ANSWERS, CHOICES, GENERATION, MULTIPLE_CHOICE, SPLITS, Folder, bpe, folder, lm

__all__ = ["bpe", "folder", "lm"]  # fixtures

CUPS = [
    {"sentence": f"The {word} cup is not in the box as _ is big.", "option1": "the box", "option2": "the cup"}
    for word in ("tall", "small", "wet", "hot", "cold", "old", "new", "red", "blue", "thin")
]
SETTINGS = TrainingSettings(epochs=1, learning_rate=3e-2, batch_size=5, accumulation=2, warmup_steps=0)
LORA = LoraSettings(rank=4, alpha=8)
KINDS = [("scenes", "gold"), ("scenes", "choices"), ("sums", "gold")]


def silent(*_: object) -> None: ...


def scored(task: Task, split: Any, chat: HFLM | None = None) -> list[tuple[str, str]]:
    """What lm-eval itself asks about a split without shots."""
    definition = task.for_evaluation(split)
    definition.build_all_requests(
        system_instruction=task.settings.system_instruction,
        apply_chat_template=chat is not None,
        fewshot_as_multiturn=True,
        chat_template=chat.apply_chat_template if chat else None,
    )
    return [request.args[:2] for request in definition.instances]


def pairs(examples: list[Example]) -> list[tuple[str, str]]:
    return [(example.context, example.answer) for example in examples]


# --- all choices


@pytest.mark.parametrize(
    "extra",
    [
        "",
        'description: "Answer.\\n\\n"\n',
        "gen_prefix: 'It is'\n",
        "target_delimiter: ''\n",
        "metric_list: [{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}]\n",
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_choices_are_those_that_lm_eval_scores(folder: Folder, lm: HFLM, extra: str, chat: bool) -> None:
    text = MULTIPLE_CHOICE if "metric_list" not in extra else MULTIPLE_CHOICE.rpartition("metric_list")[0]
    folder.define("mine", SPLITS + text + extra, train=CHOICES, test=CHOICES[:2])
    task = folder.load("mine", chat_template=chat, system_instruction="Be brief." if chat else None)
    held_out = task.examples("validation", lm.tokenizer, "choices")
    expected = [pair for pair in scored(task, "validation", lm if chat else None) if pair[0]]  # without aux requests
    assert pairs(held_out) == expected
    assert len(held_out) == 12
    gold = task.examples("validation", lm.tokenizer)
    assert pairs([example for example in held_out if example.right]) == pairs(gold)
    assert all(example.item is None and example.right for example in gold)
    items = [example.item for example in held_out]
    assert items == [item for item in dict.fromkeys(items) for _ in range(3)]


def test_choices_in_the_context_are_those_that_lm_eval_scores(folder: Folder) -> None:
    rows = [{**row, "answer": str(1 + number % 2)} for number, row in enumerate(CUPS)]
    folder.add("winogrande", train=rows, validation=rows[:1])
    task = load_task("winogrande", TaskSettings(validation_share=0.3), folder.data)
    held_out = task.examples("validation", None, "choices")
    assert pairs(held_out) == scored(task, "validation")
    assert len(held_out) == 6
    assert pairs([row for row in held_out if row.right]) == pairs(task.examples("validation"))


def test_only_multiple_choice_has_choices(folder: Folder) -> None:
    folder.define("mine", SPLITS + GENERATION, train=ANSWERS, test=ANSWERS[:1])
    with pytest.raises(MuscleError, match=r"task 'mine' is not multiple choice, .*: set `texts` under `alignment` to"):
        folder.load("mine").examples("training", None, "choices")


# --- inputs without labels


def without(rows: list[dict[str, Any]], *labels: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in labels} for row in rows]


def test_inputs_without_labels_are_asked_as_lm_eval_asks(folder: Folder, lm: HFLM) -> None:
    folder.define("choose", SPLITS + MULTIPLE_CHOICE, train=CHOICES[:8], test=CHOICES[8:10])
    folder.add("choose", more=without(CHOICES[10:], "gold"))
    folder.define("say", SPLITS + GENERATION, train=ANSWERS[:8], test=ANSWERS[8:10])
    folder.add("say", more=without(ANSWERS[10:], "answer"))
    for chat in (False, True):
        for name, number in (("choose", 3), ("say", 1)):
            task = folder.load(name, unlabelled="more", chat_template=chat)
            asked = task.unlabelled(lm.tokenizer)
            assert [len(requests) for requests in asked] == [number] * 10 == [number] * task.count_unlabelled()
            folder.add(f"{name}", test=(CHOICES if name == "choose" else ANSWERS)[10:])
            expected = scored(folder.load(name, chat_template=chat), "test", lm if chat else None)
            assert [request.args[:2] for requests in asked for request in requests] == expected
            folder.add(f"{name}", test=(CHOICES if name == "choose" else ANSWERS)[8:10])


def test_choices_in_the_context_need_no_label(folder: Folder) -> None:
    rows = [{**row, "answer": "2"} for row in CUPS[:4]]
    folder.add("winogrande", train=rows, validation=rows[:1], more=[{**row, "answer": ""} for row in CUPS[:1]])
    with pytest.raises(MuscleError, match="of 1 inputs that `unlabelled: more` names, none is left"):
        load_task("winogrande", TaskSettings(unlabelled="more"), folder.data).unlabelled()
    cats = [{**CUPS[0], "sentence": f"The cat is on the mat as _ is {word}."} for word in ("soft", "tired")]
    folder.add("winogrande", more=cats)
    texts = all_choices(load_task("winogrande", TaskSettings(unlabelled="more"), folder.data).unlabelled())
    assert texts[:2] == [
        Example("The cat is on the mat as the box", " is soft.", -1, right=False),
        Example("The cat is on the mat as the cup", " is soft.", -1, right=False),
    ]
    assert [text.item for text in texts] == [-1, -1, -2, -2]


def prompts(task: Task) -> set[str]:
    return {requests[0].args[0] for requests in task.unlabelled()}


@pytest.mark.parametrize("share", [0.2, None])
def test_nothing_held_out_or_evaluated_is_among_them(folder: Folder, share: float | None) -> None:
    splits = SPLITS + "validation_split: dev\n"
    folder.define("mine", splits + GENERATION, train=ANSWERS[:10], dev=ANSWERS[10:12], test=ANSWERS[12:14])
    folder.add("mine", more=without(ANSWERS, "answer"))
    task = folder.load("mine", unlabelled="more", validation_share=share)
    guarded = {context for split in ("test", "validation") for context, _ in scored(task, split)}
    assert len(guarded) == 4
    found = prompts(task)
    assert not found & guarded
    assert found | guarded == {f"Q: {row['question']}\nA:" for row in ANSWERS}
    with pytest.raises(MuscleError, match="of 2 inputs that `unlabelled: test` names, none is left"):
        folder.load("mine", unlabelled="test").unlabelled()


def test_the_rest_of_the_training_split(folder: Folder) -> None:
    folder.define("mine", SPLITS + GENERATION, train=[*ANSWERS, ANSWERS[3]], test=ANSWERS[:2])
    task = folder.load("mine", train_limit=10, unlabelled="rest")
    used = {example.context for split in ("training", "validation") for example in task.examples(split)}  # type: ignore[arg-type]
    held_out = {example.context for example in task.examples("validation")}
    found = prompts(task)
    assert not found & held_out
    assert found - used
    evaluated = {context for context, _ in scored(task, "test")}
    assert found | used | evaluated == {f"Q: {row['question']}\nA:" for row in ANSWERS}
    with pytest.raises(MuscleError, match=r"of 0 inputs that `unlabelled: rest` names, none is left .* train_limit"):
        folder.load("mine", unlabelled="rest").unlabelled()


def test_inputs_that_are_not_to_be_had(folder: Folder, world: Path) -> None:
    folder.define("mine", SPLITS + GENERATION, train=ANSWERS, test=ANSWERS[:2])
    with pytest.raises(MuscleError, match="'mine' names no inputs without labels: set its `unlabelled` to a split"):
        folder.load("mine").unlabelled()
    with pytest.raises(MuscleError, match=r"mine has no more split: add more\.jsonl"):
        folder.load("mine", unlabelled="more").unlabelled()
    hub = TaskSettings(include_path=str(world / "tasks"), unlabelled="more")
    with pytest.raises(MuscleError, match="'scenes' has no split 'more': choose among test, train, unlabelled, valid"):
        load_task("scenes", hub).unlabelled()
    rolling = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    folder.define("whole", SPLITS + rolling, train=[{"text": "one"}], test=[{"text": "two"}])
    with pytest.raises(MuscleError, match="'whole' neither chooses nor generates"):
        folder.load("whole", unlabelled="train").unlabelled()


def test_code_that_needs_labels_is_named(folder: Folder) -> None:
    (folder.yaml / "mine.py").write_text(
        "def known(docs):\n    return docs.map(lambda doc: {'answer': doc['answer'].strip()})\n"
    )
    text = GENERATION + "process_docs: !function mine.known\n"
    folder.define("mine", SPLITS + text, train=ANSWERS[:8], test=ANSWERS[8:10])
    folder.add("mine", more=without(ANSWERS[10:], "answer"), full=ANSWERS[10:])
    assert folder.load("mine", unlabelled="full").count_unlabelled() == 10
    with pytest.raises(MuscleError, match=r"process_docs of task 'mine' fails on split 'more' \(KeyError: 'answer'\)"):
        folder.load("mine", unlabelled="more").unlabelled()


@pytest.mark.parametrize(
    ("extra", "said", "expected"),
    [
        ("", " 12", " 12"),
        ("", "\n 12 \n", " 12"),
        ("", "  ", None),
        ("target_delimiter: ': '\n", "12", ": 12"),
        ("gen_prefix: 'It is '\n", " 12", "12"),
        ("filter_list: [{name: n, filter: [{function: regex, regex_pattern: '[0-9]+'}, {function: take_first}]}]\n",
         " so 12", " so 12"),
        ("filter_list: [{name: n, filter: [{function: regex, regex_pattern: '[0-9]+'}, {function: take_first}]}]\n",
         " twelve", None),
        ("filter_list: [{name: n, filter: [{function: regex, regex_pattern: '[0-9]+', fallback: '?'}]}]\n",
         " twelve", None),
        ("filter_list: [{name: n, filter: [{function: take_first_k, k: 0}]}]\n", " 12", None),
    ],
)  # fmt: skip
def test_answers_take_the_form_of_gold_ones(folder: Folder, extra: str, said: str, expected: str | None) -> None:
    folder.define("mine", SPLITS + GENERATION + extra, train=ANSWERS, test=ANSWERS[:2])
    folder.add("mine", more=[{"question": "6 and 6?"}])
    task = folder.load("mine", unlabelled="more")
    ((request,),) = task.unlabelled()
    assert task.answer_form(request, said) == expected


# --- tokens


def test_rows_know_their_item(folder: Folder, lm: HFLM) -> None:
    rows = [
        *(Example("Q: a\nA:", answer, 5, right=answer == " b") for answer in (" a", " b", " c")),
        Example("Q: b\nA:", " 1"),
        Example("Q: c\nA:", " 1"),
        *(Example("Q: d\nA:", answer, -1, right=False) for answer in (" 1", " 12")),
    ]
    for tokens in ("all", "answer"):
        data = TokenizedExamples(rows, lm.tokenizer, tokens)  # type: ignore[arg-type]
        assert data.items == [[0, 1, 2], [3], [4], [5, 6]]
        batch = PaddingCollator(0)([data[text] for text in range(7)])
        assert batch["item"].tolist() == [0, 0, 0, 1, 2, 3, 3]
        assert batch["right"].tolist() == [False, True, False, True, True, False, False]
        assert batch["right"].dtype == torch.bool
        assert data.targets == (batch["labels"] != IGNORED).sum(1).tolist()
    plain = [{key: row[key] for key in ("input_ids", "labels", "index")} for row in (data[0], data[3])]
    assert not {"item", "right"} & PaddingCollator(0)(plain).keys()


# --- what both models answer


def world_task(world: Path, name: str, **settings: Any) -> Task:
    chosen = {"validation_share": None, "unlabelled": "unlabelled", **settings}
    return load_task(name, TaskSettings(include_path=str(world / "tasks"), **chosen))


@pytest.fixture
def models(world: Path) -> dict[SideName, TaskModel]:
    return {
        "old": TaskModel(base=Base(base=str(world / "v1")), adapter=str(world / "old")),
        "new": TaskModel(base=Base(base=str(world / "v2")), adapter=str(world / "new")),
    }


@pytest.mark.parametrize("name", ["scenes", "sums"])
def test_answers_are_those_that_the_ensemble_is_evaluated_by(
    name: str, world: Path, models: dict[SideName, TaskModel], tmp_path: Path
) -> None:
    """The same items once as evaluated ones, and once as inputs whose labels nobody reads."""
    settings = EvaluationSettings(batch_size=7)
    task = world_task(world, name)
    evaluated = world_task(world, name)
    docs = evaluated._task.dataset["test"]
    task._task.dataset["unlabelled"] = docs.remove_columns("gold" if name == "scenes" else "answer")
    task._task.dataset["test"] = task._task.dataset["test"].select([0])  # else none of them would be left
    found = {text.context: text.answer for text in keep_answers(models["old"], models["new"], task, settings)}

    evaluate(Ensemble(models["old"], models["new"], settings), "both", evaluated, "test", tmp_path, settings)
    (log,) = tmp_path.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    compared = 0
    for row in rows:
        context = row["doc"]["context"]
        if name == "scenes":
            scores = [float(score) for score, _ in row["filtered_resps"]]
            said = " " + row["doc"]["choices"][scores.index(max(scores))]
        else:
            said = " " + row["filtered_resps"][0].strip()
        if context in found:
            compared += 1
            assert found[context] == said
    assert compared == len(found) >= 15


def test_answers_are_kept(world: Path, models: dict[SideName, TaskModel], tmp_path: Path) -> None:
    task, settings = world_task(world, "scenes"), EvaluationSettings()
    first = keep_answers(models["old"], models["new"], task, settings, tmp_path)
    assert read_answers(tmp_path) == first
    assert len(first) == 10
    assert [text.item for text in first] == list(range(-1, -11, -1))
    assert not any(text.right for text in first)
    choices = {(request.args[0], request.args[1]) for asked in task.unlabelled() for request in asked}
    assert set(pairs(first)) <= choices
    nobody = TaskModel(base=Base(base=str(tmp_path)))
    assert keep_answers(nobody, nobody, task, settings, tmp_path) == first
    (tmp_path / "answers.json").write_text("[{")
    with pytest.raises(MuscleError, match=r"answers.json cannot be read .*: remove "):
        read_answers(tmp_path)


def test_answers_that_say_nothing_are_left_out(
    world: Path, models: dict[SideName, TaskModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["", " 12", " \n", *["7 "] * 7])
    monkeypatch.setattr(Ensemble, "generate_until", lambda _, asked, **__: [next(said) for _ in asked])
    texts = keep_answers(models["old"], models["new"], world_task(world, "sums"), EvaluationSettings())
    assert [(text.answer, text.item) for text in texts] == [(" 12", -2), *((" 7", -n) for n in range(4, 11))]
    said = iter([""] * 10)
    with pytest.raises(MuscleError, match="both models together answer none of 10 inputs"):
        keep_answers(models["old"], models["new"], world_task(world, "sums"), EvaluationSettings())


def test_sampling_of_the_task_is_not_that_of_answers(
    world: Path, models: dict[SideName, TaskModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(_: Any, requests: Any, **__: Any) -> list[str]:
        asked.extend(requests)
        return ["1"] * len(requests)

    monkeypatch.setattr(Ensemble, "generate_until", note)
    task = world_task(world, "sums")
    drawn = {"do_sample": True, "temperature": 0.7, "until": ["."], "max_gen_toks": 3}
    task._task.set_config("generation_kwargs", drawn)
    keep_answers(models["old"], models["new"], task, EvaluationSettings())
    assert len(asked) == 10
    assert all(request.args[1] == {"do_sample": False, "until": ["."], "max_gen_toks": 3} for request in asked)
    assert task._task.config.generation_kwargs == drawn


# --- training


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of an adapter that was aligned with some settings; each is trained once."""
    done: dict[str, Path] = {}

    def run(name: str, **alignment: Any) -> Path:
        key = json.dumps([name, alignment])
        if key not in done:
            done[key] = tmp_path_factory.mktemp("adapter")
            old, new = (
                TaskModel(base=Base(base=str(world / base)), adapter=str(world / adapter))
                for base, adapter in (("v1", "old"), ("v2", "new"))
            )
            settings = AlignmentSettings(**alignment)
            train_compatibility_adapter(
                old, new, world_task(world, name), settings, LORA, SETTINGS, EvaluationSettings(), done[key], silent
            )
        return done[key]

    return run


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("name", "texts"), KINDS)
def test_cached_and_live_teachers_say_the_same_of_all_texts(
    name: str, texts: str, trained: Callable[..., Path]
) -> None:
    folders = [
        trained(name, texts=texts, unlabelled=True, ce_share=0.2, teacher_cache=where) for where in ("memory", "off")
    ]
    memory, live = map(losses, folders)
    assert len(memory) == 4  # 34 items
    assert memory == pytest.approx(live, rel=1e-4)
    record, origins = (json.loads((folders[0] / f"{file}.json").read_text()) for file in ("training", "provenance"))
    assert record["texts"] == {"texts": 34 * (4 if texts == "choices" else 1), "items": 34, "unlabelled": 10}
    assert record["task"]["unlabelled"] == "unlabelled"
    assert origins["data"].keys() == {"data", "unlabelled"}


def test_the_record_of_gold_texts_alone(trained: Callable[..., Path]) -> None:
    record = json.loads((trained("scenes") / "training.json").read_text())
    assert record["texts"] == {"texts": 24, "items": 24, "unlabelled": 0}
    assert "unlabelled" not in record["task"]


def test_plain_cross_entropy_reads_gold_texts_alone(trained: Callable[..., Path]) -> None:
    plain, asked = (trained("scenes", weight=None, **more) for more in ({}, {"texts": "choices", "unlabelled": True}))
    adapter = "adapter_model.safetensors"
    assert (plain / adapter).read_bytes() == (asked / adapter).read_bytes()


def test_the_new_teacher_alone_needs_no_old_model(
    world: Path, models: dict[SideName, TaskModel], tmp_path: Path
) -> None:
    alignment = AlignmentSettings(weight="mixture", old_share=0.0, texts="choices", ce_share=0.5)
    arguments = (models["new"], world_task(world, "scenes"), alignment, LORA, SETTINGS, EvaluationSettings())
    train_compatibility_adapter(None, *arguments, tmp_path, silent)
    assert losses(tmp_path)[0] > 0
    assert len(json.loads((tmp_path / "provenance.json").read_text())["models"]) == 1


def test_scales_are_those_of_the_texts(world: Path) -> None:
    base = Base(base=str(world / "v2"))
    task = world_task(world, "scenes")
    plain = TaskData(base, task, "all")
    targets = sum(plain.training.targets)
    assert (plain.scales.right, plain.scales.labelled) == (1, 1)
    assert plain.scales.item == targets / 24
    whole = TaskData(base, task, "all", "choices", all_choices(task.unlabelled()))
    everything = sum(whole.training.targets)
    assert whole.scales.right == everything / targets
    assert whole.scales.item == everything / 34
    assert whole.scales.labelled == 34 / 24
    assert [row.right for row in whole.validation.rows] == [True] * 12
    size = training_size(base, task, AlignmentSettings(texts="choices", unlabelled=True), "all")
    assert size == (34, sum(map(len, whole.training.ids)))
    for name in ("scenes", "sums"):
        gold = training_size(base, world_task(world, name), AlignmentSettings(), "all")
        more = training_size(base, world_task(world, name), AlignmentSettings(unlabelled=True), "all")
        assert (gold.items, more.items) == (24, 34)
        assert gold.tokens < more.tokens < 2 * gold.tokens
    prompts = [Example(asked[0].args[0], "") for asked in world_task(world, "sums").unlabelled()]
    bare = sum(map(len, TokenizedExamples(prompts, load_tokenizer(base)).ids))
    sums = [
        training_size(base, world_task(world, "sums"), AlignmentSettings(unlabelled=on), "all") for on in (False, True)
    ]
    assert sums[1].tokens - sums[0].tokens == bare + 10  # and answers, of one token each
    assert training_size(base, task, AlignmentSettings(weight=None, unlabelled=True), "all").items == 24


def test_states_and_answers_of_other_weights_lie_elsewhere(world: Path, tmp_path: Path) -> None:
    """Which a path does not tell."""
    for name in ("v2", "new"):
        shutil.copytree(world / name, tmp_path / name)
    model = TaskModel(base=Base(base=str(tmp_path / "v2")), adapter=str(tmp_path / "new"))
    data, task = TaskData(model.base, world_task(world, "scenes"), "all"), world_task(world, "sums")
    texts = teacher_cache.Texts(data.training, data.collator)

    def folders(**settings: Any) -> list[Path]:
        states = adapters._state_folders(tmp_path, {"new": model}, texts, None, AlignmentSettings())
        return [states["new"], answers_folder(tmp_path, model, model, task, EvaluationSettings(**settings))]

    before = folders()
    assert folders(seed=3, limit=2) == before
    assert folders(batch_size=3)[1] != before[1]
    weights = tmp_path / "new/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert not {*folders()} & {*before}
    changed = folders()
    task._task.set_config("generation_kwargs", {"until": ["?"]})
    task.__dict__.pop("_unlabelled", None)
    assert folders()[1] != changed[1]


def test_an_endless_warm_up_is_refused_before_teachers_run(
    world: Path, models: dict[SideName, TaskModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "Teachers", None)
    monkeypatch.setattr(adapters, "load_base", None)
    task, settings = world_task(world, "scenes"), replace(SETTINGS, warmup_steps=3)
    message = r"training.warmup_steps: 3 of 3 steps in all"
    with pytest.raises(MuscleError, match=message):
        train_compatibility_adapter(
            models["old"],
            models["new"],
            task,
            AlignmentSettings(),
            LORA,
            settings,
            EvaluationSettings(),
            tmp_path,
            silent,
        )
    with pytest.raises(MuscleError, match=message):
        adapters.train_task_adapter(models["new"].base, task, LORA, settings, tmp_path, silent)


def test_states_of_other_texts_lie_elsewhere(
    world: Path, models: dict[SideName, TaskModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings that share a folder share what is the same, and nothing else."""
    variants: list[dict[str, Any]] = [
        {},
        {"texts": "choices"},
        {"unlabelled": True},
        {"unlabelled": True, "ce_share": 0.5},
    ]
    task, kept = world_task(world, "scenes"), list[str]()
    compute = Teachers._computed

    def noted(self: Any, side: SideName, model: Any) -> Any:
        kept.append(side)
        return compute(self, side, model)

    monkeypatch.setattr(Teachers, "_computed", noted)
    for number, changes in enumerate(variants):
        train_compatibility_adapter(
            models["old"], models["new"], task, AlignmentSettings(teacher_cache="disk", **changes), LORA,
            replace(SETTINGS, batch_size=34), EvaluationSettings(), tmp_path / str(number), silent,
            states_root=tmp_path / "states",
        )  # fmt: skip
    assert kept == ["old", "new"] * 3
    assert len([path for path in (tmp_path / "states").iterdir() if path.name.startswith("answers-")]) == 1


@pytest.mark.parametrize(("name", "texts"), KINDS)
def test_stages_hand_on_what_they_keep(
    name: str, texts: str, world: Path, tmp_path: Path, trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "old": {"base": str(world / "v1"), "adapters": {name: str(world / "old")}},
        "new": {"base": str(world / "v2"), "adapters": {name: str(world / "new")}},
        "tasks": {name: {"include_path": str(world / "tasks"), "validation_share": None, "unlabelled": "unlabelled"}},
        "training": SETTINGS.as_dict(),
        "alignment": {"teacher_cache": "disk", "texts": texts, "unlabelled": True, "ce_share": 0.2},
        "methods": {"one": {}},
    }
    ran = []
    for stage in Plan(make_recipe(content)).stages():
        if stage.name.startswith(("checks/", "teachers/")) or stage.name.endswith("/one"):
            if stage.name.startswith("adapters/"):
                monkeypatch.setattr(Ensemble, "__init__", None)  # all is there
                monkeypatch.setattr("muscle.update.teachers.compute_states", None)
            elif stage.name.startswith("logs/"):
                break
            ran.append(stage.name)
            (tmp_path / stage.name).mkdir(parents=True)
            inputs = {keyword: tmp_path / read for keyword, read in stage.inputs.items()}
            stage.function(tmp_path / stage.name, silent, **stage.settings, **inputs)
    kind = "-choices" if texts == "choices" else ""
    answers = [] if kind else [f"teachers/{name}/answers"]
    states = [f"teachers/{name}/{side}{kind}-unlabelled" for side in ("old", "new")]
    assert ran == [f"checks/{name}", *answers, *states, f"adapters/{name}/one"]
    assert json.loads((tmp_path / f"checks/{name}/items.json").read_text())["unlabelled"] == 10
    straight = trained(name, texts=texts, unlabelled=True, ce_share=0.2, teacher_cache="memory")
    adapter = "adapter_model.safetensors"
    assert (tmp_path / f"adapters/{name}/one" / adapter).read_bytes() == (straight / adapter).read_bytes()
