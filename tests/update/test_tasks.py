"""From an lm-eval task to padded tensors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muscle.errors import MuscleError
from muscle.update.models import load_tokenizer
from muscle.update.recipe import Base, TaskSettings
from muscle.update.task_sources import lm_eval_definitions
from muscle.update.tasks import Example, Task, hold_out, load_task
from muscle.update.tokenized import IGNORED, PaddingCollator, TokenizedExamples

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}"
    "{{ '' if loop.last and not add_generation_prompt else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + TEMPLATE
CHOICES = [
    {"question": f"What is {i} times 3?", "options": options, "gold": options.index(f"{3 * i}")}
    for i in range(1, 21)
    for options in [[f"{3 * i}", "no", f"{i} times"][i % 3 :] + [f"{3 * i}", "no", f"{i} times"][: i % 3]]
]
MULTIPLE_CHOICE = """
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: options
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATION = """
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ANSWERS = [{"question": f"{i} and 1?", "answer": str(i + 1)} for i in range(20)]
SPLITS = "training_split: train\ntest_split: test\n"


class Folder:
    """An include_path and a folder of local data, for tasks that a test defines."""

    def __init__(self, root: Path) -> None:
        self.yaml, self.data = root / "yaml", root / "data"
        self.yaml.mkdir()
        self.data.mkdir()

    def define(self, name: str, text: str, **splits: Sequence[dict[str, Any]]) -> None:
        (self.yaml / f"{name}.yaml").write_text(f"task: {name}\n{text}")
        self.add(name, **splits)

    def add(self, name: str, **splits: Sequence[dict[str, Any]]) -> None:
        for split, rows in splits.items():
            (self.data / name).mkdir(exist_ok=True)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (self.data / name / f"{split}.jsonl").write_text(lines)

    def load(self, name: str, **settings: Any) -> Task:
        return load_task(name, TaskSettings(include_path=str(self.yaml), **settings), self.data)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows a few whole numbers, with begin- and end-of-text tokens, and a chat template."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = ["the answer is 1234", "the answer is 1234 .", "Q: naïve 日本 1234\nA: yes"] * 20
    tokenizer.train_from_iterator(texts, trainer)
    both = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(single="<s> $A", special_tokens=both)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def lm(bpe: PreTrainedTokenizerFast) -> HFLM:
    """An untrained model behind lm-eval's interface: how lm-eval itself builds and tokenizes prompts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(bpe), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return HFLM(pretrained=LlamaForCausalLM(config), tokenizer=bpe, device="cpu")


def settings(world: Path, **others: Any) -> TaskSettings:
    return TaskSettings(include_path=str(world / "tasks"), **others)


def scored(task: Task, lm: HFLM | None = None) -> list[tuple[str, str | None]]:
    """(context, gold continuation or None) of the held-out items as lm-eval's own evaluation builds them."""
    definition = task.for_evaluation("validation")
    definition.build_all_requests(
        system_instruction=task.settings.system_instruction,
        apply_chat_template=lm is not None,
        fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template if lm else None,
    )
    if definition.OUTPUT_TYPE == "generate_until":
        return [(request.args[0], None) for request in definition.instances]
    return [request.args for request in definition.instances if request.idx == request.doc["gold"]]


def test_texts_are_the_tasks_own(world: Path) -> None:
    scenes = load_task("scenes", settings(world, validation_share=0.0)).examples("training")
    assert len(scenes) == 24
    assert scenes[0].context.startswith("scene : ")
    assert scenes[0].context.endswith(" . then")
    assert scenes[0].answer.startswith((" she takes the ", " he takes the "))
    sums = load_task("sums", settings(world, validation_share=None)).examples("validation")
    assert len(sums) == 12
    for item in sums:
        words = item.context.split()
        assert item.answer == f" {int(words[4]) + int(words[9])}"


@pytest.mark.parametrize(
    "extra",
    ["", 'description: "Answer.\\n\\n"\n', "gen_prefix: 'It is'\n", "target_delimiter: ''\n", "num_fewshot: 0\n"],
)
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", ["choice", "generation"])
def test_context_is_that_of_a_zero_shot_evaluation(folder: Folder, lm: HFLM, extra: str, chat: bool, kind: str) -> None:
    text, rows = (MULTIPLE_CHOICE, CHOICES) if kind == "choice" else (GENERATION, ANSWERS)
    folder.define("mine", SPLITS + text + extra, train=rows, test=rows[:2])
    task = folder.load("mine", chat_template=chat, system_instruction="Be brief." if chat else None)
    held_out = task.examples("validation", lm.tokenizer)
    expected = scored(task, lm if chat else None)
    assert len(held_out) == len(expected) == 4
    for example, (context, continuation) in zip(held_out, expected, strict=True):
        assert example.context == context
        assert continuation in (None, example.answer)


def test_rendering_by_hand(folder: Folder, bpe: PreTrainedTokenizerFast) -> None:
    folder.define("mine", SPLITS + MULTIPLE_CHOICE, train=CHOICES, test=CHOICES[:1])
    plain = folder.load("mine", validation_share=0.0).examples("training")
    assert plain[0] == Example("Q: What is 1 times 3?\nA:", " 3")
    chat = folder.load("mine", validation_share=0.0, chat_template=True, system_instruction="Be brief.")
    assert chat.examples("training", bpe)[0] == Example(
        "<s><system>Be brief.\n<user>Q: What is 1 times 3?\nA:\n<assistant>", "3"
    )


@pytest.mark.parametrize(
    ("extra", "answer"),
    [
        ("doc_to_target: '{{answers}}'\n", " four"),
        ("doc_to_target: answers\n", " four"),
        ("doc_to_target: number\n", " 4"),
        ("doc_to_target: '{{number}}'\ntarget_delimiter: ': '\n", ": 4"),
        ("doc_to_target: index\ndoc_to_choice: answers\n", " 4"),
        ("doc_to_target: number\ngen_prefix: 'It is'\n", " 4"),
        ("doc_to_target: number\ngen_prefix: 'It is '\n", "4"),
    ],
)
def test_kinds_of_generated_targets(folder: Folder, extra: str, answer: str) -> None:
    row = {"question": "2 and 2?", "answers": ["four", "4"], "number": 4, "index": 1}
    text = GENERATION.replace("doc_to_target: answer\n", extra)
    folder.define("mine", SPLITS + text, train=[row], test=[row])
    (example,) = folder.load("mine", validation_share=0.0).examples("training")
    assert example.answer == answer


@pytest.mark.parametrize(("target", "gold"), [("word", "blue"), ("indices", "blue"), ("index", "blue")])
def test_kinds_of_choice_targets(folder: Folder, target: str, gold: str) -> None:
    row = {"question": "Sky?", "options": ["red", "blue"], "word": "blue", "index": 1, "indices": [1, 0]}
    text = MULTIPLE_CHOICE.replace("doc_to_target: gold", f"doc_to_target: {target}")
    folder.define("mine", SPLITS + text, train=[row], test=[row])
    (example,) = folder.load("mine", validation_share=0.0).examples("training")
    assert example == Example("Q: Sky?\nA:", f" {gold}")


@pytest.mark.parametrize("gold", [-1, 2, "green"])
def test_unlabelled_items_are_refused(folder: Folder, gold: int | str) -> None:
    row = {"question": "Sky?", "options": ["red", "blue"], "gold": gold}
    folder.define("mine", SPLITS + MULTIPLE_CHOICE, train=[row], test=[{**row, "gold": type(gold)()}])
    with pytest.raises(
        MuscleError, match=rf"'mine', training item 0: its answer '?{gold}'? is none of its 2 choices: "
    ):
        folder.load("mine").examples("training")


def test_choices_in_the_context(folder: Folder) -> None:
    """Winogrande: one context for each choice, one continuation."""
    row = {"sentence": "The cup is not in the box as _ is too big.", "option1": "the box", "option2": "the cup"}
    folder.add("winogrande", train=[{**row, "answer": "2"}], validation=[{**row, "answer": "1"}])
    task = load_task("winogrande", TaskSettings(validation_share=0.0), folder.data)
    assert task.examples("training") == [Example("The cup is not in the box as the cup", " is too big.")]


def test_log_likelihood_tasks(folder: Folder) -> None:
    text = """
doc_to_text: "{{text.split(' ')[:-1] | join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    row = {"text": "one two three"}
    folder.define("last_word", f"{SPLITS}output_type: loglikelihood{text}", train=[row], test=[row])
    rolling = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    folder.define("whole", SPLITS + rolling, train=[row], test=[row])
    assert folder.load("last_word", validation_share=0.0).examples("training") == [Example("one two", " three")]
    assert folder.load("whole", validation_share=0.0).examples("training") == [Example("", "one two three")]


def test_code_of_the_user(folder: Folder) -> None:
    (folder.yaml / "mine.py").write_text(
        "def ask(doc):\n    return doc['question'].upper()\n\n"
        "def keep(docs):\n    return docs.filter(lambda doc: doc['answer'] != '3')\n"
    )
    text = GENERATION.replace('"Q: {{question}}\\nA:"', "!function mine.ask") + "process_docs: !function mine.keep\n"
    folder.define("mine", SPLITS + text, train=ANSWERS, test=ANSWERS)
    task = folder.load("mine", validation_share=0.0)
    assert task.examples("training")[:3] == [
        Example("0 AND 1?", " 1"),
        Example("1 AND 1?", " 2"),
        Example("3 AND 1?", " 4"),
    ]
    assert len(task.for_evaluation("test").eval_docs) == 19


# --- what is held out


@given(
    keys=st.lists(st.text("abc", max_size=2), max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_held_out_items(keys: list[str], share: float, seed: int) -> None:
    training, held_out = hold_out(keys, share, seed)
    assert sorted(training + held_out) == list(range(len(keys)))
    assert training == sorted(training)
    assert held_out == sorted(held_out)
    assert not {keys[i] for i in training} & {keys[i] for i in held_out}
    assert len(held_out) <= round(share * len(keys))
    if len(set(keys)) == len(keys):
        assert len(held_out) == round(share * len(keys))
    assert hold_out(keys, share, seed) == (training, held_out)


def test_the_seed_decides_what_is_held_out() -> None:
    keys = [str(i) for i in range(200)]
    assert hold_out(keys, 0.2, seed=0) != hold_out(keys, 0.2, seed=1)


def test_train_limit_draws_before_holding_out(folder: Folder) -> None:
    folder.define("mine", SPLITS + GENERATION, train=ANSWERS, test=ANSWERS[:3])
    everything = {example.context for example in folder.load("mine", validation_share=0.0).examples("training")}
    task = folder.load("mine", train_limit=10)
    parts = [{example.context for example in task.examples(split)} for split in ("training", "validation")]
    assert [len(part) for part in parts] == [8, 2]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] < everything
    again = folder.load("mine", train_limit=10)
    assert again.examples("training") == task.examples("training")
    other = folder.load("mine", train_limit=10, seed=1)
    assert {example.context for example in other.examples("training")} != parts[0]


def test_own_validation_split_needs_a_test_split(folder: Folder) -> None:
    splits = "training_split: train\nvalidation_split: validation\n"
    folder.define("mine", splits + GENERATION, train=ANSWERS, validation=ANSWERS)
    with pytest.raises(
        MuscleError, match=r"task 'mine' is evaluated on its validation split, .*: set validation_share"
    ):
        folder.load("mine", validation_share=None).examples("validation")
    assert len(folder.load("mine").for_evaluation("test").eval_docs) == 20


def test_evaluation_of_held_out_items_leaves_the_task_alone(world: Path) -> None:
    task = load_task("scenes", settings(world))
    held_out = task.for_evaluation("validation")
    contexts = [held_out.doc_to_text(doc) for doc in held_out.eval_docs]
    assert contexts == [example.context for example in task.examples("validation")]
    assert len(contexts) == 5
    assert len(task.for_evaluation("test").eval_docs) == 20
    assert len(load_task("scenes", settings(world, validation_share=None)).for_evaluation("validation").eval_docs) == 12


def test_changes_of_one_copy_stay_there(world: Path) -> None:
    task = load_task("sums", settings(world))
    changed = task.for_evaluation("test")
    changed.set_config("generation_kwargs", {"do_sample": True}, update=True)
    changed.set_config("repeats", 4)
    fresh = task.for_evaluation("test").config
    assert (fresh.generation_kwargs["do_sample"], fresh.repeats) == (False, 1)


def test_shots(folder: Folder) -> None:
    """As many as the task or the settings say, the same each time, and none that is held out."""
    shots = "num_fewshot: 3\nfewshot_split: train\n"
    folder.define("mine", SPLITS + GENERATION + shots, train=ANSWERS, test=ANSWERS[:3])
    task = folder.load("mine", validation_share=0.5)
    held_out = {example.context for example in task.examples("validation")}
    assert not any("\n\n" in example.context for example in task.examples("training"))

    def prompts(task: Task, split: Any) -> list[str]:
        definition = task.for_evaluation(split)
        definition.build_all_requests()
        return [request.args[0] for request in definition.instances]

    seen = prompts(task, "validation")
    for prompt in seen:
        *shown, asked = prompt.split("\n\n")
        assert len(shown) == 3
        assert asked in held_out
        assert not any(shot.startswith(context) for shot in shown for context in held_out)
    assert prompts(task, "validation") == seen
    assert [prompt.count("\n\n") for prompt in prompts(task, "test")] == [3, 3, 3]
    assert [prompt.count("\n\n") for prompt in prompts(folder.load("mine", num_fewshot=1), "test")] == [1, 1, 1]
    assert [prompt.count("\n\n") for prompt in prompts(folder.load("mine", num_fewshot=0), "test")] == [0, 0, 0]
    with pytest.raises(MuscleError, match="task 'mine': 2 items are left for 3 shots"):
        folder.load("mine", validation_share=0.9).for_evaluation("validation")
    with pytest.raises(MuscleError, match="task 'mine': nothing is held out of 20 items: raise validation_share"):
        folder.load("mine", validation_share=0.0).for_evaluation("validation")


def test_evaluation_texts_hold_every_prompt_and_choice(folder: Folder) -> None:
    folder.define("mine", SPLITS + MULTIPLE_CHOICE, train=CHOICES, test=CHOICES[:2])
    texts = folder.load("mine").evaluation_texts()
    expected = [f"Q: {row['question']}\nA:" for row in CHOICES[:2]]
    expected += {f" {option}" for row in CHOICES[:2] for option in row["options"]}
    assert sorted(texts) == sorted(expected)


def test_data_hash_tells_data_and_prompts_apart(folder: Folder) -> None:
    folder.define("mine", SPLITS + GENERATION, train=ANSWERS, test=ANSWERS[:3])
    before = folder.load("mine").data_hash()
    assert folder.load("mine").data_hash() == before
    changed = {folder.load("mine", seed=1).data_hash(), folder.load("mine", train_limit=19).data_hash()}
    folder.add("mine", test=ANSWERS[:2])
    changed.add(folder.load("mine").data_hash())
    (folder.yaml / "mine.yaml").write_text("task: mine\n" + SPLITS + GENERATION.replace("Q:", "Ask:"))
    changed.add(folder.load("mine").data_hash())
    assert len(changed | {before}) == 5


# --- where tasks and data come from


def test_names_that_are_no_task(world: Path, folder: Folder) -> None:
    (folder.yaml / "both.yaml").write_text("group: both\ntask: [first, second]\n")
    with pytest.raises(MuscleError, match=r"'both' is a group of lm-eval tasks: .* one by one \(first, second\)"):
        folder.load("both")
    with pytest.raises(MuscleError, match=r"no folder .*elsewhere: correct include_path"):
        load_task("scenes", TaskSettings(include_path=str(world / "elsewhere")))


def test_unknown_names_get_the_nearest(world: Path) -> None:
    with pytest.raises(MuscleError, match=r"no lm-eval task 'scene' under .*: did you mean 'scenes'\?"):
        load_task("scene", settings(world))
    with pytest.raises(MuscleError, match=r"no lm-eval task 'arc_eazy': did you mean 'arc_easy'\?"):
        load_task("arc_eazy", TaskSettings())
    with pytest.raises(MuscleError, match=r"'mmlu_stem' .* one by one \(.*\)"):
        load_task("mmlu_stem", TaskSettings())


@pytest.mark.slow  # lm-eval's own index of 14,000 files
def test_names_are_lm_evals() -> None:
    manager = TaskManager()
    expected = {name: manager.task_index[name].yaml_path for name in {*manager.all_subtasks, *manager.all_groups}}
    found = lm_eval_definitions()
    assert {name: found[name].parent for name in expected} == {name: file.parent for name, file in expected.items()}
    with pytest.raises(MuscleError, match=r"'ai2_arc' is a group of lm-eval tasks: .*\(arc_challenge, arc_easy\)"):
        load_task("ai2_arc", TaskSettings())


def test_local_formats_say_the_same(folder: Folder) -> None:
    folder.define("mine", SPLITS + MULTIPLE_CHOICE, train=CHOICES, test=CHOICES[:2])
    lines = folder.load("mine").examples("training")
    for split in ("train", "test"):
        file = folder.data / "mine" / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.unlink()
        if split == "train":
            datasets.Dataset.from_list(rows).to_parquet(file.with_suffix(".parquet"))
        else:
            file.with_suffix(".json").write_text(json.dumps(rows))
    assert folder.load("mine").examples("training") == lines


def test_a_missing_split_matters_when_it_is_needed(folder: Folder) -> None:
    folder.define("mine", SPLITS + "validation_split: dev\n" + GENERATION, test=ANSWERS)
    task = folder.load("mine")
    assert len(task.for_evaluation("test").eval_docs) == 20
    with pytest.raises(MuscleError, match=r"mine has no train split: add train.jsonl, .json or .parquet"):
        task.examples("training")
    with pytest.raises(MuscleError, match="mine has no train split"):
        folder.load("mine", num_fewshot=2)
    with pytest.raises(MuscleError, match="mine has no dev split"):
        folder.load("mine", validation_share=None).examples("validation")
    (folder.data / "mine" / "test.jsonl").rename(folder.data / "mine" / "train.jsonl")
    with pytest.raises(MuscleError, match="mine has no test split"):
        folder.load("mine")


def test_a_task_without_training_split(folder: Folder) -> None:
    folder.define("mine", "test_split: test\n" + GENERATION, test=ANSWERS)
    with pytest.raises(MuscleError, match="task 'mine' has no training split: add training_split to its YAML file"):
        folder.load("mine").examples("training")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.jsonl", '{"question": "a"\n', "test.jsonl is not JSON objects, one a line"),
        ("test.json", '{"question": "a"}', "test.json is not a JSON list of objects"),
        ("test.jsonl", "", "test.jsonl has no rows"),
        ("test.parquet", "no", "test.parquet is no readable Parquet file"),
        ("test.jsonl", '{"a": 1}\n{"b": 1}\n', "test.jsonl: rows 1 and 2 differ in having the field 'a'"),
        ("test.jsonl", '{"a": 1}\n{"a": "x"}\n', "test.jsonl has a field with values of different types"),
        ("test.jsonl", '{"answer": "x"}\n', r"test.jsonl lacks the field 'question' that doc_to_text of task 'mine'"),
        ("test.jsonl", '{"question": "x"}\n', r"test.jsonl lacks the field 'answer' .* \(it has question\): add it"),
    ],
)
def test_unusable_data_files_are_named(folder: Folder, name: str, content: str, message: str) -> None:
    folder.define("mine", SPLITS + GENERATION, train=ANSWERS)
    (folder.data / "mine" / name).write_text(content)
    with pytest.raises(MuscleError, match=message):
        folder.load("mine")


def test_two_files_of_one_split(folder: Folder) -> None:
    folder.define("mine", SPLITS + GENERATION, train=ANSWERS, test=ANSWERS)
    (folder.data / "mine" / "test.json").write_text(json.dumps(ANSWERS))
    with pytest.raises(MuscleError, match=r"test.jsonl and test.json: keep one of them"):
        folder.load("mine")


def test_items_that_cannot_be_rendered_are_named(folder: Folder) -> None:
    folder.define("mine", SPLITS + GENERATION, train=[{"answer": "3"}], test=ANSWERS)
    with pytest.raises(MuscleError, match=r"'mine', training item 0: cannot be rendered \(.*'question' is undefined\)"):
        folder.load("mine").examples("training")


def test_data_out_of_reach(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = r"'gsm8k' cannot be loaded with data set openai/gsm8k \(.*into <data>/gsm8k/ .* set the recipe's `data`"
    with pytest.raises(MuscleError, match=message):
        load_task("gsm8k", TaskSettings(), folder.data)
    with pytest.raises(
        MuscleError, match="lm-eval task 'cogs' has no data set on the hub: put its splits into <data>/cogs/"
    ):
        load_task("cogs", TaskSettings())
    with pytest.raises(MuscleError, match=r"no folder .*nowhere: correct the recipe's `data`"):
        load_task("gsm8k", TaskSettings(), folder.data / "nowhere")


# --- chat templates


def test_no_chat_template(folder: Folder, world: Path) -> None:
    tokenizer = load_tokenizer(Base(base=str(world / "v1")))
    task = load_task("scenes", settings(world, chat_template=True))
    with pytest.raises(
        MuscleError, match=r"task 'scenes': the tokenizer \(.*v1\) has no chat template: set chat_template"
    ):
        task.examples("training", tokenizer)


def test_template_that_refuses_a_system_message(folder: Folder, bpe: PreTrainedTokenizerFast, lm: HFLM) -> None:
    folder.define("mine", SPLITS + MULTIPLE_CHOICE, train=CHOICES, test=CHOICES[:1])
    task = folder.load("mine", chat_template=True, system_instruction="Be brief.")
    bpe.chat_template = NO_SYSTEM
    try:
        held_out, expected = task.examples("validation", bpe), scored(task, lm)
    finally:
        bpe.chat_template = TEMPLATE
    assert [(example.context, example.answer) for example in held_out] == expected
    assert held_out[0].context.startswith("<s><user>Q:")


@pytest.mark.parametrize("chat", [False, True])
def test_tokens_are_those_that_are_scored(folder: Folder, lm: HFLM, bpe: PreTrainedTokenizerFast, chat: bool) -> None:
    """One begin-of-text token, whether the tokenizer puts it or the chat template."""
    folder.define("mine", SPLITS + MULTIPLE_CHOICE, train=CHOICES, test=CHOICES[:1])
    rows = folder.load("mine", chat_template=chat).examples("training", bpe)
    for row, ids in zip(rows, TokenizedExamples(rows, bpe).ids, strict=True):
        context, continuation = lm._encode_pair(row.context, row.answer)
        assert ids == [*context, *continuation, bpe.eos_token_id]
        assert ids.count(bpe.bos_token_id) == 1


# --- tensors


def test_every_token_but_the_first_is_a_target(world: Path) -> None:
    data = TokenizedExamples([Example("question : lea", " has")], load_tokenizer(Base(base=str(world / "v1"))))
    ids = data[0]["input_ids"].tolist()
    assert data[0]["labels"].tolist() == [IGNORED, *ids[1:]]


@pytest.mark.parametrize(
    "row",
    [
        Example("the answer is", " 1234"),
        Example("the answer is 12", "34 ."),  # one token runs from the context into the answer
        Example("the answer is ", "1234"),
        Example("Q: naïve 日本", " 日本 1234\n"),
        Example("日", "本"),
        Example("", "the answer"),
        Example("the answer is", ""),
    ],
)
def test_answer_tokens_are_those_that_hold_a_character_of_it(row: Example, bpe: PreTrainedTokenizerFast) -> None:
    item = TokenizedExamples([row], bpe, tokens="answer")[0]
    ids = item["input_ids"].tolist()
    context = len(row.context.encode())
    expected, read = [IGNORED], 0
    for token in ids[1:-1]:  # between <s> and </s>; byte-level: a character of the vocabulary is a byte
        read += len(bpe.convert_ids_to_tokens(token))
        expected.append(token if read > context else IGNORED)
    assert read == len((row.context + row.answer).encode())
    assert item["labels"].tolist() == [*expected, bpe.eos_token_id]


def test_a_token_on_the_boundary_exists(bpe: PreTrainedTokenizerFast) -> None:
    """Or the test above would not try what it says."""
    assert "Ġ1234" in bpe.convert_ids_to_tokens(bpe("the answer is 1234")["input_ids"])


def test_a_tokenizer_that_closes_texts_itself(bpe: PreTrainedTokenizerFast) -> None:
    closing = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>")
    special = [(token, bpe.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    closing._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    row = Example("the answer is", " 1234")
    for tokens in ("all", "answer"):
        item = TokenizedExamples([row], closing, tokens=tokens)[0]
        assert item["input_ids"].tolist() == TokenizedExamples([row], bpe)[0]["input_ids"].tolist()
        assert item["labels"].tolist() == TokenizedExamples([row], bpe, tokens=tokens)[0]["labels"].tolist()


def test_tokenizers_that_lack_something() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(tokenizer_models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(MuscleError, match="has no end-of-text token: set its eos_token"):
        TokenizedExamples([Example("a", "a")], tokenizer)


def test_padding_is_neither_read_nor_learnt(world: Path) -> None:
    rows = [Example("question : lea", " has"), Example("question : lea has 3 nuts .", " she gets")]
    data = TokenizedExamples(rows, load_tokenizer(Base(base=str(world / "v1"))))
    batch = PaddingCollator(pad_id=0)([data[0], data[1]])
    assert batch["index"].tolist() == [0, 1]
    short = len(data[0]["input_ids"])
    assert batch["attention_mask"].sum(1).tolist() == [short, len(data[1]["input_ids"])]
    assert torch.equal(batch["input_ids"][0, :short], data[0]["input_ids"])
    assert (batch["input_ids"][0, short:] == 0).all()
    assert (batch["labels"][0, short:] == IGNORED).all()
    assert torch.equal(batch["labels"][1], data[1]["labels"])
