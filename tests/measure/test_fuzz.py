"""Whatever the bytes, a reader may raise MuscleError and nothing else, at once and in little memory.

First the targets of fuzz/ on their seeds and a few mutations of each; then what fuzzing has found so far.
"""

import json
import random
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import Any

import polars
import pytest

from muscle.errors import LogError
from muscle.measure.logs import OpenLog
from muscle.measure.logs.rows import Selection
from muscle.measure.predictions import Log, Texts

from ..conftest import REPOSITORY

if sys.version_info >= (3, 14):
    import zipfile
else:
    from backports.zstd import zipfile

sys.path.insert(0, str(REPOSITORY / "fuzz"))  # scripts, which import each other by name

import mutation
import readers

MUTATIONS = 300
SECONDS, MEBIBYTES = 5, 300


@pytest.mark.parametrize("name", readers.TARGETS)
def test_seeds_and_some_mutations(tmp_path: Path, name: str) -> None:
    chance, seeds = random.Random(name), readers.corpus(name)
    changed = (mutation.mutate(chance.choice(seeds), 1 << 14, chance) for _ in range(MUTATIONS))
    for data in (*seeds, *changed):
        readers.attempt(readers.TARGETS[name], data, tmp_path)


@pytest.mark.parametrize("name", readers.TARGETS)
def test_some_large_ones(tmp_path: Path, name: str) -> None:
    chance, seeds = random.Random(name), readers.corpus(name)
    for _ in range(5):
        data = mutation.inflate(chance.choice(seeds), 100_000, chance)
        start = time.process_time()
        readers.attempt(readers.TARGETS[name], data, tmp_path)
        assert time.process_time() - start < SECONDS


def test_what_a_target_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.OpenLog, "read", lambda log: {}["key"])
    with pytest.raises(KeyError) as caught:
        readers.attempt(readers.TARGETS["helm"], readers.corpus("helm")[0], tmp_path)
    assert readers.place(caught.value).startswith("KeyError-")


def read(path: Path, files: Mapping[str, bytes], **choices: Any) -> Log:
    """The log made of these files, of which the first is opened."""
    for name, content in files.items():
        (path / name).write_bytes(content)
    return OpenLog(path / next(iter(files)), Selection(**choices)).read()


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def lm_eval(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"doc_id": number, "filtered_resps": ["a"], "target": "a", "acc": 1, **fields}


def texts(log: Path, item: str = "1") -> Texts:
    (found,) = OpenLog(log, Selection()).texts({"": {(item, 0)}}).values()
    return found


@pytest.fixture
def in_bounds() -> Any:
    """The test takes neither long nor much memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < MEBIBYTES


# Errors of Python


def test_any_file_as_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"log.jsonl: expected a baseline .*; name the log's own --format"):
        read(tmp_path, {"log.jsonl": b'{"id": 1}\n'}, format="baseline")


def test_half_a_surrogate_pair_in_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="the header is damaged"):
        read(tmp_path, {"log.jsonl": b'{"muscle_baseline": 1, "muscle": "\\ud800"}\n'})


def test_helm_stats_that_are_empty(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"per_instance_stats.json: the file is empty"):
        read(tmp_path, {"run_spec.json": b"{}", "per_instance_stats.json": b""})


def test_two_members_of_a_zip_that_share_their_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log.eval"
    with zipfile.ZipFile(log, "w") as archive:
        archive.writestr("header.json", b'{"eval": {"task": "t"}}')
        archive.filelist.append(archive.filelist[0])
    with pytest.raises(LogError, match="two members share their bytes"):
        OpenLog(log, Selection()).read()


@pytest.mark.parametrize(
    ("target", "read_as"),
    [
        ("['a', {[]: 1}]", ("['a', {[]: 1}]",)),
        ("['a', [{1}]]", ("['a', [{1}]]",)),
        ("['a', {1: 1, 'b': 2}]", ("['a', {1: 1, 'b': 2}]",)),
        (f"['a', 0x{'f' * 5000}]", (f"['a', 0x{'f' * 5000}]",)),
        (r"['\d']", (r"['\d']",)),  # was a warning
        (r"""['\\d', "it's", '\'"\n\xe9\u2028\U0001f600\ud800']""", ("\\d", "it's", "'\"\né\u2028😀\ud800")),
    ],
)
def test_targets_that_only_look_like_a_list_of_texts(tmp_path: Path, target: str, read_as: tuple[str, ...]) -> None:
    (tmp_path / "log.jsonl").write_bytes(lines(lm_eval(target=target)))
    (row,) = OpenLog(tmp_path / "log.jsonl", Selection()).rows()
    assert row.targets == read_as


def test_a_target_of_thousands_of_digits_names_no_choice(tmp_path: Path) -> None:
    digits = "9" * 5000
    arguments = [["Q", " a"], ["Q", " b"]]
    row = lm_eval(filtered_resps=[[-1.0, True], [-2.0, False]], arguments=arguments, target=digits)
    (tmp_path / "log.jsonl").write_bytes(lines(row))
    assert texts(tmp_path / "log.jsonl").target == digits
    old = {"doc_id": 1, "prompt_0": "Q a", "prompt_1": "Q b", "logit_0": -1.0, "logit_1": -2.0, "truth": digits}
    (tmp_path / "log.json").write_text(json.dumps([old | {"acc": "1"}]))
    assert texts(tmp_path / "log.json").target == digits


def test_half_a_surrogate_pair_in_a_choice(tmp_path: Path) -> None:
    choices = {"arguments": [["Q", "\ud800"], ["Q", "bb"]], "filtered_resps": [[-3.0, True], [-2.0, False]]}
    log = read(tmp_path, {"log.jsonl": lines(lm_eval(acc_bytes=1, **choices))}, metric="acc_bytes")
    assert log.rows == 1


def test_a_log_likelihood_of_hundreds_of_digits(tmp_path: Path) -> None:
    row = {"doc_id": 1, "logit_0": 10**400, "logit_1": 0, "truth": 0, "acc": "1"}
    with pytest.raises(LogError, match=r"log.json:1: a log-likelihood is out of range"):
        read(tmp_path, {"log.json": json.dumps([row]).encode()})


@pytest.mark.parametrize("depth", [60, 960, 970, 980])
def test_fields_in_fields_in_fields(tmp_path: Path, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    with suppress(LogError):  # too deep for the JSON parser, by the depth of the stack that it is called at
        assert read(tmp_path, {"log.jsonl": b'{"id": 1, "correct": 1, "x": ' + deep + b"}\n"}).rows == 1


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (b"\xc2\xa0\nid,correct\n", {"correct": "\xa0"}),
        (b'""\n', {"correct": ""}),
        (b'id,correct,"score\nx"\n1,1,1\n', {"score": "score\n"}),
    ],
)
def test_a_csv_header_that_is_not_the_first_line(tmp_path: Path, table: bytes, columns: dict[str, str]) -> None:
    with pytest.raises(LogError, match="the header is not one line of names"):
        read(tmp_path, {"log.csv": table}, format="table", columns={"id": "#", **columns})


@pytest.mark.parametrize(
    ("number", "kind"), [(10**8, polars.Date), (2**62, polars.Datetime("us")), (2**62, polars.Duration("ms"))]
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_times_that_python_cannot_hold(tmp_path: Path, number: int, kind: Any, suffix: str) -> None:
    file = tmp_path / f"log.{suffix}"
    frame = polars.DataFrame({"id": [1], "correct": [1], "answer": polars.Series([number], dtype=kind)})
    frame.write_parquet(file) if suffix == "parquet" else frame.write_ipc(file)
    with pytest.raises(LogError, match=f"log.{suffix}: damaged or cut off"):
        OpenLog(file, Selection()).read()


# What took minutes, or all of the memory


@pytest.mark.usefixtures("in_bounds")
def test_many_fields_that_are_written_unlike_ours(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="did you mean 'id' by 'ID' and 'correct' by 'Correct'"):
        read(tmp_path, {"log.jsonl": lines({"ID": 1, "Correct": 1} | {f"A{i}": 0 for i in range(50_000)})})


@pytest.mark.usefixtures("in_bounds")
@pytest.mark.parametrize("value", [{"value": 1}, {"value": {"a": 1}}])
def test_many_scorers(tmp_path: Path, value: object) -> None:
    sample = {"id": 1, "scores": {f"a{i}": value for i in range(20_000)}}
    log = {"version": 2, "status": "success", "eval": {"task": "t"}, "samples": [sample] * 2}
    with pytest.raises(LogError, match="no score 'none'"):
        read(tmp_path, {"log.json": json.dumps(log).encode()}, score="none")


@pytest.mark.usefixtures("in_bounds")
def test_a_scorer_with_a_long_name_and_many_values(tmp_path: Path) -> None:
    sample = {"id": 1, "scores": {"a" * 500_000: {"value": [1] * 100_000}, "b": {"value": 1}}}
    log = {"version": 2, "status": "success", "eval": {"task": "t"}, "samples": [sample]}
    assert read(tmp_path, {"log.json": json.dumps(log).encode()}).rows == 1


@pytest.mark.usefixtures("in_bounds")
def test_an_answer_that_names_a_long_choice_many_times(tmp_path: Path) -> None:
    answer = ", ".join("A" * 100_000)
    sample = {"id": 1, "input": "Q", "choices": ["a" * 500_000], "scores": {"s": {"value": 1, "answer": answer}}}
    log = {"version": 2, "status": "success", "eval": {"task": ""}, "samples": [sample | {"target": ["A"] * 100_000}]}
    (tmp_path / "log.json").write_text(json.dumps(log))
    assert texts(tmp_path / "log.json") == Texts("Q", "a" * 500_000, answer)


@pytest.mark.usefixtures("in_bounds")
def test_many_prompts(tmp_path: Path) -> None:
    results = ({"testIdx": 1, "success": 1, "score": 1, "prompt": {"label": f"a{i}"}} for i in range(9_000))
    assert len(read(tmp_path, {"log.jsonl": lines(*results)}, format="promptfoo").tasks) == 9_000


@pytest.mark.usefixtures("in_bounds")
def test_a_row_of_a_table_with_many_prompts(tmp_path: Path) -> None:
    row = {"outputs": [{"pass": True}] * 5_000, "test": {"vars": {"a": "b" * 400_000}}}
    many = [{"outputs": [{"pass": True}], "test": {}}] * 5_000
    head = {"prompts": [{"provider": ["p"] * 50_000, "label": {"a": "b" * 200_000}}]}
    results = {"version": 2, "results": [{"provider": "p"}], "table": {"head": head, "body": [*many, row]}}
    log = json.dumps({"evalId": "e", "results": results}).encode()
    with pytest.raises(LogError, match="results of several providers"):
        read(tmp_path, {"log.json": log})
    assert read(tmp_path, {"log.json": log}, filter="?").rows == 4_999


@pytest.mark.usefixtures("in_bounds")
def test_targets_that_name_a_long_choice_in_many_ways(tmp_path: Path) -> None:
    orders = ["A", *("A, " + ", ".join(order) for order in permutations("BCDEF")), *["A, B, C"] * 20_000]
    sample = {"id": 1, "choices": [["a"] * 80_000, *"bcdef"], "target": orders, "scores": {"s": {"value": 1}}}
    log = {"version": 2, "status": "success", "eval": {"task": ""}, "samples": [sample]}
    (tmp_path / "log.json").write_text(json.dumps(log))
    assert (texts(tmp_path / "log.json").target or "").startswith('["a", "a", "a"')


@pytest.mark.usefixtures("in_bounds")
def test_a_target_that_names_a_long_choice_many_times(tmp_path: Path) -> None:
    prompts = {"prompt_0": "Q " + "a" * 300_000, "prompt_1": "Q b"}
    row = {"doc_id": 1, **prompts, "logit_0": -1, "logit_1": -2, "acc": "1", "truth": repr(["0", "1"] * 50_000)}
    (tmp_path / "log.json").write_text(json.dumps([row]))
    assert texts(tmp_path / "log.json").target == "0: " + "a" * 300_000 + " | 1: b"


@pytest.mark.usefixtures("in_bounds")
def test_a_folder_of_many_lists(tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / f"model_t{number}.json").write_text(json.dumps([lm_eval()]))
    assert OpenLog(tmp_path, Selection()).read().rows == 400


@pytest.mark.usefixtures("in_bounds")
def test_many_rows_that_take_no_room(tmp_path: Path) -> None:
    ones = polars.repeat(1, 5_000_000, eager=True)
    polars.DataFrame({"id": ones, "correct": ones}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"5000000 rows in [0-9]+ KiB, so all say the same"):
        OpenLog(tmp_path / "log.parquet", Selection()).read()


@pytest.mark.usefixtures("in_bounds")
def test_many_tasks(tmp_path: Path) -> None:
    rows = b"".join(b"1,1,%d\n" % number for number in range(100_000))
    with pytest.raises(LogError, match=r"log.csv:[0-9]+: more than 10000 tasks; name the field that says the task"):
        read(tmp_path, {"log.csv": b"id,correct,task\n" + rows})


@pytest.mark.usefixtures("in_bounds")
def test_many_metrics(tmp_path: Path) -> None:
    first = lm_eval(0) | {f"a{i}": None for i in range(20_000)}
    rows = (lm_eval(number) for number in range(1, 5_000))
    assert read(tmp_path, {"log.jsonl": lines(first, *rows)}, score="a1").rows == 5_000


@pytest.mark.usefixtures("in_bounds")
def test_a_field_with_a_long_name_and_many_fields_in_it(tmp_path: Path) -> None:
    row = {"id": 1, "a" * 200_000: {f"a{i}": 0 for i in range(5_000)}}
    with pytest.raises(LogError, match=r"no column 'correct' or 'score'; .*; choose among 'id'"):
        read(tmp_path, {"log.jsonl": lines(row)}, format="table")


@pytest.mark.usefixtures("in_bounds")
@pytest.mark.parametrize("entry", ["[],", "1,", "'a', ", r"'\n', "])
def test_a_long_target(tmp_path: Path, entry: str) -> None:
    target = "['a', " + entry * (900_000 // len(entry)) + "'a']"
    assert read(tmp_path, {"log.jsonl": lines(lm_eval(target=target))}).rows == 1


@pytest.mark.usefixtures("in_bounds")
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_ZSTANDARD])
def test_zip_bombs(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "log.eval", "w", method) as archive:
        archive.writestr("header.json", b'{"eval": {"task": "t"}}')
        archive.writestr("samples/1_epoch_1.json", b" " * (120 << 20))
    with pytest.raises(LogError, match=r"KiB would unpack to 120 MiB, which is no log's"):
        OpenLog(tmp_path / "log.eval", Selection()).read()
