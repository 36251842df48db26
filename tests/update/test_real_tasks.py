"""The tasks of the project and of the paper on their real data; SAMSum on dialogues written here."""

import csv
import json
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset
from lm_eval.models.huggingface import HFLM
from rouge_score.rouge_scorer import RougeScorer

import muscle.recipes
from muscle.errors import MuscleError
from muscle.recipes.prepare_data import prepare
from muscle.update.prompts import templates_compiled_once
from muscle.update.recipe import TaskSettings
from muscle.update.tasks import Example, Task, load_task

TASKS = Path(muscle.recipes.__file__).parent / "tasks"

SIZES = {  # training, held out, evaluated; where prompts repeat, items with the same one stay together
    "banking77": (8002, 2001, 3080),
    "clinc150": (12000, 3000, 4500),
    "cogs": (19324, 4831, 3000),
    "e2e": (3738, 934, 630),
    "gsm8k": (5978, 1495, 1319),
    "arc_easy": (1801, 450, 2376),
    "arc_challenge": (895, 224, 1172),
    "openbookqa": (3966, 991, 500),
    "commonsense_qa": (7793, 1948, 1221),
    "hellaswag": (4017, 1004, 5021),
    "piqa": (735, 184, 919),
}
UPSTREAM = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "openbookqa": "openbookqa"}


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real data in the fields of the tasks."""
    folder = tmp_path_factory.mktemp("real")
    prepare(data / "tasks", folder)
    return folder


@pytest.fixture(scope="module")
def load(local: Path) -> Callable[..., Task]:
    return cache(lambda name, **settings: load_task(name, TaskSettings(**settings), local))


def rows_of(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines)) if file.suffix == ".csv" else [json.loads(line) for line in lines]


def instructions(name: str, folder: Path, split: str) -> list[Example]:
    """ARC and OpenBookQA from the text that upstream made of each item, by string operations alone."""
    file = folder / "more_multiple_choice" / UPSTREAM[name] / f"{split}.json"
    examples = []
    for row in json.loads(file.read_text()):
        text = row["instruction"].removeprefix("Please choose the correct answer to the question: ")
        question, answers = text[: text.rindex("\n\nAnswer format:")].rsplit("\n\nAnswer1: ", 1)
        number = int(row["answer"][-1])
        answer = f" Answer1: {answers}".split(f" Answer{number}: ")[1].split(f" Answer{number + 1}: ")[0]
        prompt = question if name == "openbookqa" else f"Question: {question}\nAnswer:"
        examples.append(Example(prompt, f" {answer}"))
    return examples


def upstream(name: str, folder: Path) -> list[Example]:
    """The training texts of a task straight from its authors' files, without the code under test."""
    if name in UPSTREAM:
        return instructions(name, folder, "train")
    if name == "banking77":
        label = {"reverted_card_payment?": "reverted card payment", "Refund_not_showing_up": "refund not showing up"}
        return [
            Example(
                f"Message: {row['text']}\nIntent:", " " + label.get(row["category"], row["category"].replace("_", " "))
            )
            for row in rows_of(folder / name / "train.csv")
        ]
    if name == "clinc150":
        pairs = json.loads((folder / name / "data_full.json").read_text())["train"]
        return [Example(f"Request: {text}\nIntent:", " " + intent.replace("_", " ")) for text, intent in pairs]
    if name == "cogs":
        lines = [line.split("\t") for line in (folder / name / "train.tsv").read_text().splitlines()]
        return [Example(f"Sentence: {sentence}\nForm:", f" {form}") for sentence, form, _ in lines]
    if name == "e2e":
        rows = rows_of(folder / name / "devset.csv")
        return [Example(f"Attributes: {row['mr']}\nDescription:", f" {row['ref']}") for row in rows]
    if name == "gsm8k":
        rows = rows_of(folder / name / "train.jsonl")
        return [Example(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in rows]
    if name == "commonsense_qa":
        rows = rows_of(folder / "more_multiple_choice" / "CommonsenseQA" / "train.jsonl")
        return [
            Example(
                f"Question: {row['question']['stem'].strip()}\n"
                + "".join(f"{choice['label']}. {choice['text']}\n" for choice in row["question"]["choices"])
                + "Answer:",
                f" {row['answerKey']}",
            )
            for row in rows
        ]
    if name == "piqa":
        rows = rows_of(folder / name / "valid_labelled.jsonl")
        return [Example(f"Question: {row['goal']}\nAnswer:", f" {row[('sol1', 'sol2')[row['label']]]}") for row in rows]
    rows = rows_of(folder / "hellaswag" / "val.jsonl")
    return [Example(f"{row['activity_label']}: {row['ctx']}", f" {row['endings'][row['label']]}") for row in rows]


def plain(example: Example) -> tuple[str, str]:
    """What lm-eval's tidying of HellaSwag leaves alone: letters, whatever their case."""
    return re.sub(r"\[.*?\]|\s", "", example.context).lower(), re.sub(r"\[.*?\]|\s", "", example.answer).lower()


@pytest.mark.parametrize("name", SIZES)
def test_texts_are_upstreams_in_the_tasks_prompt(name: str, load: Callable[..., Task], data: Path) -> None:
    task = load(name)
    training, held_out = task.examples("training"), task.examples("validation")
    assert (len(training), len(held_out), len(task.for_evaluation("test").eval_docs)) == SIZES[name]
    contexts = [{example.context for example in part} for part in (training, held_out)]
    assert not contexts[0] & contexts[1]
    expected = upstream(name, data / "tasks")
    if name == "hellaswag":  # lm-eval removes marks and doubled spaces, and capitalises what a context ends in
        assert {plain(example) for example in training + held_out} < {plain(example) for example in expected}
    elif name == "piqa":  # half of upstream's split is evaluated
        assert {*training, *held_out} < set(expected)
    else:
        assert sorted(training + held_out, key=repr) == sorted(expected, key=repr)
        in_order = [example for example in expected if example in set(training[:3])][:3] == training[:3]
        assert in_order == (name not in {"banking77", "clinc150"})  # upstream sorts these two by label


def test_texts_to_the_byte(load: Callable[..., Task]) -> None:
    expected = {
        "banking77": Example("Message: I am still waiting on my card?\nIntent:", " card arrival"),
        "e2e": Example(
            "Attributes: name[Alimentum], area[city centre], familyFriendly[no]\nDescription:",
            " There is a place in the city centre, Alimentum, that is not family-friendly.",
        ),
        "hellaswag": Example(
            "Clean and jerk: A lady walks to a barbell. She bends down and grabs the pole. The lady",
            " stands and lifts the weight over her head.",
        ),
    }
    for name, example in expected.items():
        assert example in load(name).examples("training") + load(name).examples("validation")


@pytest.mark.parametrize("name", ["piqa", "hellaswag"])
def test_halves_share_no_prompt(name: str, load: Callable[..., Task]) -> None:
    task = load(name)
    definition = task.for_evaluation("test")
    with templates_compiled_once():
        evaluated = {definition.doc_to_text(doc) for doc in definition.eval_docs}
    assert not evaluated & {example.context for example in task.examples("training") + task.examples("validation")}


def test_preparing_is_deterministic(data: Path, local: Path, tmp_path: Path) -> None:
    prepare(data / "tasks", tmp_path)
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.jsonl"))
    assert files == sorted(file.relative_to(local) for file in local.rglob("*.jsonl"))
    assert all((tmp_path / file).read_bytes() == (local / file).read_bytes() for file in files)


def test_held_out_items_depend_on_the_seed_alone(local: Path) -> None:
    one, again, other = (load_task("piqa", TaskSettings(seed=seed), local).examples("validation") for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize(("name", "number"), [("banking77", 77), ("clinc150", 150)])
def test_intents(name: str, number: int, load: Callable[..., Task]) -> None:
    task = load(name)
    definition = task.for_evaluation("test")
    docs = definition.eval_docs
    choices = definition.doc_to_choice(docs[0])
    assert len(set(choices)) == len(choices) == number
    assert all(choice == choice.lower() and "_" not in choice for choice in choices)
    with templates_compiled_once():
        assert {definition.doc_to_target(doc) for doc in docs} == set(choices)


def test_clinc150_of_the_hub(local: Path, tmp_path: Path) -> None:
    """There intents are class labels, and requests out of scope lie among the others."""
    names = ["oos", "translate", "pto_used"]
    rows = {"text": ["hello", "say it in French", "days off?"], "intent": [0, 1, 2]}
    dataset = Dataset.from_dict(rows).cast_column("intent", ClassLabel(names=names))
    (tmp_path / "clinc150").mkdir()
    for split in ("train", "test"):
        dataset.to_parquet(tmp_path / "clinc150" / f"{split}.parquet")
    task = load_task("clinc150", TaskSettings(validation_share=0.0), tmp_path)
    assert [example.answer for example in task.examples("training")] == [" translate", " pto used"]


def test_e2e_takes_the_best_reference(load: Callable[..., Task]) -> None:
    definition = load("e2e").for_evaluation("test")
    doc = definition.eval_docs[0]
    assert len(doc["references"]) > 1
    answer = " Blue Spice is a coffee shop in the city ."
    scores = definition.process_results(doc, [answer])
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, score in scores.items():
        assert score == max(rouge.score(reference, answer)[name].fmeasure for reference in doc["references"])


def test_cogs_scores_the_form_without_the_space_before_it(load: Callable[..., Task]) -> None:
    definition = load("cogs").for_evaluation("test")
    definition.build_all_requests(limit=2)
    for request, tail in zip(definition.instances, ("", " x"), strict=True):
        request.resps = [f" {request.doc['form']}{tail}"]
    definition.apply_filters()
    scores = [definition.process_results(r.doc, [r.filtered_resps["none"]]) for r in definition.instances]
    assert scores == [{"exact_match": 1.0}, {"exact_match": 0.0}]


def test_raw_data_that_are_not_upstreams(tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="holds none of the data sets: give the folder that has banking77, clinc150"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "banking77").mkdir()
    with pytest.raises(MuscleError, match=r"banking77 is not as upstream has it \(FileNotFoundError"):
        prepare(tmp_path, tmp_path / "out")
    for split in ("train", "test"):
        (tmp_path / "banking77" / f"{split}.csv").write_text("text,label\nhello,1\n")
    with pytest.raises(MuscleError, match=r"banking77 is not as upstream has it \(KeyError: 'category'\)"):
        prepare(tmp_path, tmp_path / "out")


# --- SAMSum

DIALOGUES = [
    {"dialogue": f"Ann: Is the {thing} ready?\r\nBob: Not yet, on {day}.", "summary": f"The {thing} is ready on {day}."}
    for thing in ("cake", "report", "boat", "bike", "soup")
    for day in ("Monday", "Friday")
]


@pytest.fixture
def samsum(tmp_path: Path) -> Task:
    (tmp_path / "samsum").mkdir()
    for split, rows in (("train", DIALOGUES), ("test", DIALOGUES[:2])):
        (tmp_path / "samsum" / f"{split}.json").write_text(json.dumps(rows))
    return load_task("samsum", TaskSettings(), tmp_path)


def test_samsum_is_the_papers(samsum: Task) -> None:
    rows = samsum.examples("training") + samsum.examples("validation")
    assert {(row.context, row.answer) for row in rows} == {
        (f"Dialogue: {doc['dialogue']}\nSummary:", f" {doc['summary']}") for doc in DIALOGUES
    }
    definition = samsum.for_evaluation("test")
    assert definition.config.generation_kwargs["no_repeat_ngram_size"] == 2
    assert definition.config.generation_kwargs["until"] == ["Dialogue:", "Summary:", "</s>", "\n\n"]
    assert definition.config.metric_list[0]["metric"] == "rouge1"
    doc, answer = definition.eval_docs[0], " Ann's cake is ready on Friday."
    expected = RougeScorer(["rouge1"]).score(doc["summary"], answer)["rouge1"].fmeasure
    assert definition.process_results(doc, [answer])["rouge1"] == expected


def test_no_repeated_bigram_reaches_the_model(samsum: Task, world: Path) -> None:
    lm = HFLM(pretrained=str(world / "v1"), device="cpu")

    def bigrams(**changes: Any) -> list[tuple[int, int]]:
        definition = samsum.for_evaluation("test")
        definition.set_config(
            "generation_kwargs", {**definition.config.generation_kwargs, "max_gen_toks": 40, **changes}
        )
        definition.build_all_requests(limit=1)
        tokens = lm.tok_encode(lm.generate_until(definition.instances, disable_tqdm=True)[0])
        return list(pairwise(tokens))

    torch.manual_seed(0)
    kept, free = bigrams(), bigrams(no_repeat_ngram_size=0)
    assert len(set(kept)) == len(kept) > 5
    assert len(set(free)) < len(free)


def test_project_tasks_are_whole() -> None:
    names = {file.stem for file in TASKS.glob("*.yaml")}
    assert names == {"banking77", "clinc150", "cogs", "e2e", "samsum"}
    for name in names:
        text = (TASKS / f"{name}.yaml").read_text().replace("!function ", "")
        assert yaml.safe_load(text)["task"] == name
