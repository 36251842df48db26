"""The recipes that come along, each run whole with tiny stand-ins: `muscle update RECIPE --dry-run tiny`."""

import json
import math
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import muscle.recipes
from muscle.demo.plan import QUICK
from muscle.errors import MuscleError
from muscle.recipes.prepare_world import prepare
from muscle.update.models import load_base, load_tokenizer
from muscle.update.recipe import Base, Recipe, Scratch, TokenizerKind
from muscle.update.recipe_file import read_recipe
from muscle.update.report import paper
from muscle.update.run import stand_in
from muscle.update.scratch import SPACE, pretrain_on_texts, train_tokenizer

from .commands import run
from .real_data import some_rows

FOLDER = Path(muscle.recipes.__file__).parent
FILES = sorted(file for file in FOLDER.rglob("*.yaml") if file.parent.name != "tasks")
ROWS = 40
"""Of each split, so that reading data costs little."""
DIALOGUES = (
    ("Ann: Lunch at noon?\r\nBob: I have a meeting until one.\r\nAnn: One thirty then.", "Ann and Bob eat at 1:30."),
    ("Tom: did you feed the cat\r\nEva: yes :)\r\nTom: and the fish?\r\nEva: oh no!", "Eva forgot to feed the fish."),
    ("Lea: The train is late again.\r\nJim: How late?\r\nLea: 20 minutes.", "Lea's train is late."),
    ("Max: Who won?\r\nIda: We did, 3:1!\r\nMax: Great, see you at the party.", "Ida's team won 3:1."),
    (
        "Kim: <file_photo>\r\nRoy: Is that your new bike?\r\nKim: Yes, from my brother.",
        "Kim has her brother's bike.",
    ),
)


def families() -> dict[str, list[Path]]:
    """Recipes whose stand-ins and tasks are alike, by the first one's name: they share the stages that are equal."""
    groups: dict[object, list[Path]] = {}
    for file in FILES:
        small = stand_in(read_recipe(file))
        groups.setdefault(json.dumps([small.old.as_dict(), small.new.as_dict(), *small.tasks]), []).append(file)
    return {files[0].stem: files for files in groups.values()}


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of the real data sets, as prepare_data makes them, a few dialogues in place of SAMSum, and a world."""
    cut = some_rows(data, tmp_path_factory.mktemp("real"), ROWS)
    (cut / "samsum").mkdir()
    for split in ("train", "validation", "test"):
        rows = ({"dialogue": f"{split} {n}\r\n{said}", "summary": told} for n in range(6) for said, told in DIALOGUES)
        (cut / "samsum" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(cut, 0, QUICK)
    return cut


@pytest.mark.slow
@pytest.mark.parametrize("files", families().values(), ids=list(families()))
def test_every_stage_of_a_recipe_runs(files: list[Path], local: Path, tmp_path: Path) -> None:
    for file in files:
        command = ["update", file, "--dry-run", "tiny", "--set", f"data={local}", "--out", "run", "--jobs", "2"]
        done = run(*command, cwd=tmp_path, seconds=400)
        assert (done.returncode, done.stderr) == (0, ""), file
        recipe = read_recipe(file)
        for line in published(recipe):
            assert line in [" ".join(printed.split()) for printed in done.stdout.splitlines()], file
        for task in recipe.tasks:
            for method in recipe.methods:
                package = tmp_path / "run" / "models" / task / method
                assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= names(package)
                assert task in (package / "README.md").read_text()
            for model in recipe.models:
                (log,) = (tmp_path / "run" / "logs" / task / model).rglob("samples_*.jsonl")
                assert log.read_text().count("\n") % 6 == 0

        status = run("status", "run", cwd=tmp_path)
        states = [line.split("|")[2].strip() for line in status.stdout.splitlines() if "/" in line]
        assert set(states) == {"done"}
        assert f"{len(states)} of {len(states)} stages are done" in status.stdout


def published(recipe: Recipe) -> Iterator[str]:
    """What the paper has of a recipe's update in table 9, as it is printed."""
    for task in recipe.tasks:
        if row := paper.row_of(task, recipe.paper_update):
            gap = row.score_new - row.score_old
            yield f"| paper | {row.score_old:.2f} | {row.score_new:.2f} | {gap:+.2f} | {row.nfr:.2f} | - | - |"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_there_are_recipes_of_the_papers_updates_and_of_todays() -> None:
    recipes = {file.relative_to(FOLDER).as_posix().removesuffix(".yaml"): read_recipe(file) for file in FILES}
    trained = {recipe.paper_update for recipe in recipes.values() if recipe.paper_update and recipe.methods}
    measured = {recipe.paper_update for recipe in recipes.values() if not recipe.methods}
    assert trained == set(paper.TRAINED_UPDATES)
    assert measured == set(paper.MEASURED_UPDATES)
    assert {"ablation", "real_data_small", "qwen2.5_to_qwen3", "smollm2_checkpoints"} < recipes.keys()
    retokenized = {name for name, recipe in recipes.items() if recipe.old.tokenizer and recipe.new.tokenizer}
    assert {"llama2_to_llama3", "gemma2_to_gemma3"} < retokenized
    for name in retokenized:
        small = stand_in(recipes[name])
        assert small.old.scratch
        assert small.new.scratch
        words = [(each.tokenizer, each.vocabulary) for each in (small.old.scratch, small.new.scratch)]
        assert words[0] != words[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_training_is_all_warm_up(file: Path) -> None:
    """As far as a recipe says how many texts there are."""
    recipe = read_recipe(file)
    for name, task in recipe.tasks.items():
        for training in (recipe.training_of(name), recipe.alignment_training_of(name)) if task.train_limit else ():
            texts = round(task.train_limit * (1 - (task.validation_share or 0)))
            steps = training.epochs * math.ceil(texts / (training.batch_size * training.accumulation))
            assert training.warmup_steps < steps, name


def base_of(chosen: str, kind: TokenizerKind, folder: Path) -> tuple[list[str], PreTrainedTokenizerFast]:
    """The texts of a base from scratch, and its tokenizer as it was trained."""
    texts = [f"{said}\n\n\n(a) {told}!\n\nDON'T" for said, told in DIALOGUES]
    words = train_tokenizer(texts, 400, kind)
    scratch = Scratch(architecture=chosen, hidden_size=32, heads=2, tokenizer=kind, vocabulary=400, steps=0)
    pretrain_on_texts(texts, scratch, words, folder, lambda *_: None)
    return texts, words


BYTES: list[tuple[str, TokenizerKind]] = [
    (chosen, "bytes") for chosen in ("gemma2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "qwen2", "qwen3")
]
OTHERS: list[tuple[str, TokenizerKind]] = [
    *((chosen, kind) for chosen in ("llama", "qwen3", "gemma2", "gemma3_text") for kind in ("metaspace", "grouped")),
    ("llama", "words"),
]


@pytest.mark.parametrize(("chosen", "kind"), [*BYTES, *OTHERS])
def test_a_base_from_scratch_keeps_its_tokens(chosen: str, kind: TokenizerKind, tmp_path: Path) -> None:
    """Transformers chooses the class of a tokenizer by the model beside it, and some of those change what is said."""
    texts, words = base_of(chosen, kind, tmp_path)
    loaded = load_tokenizer(Base(base=str(tmp_path)))
    assert len(loaded) == len(words) <= load_base(Base(base=str(tmp_path))).get_input_embeddings().num_embeddings
    others = ("  two  spaces\t\n\n", "12345 x 6", "Größe: 5€ 日本語 \U0001f600", "e\u0301", "<pad> <eos> <|endoftext|>")
    for text in (*texts, *others, "\n\n\n(a)\n\n(b)...\n\n", "DON'T can't"):
        ids = words(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids, text
        assert loaded.decode(ids) == words.decode(ids), text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (words.eos_token_id, words.pad_token_id)
    assert load_base(Base(base=str(tmp_path))).config.model_type == chosen


def test_a_tokenizer_that_transformers_would_replace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match=r"models of type qwen2 another tokenizer than grouped: set tokenizer under"):
        base_of("qwen2", "grouped", tmp_path)


@given(st.text(st.characters(codec="utf-8", exclude_characters=[SPACE])), st.integers(0, 10**6))
def test_all_tokenizers_but_words_can_say_any_text(text: str, number: int) -> None:
    said = f"{text} {number}"
    for kind, digits in (("bytes", 1), ("grouped", 3), ("metaspace", 1)):
        words = tokenizer(kind)
        ids = words(said)["input_ids"]
        assert words.unk_token_id not in ids
        decoded = words.decode(ids, skip_special_tokens=True)
        assert decoded == (unicodedata.normalize("NFC", said) if kind == "bytes" else said), kind
        assert all(len(token) <= digits for token in words.tokenize(str(number)) if token.isdecimal())


def test_words_are_what_stands_between_spaces() -> None:
    words = tokenizer("words")
    assert words.tokenize("3 3333 is  a cat.") == ["3", "<unk>", "is", "a", "<unk>"]


@cache
def tokenizer(kind: TokenizerKind) -> PreTrainedTokenizerFast:
    return train_tokenizer(["this is a text with a number, 2000 or 12345 or 3"] * 9, 600, kind)
