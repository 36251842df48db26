"""Sources of rows: the same table gives the same predictions, whatever file or Python object holds it."""

import csv
import datetime
import decimal
import json
import math
import shutil
import subprocess
import sys
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muscle.errors import LogError
from muscle.measure.logs import OpenLog, frames
from muscle.measure.logs.rows import Selection
from muscle.measure.predictions import Log, Predictions

Table = list[dict[str, Any]]

TABLE: Table = [
    {"id": 1, "correct": True, "answer": "a", "target": ["a", "b"], "gold": {"score": 0.5, "by": "x"}},
    {"id": 2, "correct": None, "answer": None, "target": ["c"], "gold": {"score": None, "by": None}},
    {"id": 3, "correct": False, "answer": "b", "target": None, "gold": None},
]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def read(source: object, **selection: Any) -> Log:
    return OpenLog(source, Selection(**selection)).read()


def contents(log: Log) -> dict[str, object]:
    """What the log says, comparable: NaN equals NaN."""
    told: dict[str, object] = {}
    for task in log.tasks.values():
        columns = {name: value for name, value in vars(task).items() if name != "task"}
        told |= {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in columns.items()}
        told["scores"] = list(map(str, task.scores.tolist()))
    return told


def only_task(source: object, **selection: Any) -> Predictions:
    (predictions,) = read(source, **selection).tasks.values()
    return predictions


def as_files(table: Table, folder: Path) -> dict[str, Path]:
    """The table in every format that holds types."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {
        name: folder / name for name in ("t.jsonl", "t.json", "lines.json", "t.parquet", "t.arrow", "stream.arrow")
    }
    files["t.jsonl"].write_text("".join(f"{json.dumps(row)}\n" for row in table))
    files["t.json"].write_text(json.dumps(table))
    files["lines.json"].write_text(json.dumps(table, indent=2, ensure_ascii=False), encoding="utf-8")
    frame = pl.DataFrame(table, infer_schema_length=None)
    frame.write_parquet(files["t.parquet"])
    frame.write_ipc(files["t.arrow"])
    frame.write_ipc_stream(files["stream.arrow"])
    shards = folder / "shards"
    shards.mkdir()
    for number, start in enumerate(range(0, len(table), 2)):
        frame[start : start + 2].write_parquet(shards / f"train-{number:05}-of-00002.parquet")
    datasets.Dataset.from_list(table).save_to_disk(folder / "saved", num_shards=min(2, len(table)))
    return files | {"shards": shards, "saved": folder / "saved"}


def as_objects(table: Table) -> dict[str, object]:
    """The table as every Python object."""
    frame = pl.DataFrame(table, infer_schema_length=None)
    return {
        "list": table,
        "tuple": tuple(OrderedDict(row) for row in table),
        "polars": frame,
        "lazy": frame.lazy(),
        "pandas": pd.DataFrame(table),
        "pyarrow": pa.Table.from_pylist(table),
        "datasets": datasets.Dataset.from_list([table[0], *table]).select(range(1, len(table) + 1)),
    }


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


def tables(*, only_texts: bool = False) -> st.SearchStrategy[Table]:
    cells: dict[str, st.SearchStrategy[Any]] = {
        "correct": st.none() | st.booleans(),
        "answer": st.none() | texts,
        "target": st.none() | texts,
        "score": st.none() | numbers,
        "draw": st.none() | st.integers(0, 3),
        "subject": st.none() | texts,
    }
    if not only_texts:
        cells["target"] |= st.none()
        cells["gold"] = st.fixed_dictionaries({"set": st.lists(texts, max_size=2), "by": st.none() | texts})
    rows = st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=5)
    ids = st.integers(-5, 2**63 - 1) if not only_texts else texts.map(lambda text: f"_{text}")
    return rows.flatmap(
        lambda table: st.lists(ids, min_size=len(table), max_size=len(table), unique=True).map(
            lambda named: [{"id": name, **row} for name, row in zip(named, table, strict=True)]
        )
    )


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(table=tables())
def test_one_table_in_every_file_and_object(tmp_path: Path, table: Table) -> None:
    choice = {"labels": ("subject", "gold.by"), "columns": {"target": "gold.set"}}
    wanted = contents(read(table, **choice))
    for name, source in (as_files(table, tmp_path / "files") | as_objects(table)).items():
        assert contents(read(source, **choice)) == wanted, name


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(table=tables(only_texts=True))
def test_csv_says_the_same_as_json(tmp_path: Path, table: Table) -> None:
    with (tmp_path / "log.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    choice = {"labels": ("subject",)}
    assert contents(read(tmp_path / "log.csv", **choice)) == contents(read(table, **choice))


# --- files ---


def test_a_long_file_is_read_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_SLICE", 2)
    for count in (1, 2, 3, 4, 5):
        pl.DataFrame({"id": range(count), "correct": [True] * count}).write_parquet(tmp_path / "t.parquet")
        assert only_task(tmp_path / "t.parquet").ids == [str(number) for number in range(count)]
    pl.DataFrame({"id": [1, 2, 3], "correct": [1, 0, 7]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(LogError, match=r"t.parquet:3: correct is 7, neither right nor wrong"):
        read(tmp_path / "t.parquet")


def test_names_are_no_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "a=1"
    folder.mkdir()
    frame = pl.DataFrame({"*": [1], "^c.*$": [True], "correct": [False], "g": [{"*": "x", "a.b": "y"}]})
    columns = {"id": "*", "correct": "^c.*$", "answer": "g.*", "target": "g.a.b"}
    frame.write_parquet(folder / "t[12]*.parquet")
    frame.write_ipc(folder / "t[12]*.arrow")
    frame.write_ipc_stream(folder / "s[12]*.arrow")
    for file in (*folder.iterdir(), frame):
        (row,) = OpenLog(file, Selection(columns=columns)).rows()
        assert (row.id, row.correct, row.answer, row.targets) == ("1", 1, "x", ("y",))


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream"])
def test_a_damaged_file_gives_one_error(tmp_path: Path, suffix: str) -> None:
    file, frame = tmp_path / f"t.{suffix}", pl.DataFrame({"id": range(100), "correct": [True] * 100})
    write = {"parquet": frame.write_parquet, "arrow": frame.write_ipc, "stream": frame.write_ipc_stream}[suffix]
    write(file)
    whole = file.read_bytes()
    for length in range(8, len(whole), 17):
        file.write_bytes(whole[:length])
        with pytest.raises(LogError, match=rf"t.{suffix}: damaged or cut off \(.*\); write the file again"):
            read(file)


def test_what_parquet_has_in_place_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pl.DataFrame({"ID": [1], "correct ": [True]}).write_parquet(file)
    with pytest.raises(LogError, match=r"t.parquet: did you mean 'id' by 'ID' and 'correct' by 'correct '\?"):
        read(file)
    pl.DataFrame({"x": [1]}).write_parquet(file)
    with pytest.raises(LogError, match=r"t.parquet: unknown format with the fields 'x'; expected "):
        read(file)
    with pytest.raises(LogError, match=r"t.parquet: no column 'id'; name it with --column id=NAME"):
        read(file, format="table")
    pl.DataFrame({"id": [1], "correct": [True]}).clear().write_parquet(file)
    with pytest.raises(LogError, match=r"t.parquet: no rows"):
        read(file)


def test_what_is_no_table_at_all(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{\n"id": 1\n}')
    with pytest.raises(LogError, match=r"t.json: no table; expected JSON lines, a JSON list, CSV, Parquet or Arrow"):
        read(tmp_path / "t.json", format="table")


def test_the_shards_of_a_table_are_one_task(tmp_path: Path) -> None:
    def write(name: str, *ids: int) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"id": ids, "correct": [True] * len(ids)}).write_parquet(tmp_path / name)

    write("hub/data/train-00000-of-00002-0a1b.parquet", 1)
    write("hub/data/train-00001-of-00002-0a1b.parquet", 2)
    write("hub/data/test-00000-of-00001.parquet", 1)
    assert {name: task.ids for name, task in read(tmp_path / "hub").tasks.items()} == {
        "test": ["1"],
        "train": ["1", "2"],
    }
    write("spark/part-00000-0a1b.c000.snappy.parquet", 1)
    write("spark/part-00001-0a1b.c000.snappy.parquet", 2)
    assert {name: task.ids for name, task in read(tmp_path / "spark").tasks.items()} == {"": ["1", "2"]}
    write("converted/piqa/0000.parquet", 1)
    write("converted/gsm8k/0000.parquet", 1)
    assert list(read(tmp_path / "converted").tasks) == ["gsm8k", "piqa"]


def test_saved_datasets(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(TABLE)
    dataset.save_to_disk(tmp_path / "run" / "piqa")
    (tmp_path / "run" / "piqa" / "cache-0123456789abcdef.arrow").write_bytes(b"left by Dataset.map")
    assert list(read(tmp_path / "run" / "piqa").tasks) == [""]
    dataset.save_to_disk(tmp_path / "run" / "gsm8k")
    assert list(read(tmp_path / "run").tasks) == ["gsm8k", "piqa"]
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "splits")
    with pytest.raises(LogError, match=r"splits: a dataset of several splits; name the folder of one: .*test, .*train"):
        read(tmp_path / "splits")
    assert only_task(tmp_path / "splits" / "test").ids == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"id": 1, "correct": 1},\n{"id": 2}\n]', r":3: .*required field `correct`"),
        ('[\n{"id": 1, "correct": 1},\n{"id": 2, "correct": "C"}\n]', r":3: correct is 'C', neither right nor wrong"),
        ('[\n{"id": 1, "correct": 1},\n{"id": 2, "corr', r"cut off"),
        ('[\n{"id": 1, "correct": NaN}]', r":2: correct is NaN"),
    ],
)
def test_faults_in_a_json_list(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(LogError, match=rf"t.json.*{message}"):
        read(tmp_path / "t.json")


def test_the_separator_of_csv_is_a_comma(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id;correct\n1;1\n")
    with pytest.raises(LogError, match=r"t.csv: the columns are separated by ';'; separate them by commas"):
        read(tmp_path / "t.csv")


# --- Python objects ---


def test_the_same_rows_have_the_same_hash(tmp_path: Path) -> None:
    table = [{name: value for name, value in row.items() if name != "gold"} for row in TABLE]
    hashes = {name: read(source).sha256 for name, source in as_objects(table).items()}
    assert len(set(hashes.values())) == 1, hashes
    assert read(table[:2]).sha256 != hashes["list"] != read([*table[::-1]]).sha256
    assert read({"task": table}).sha256 != hashes["list"]


def test_how_an_object_is_named() -> None:
    assert [read(source).path for source in as_objects(TABLE).values()] == [
        *("<list>", "<tuple>", "<DataFrame>", "<LazyFrame>", "<DataFrame>", "<Table>", "<Dataset>")
    ]


@pytest.mark.parametrize("name", ["list", "polars", "lazy", "pandas", "pyarrow", "datasets"])
def test_a_bad_row_of_an_object_is_named(name: str) -> None:
    source = as_objects([{"id": 1, "correct": 1}, {"id": 2, "correct": 1}, {"id": 3, "correct": 5}])[name]
    with pytest.raises(LogError, match=r"^<\w+>:3: correct is 5.*neither right nor wrong"):
        read(source)


def test_a_frame_of_pandas_has_its_own_ways() -> None:
    frame = pd.DataFrame(
        {
            "id": [1, None, 3],  # floats, since one is missing
            "correct": pd.array([True, False, pd.NA], dtype="boolean"),
            "answer": [18.0, np.nan, 2.5],
            "task": pd.Categorical(["a", "a", None]),
            7: ["x", pd.NA, "z"],
        }
    ).fillna({"id": 2})
    a, b, c = OpenLog(frame, Selection(labels=("7",))).rows()
    assert [(row.id, row.correct, row.answer, row.task.name, row.labels) for row in (a, b, c)] == [
        *(("1", 1, "18", "a", ("x",)), ("2", 0, None, "a", (None,)), ("3", -1, "2.5", "", ("z",)))
    ]
    assert only_task(frame.set_index("id")[["correct"]]).ids == ["1", "2", "3"]
    assert only_task(frame.set_index(["task", "id"]).loc[["a"]]).ids == ["1", "2"]
    with pytest.raises(LogError, match=r"<DataFrame>: 2 columns 'id'; rename or drop all but one"):
        read(pd.concat([frame, frame], axis=1))


def test_nan_in_a_frame_of_polars_is_a_fault() -> None:
    with pytest.raises(LogError, match=r"<DataFrame>:2: score is NaN"):
        read(pl.DataFrame({"id": [1, 2], "correct": [1, 1], "score": [0.5, math.nan]}))


class Opaque:
    """No value."""


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (np.int64(3), "3"),
        (np.float32(18), "18"),
        (np.str_("x"), "x"),
        (np.array(["b", "a"]), '["a", "b"]'),
        (("b", "a"), '["a", "b"]'),
        ({"b", "a"}, '["a", "b"]'),
        (pl.Series(["b", "a"]), '["a", "b"]'),
        (pd.NA, None),
        (pd.NaT, None),
        (decimal.Decimal("18.00"), "18"),
        (decimal.Decimal("0.5"), "0.5"),
        (b"x", "x"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"b": np.int8(1), 2: None}, '{"2": null, "b": 1}'),
        ("\ud800", "\ud800"),
    ],
)
def test_cells_of_python_objects(cell: object, text: str | None) -> None:
    source = [{"id": 1, "correct": np.True_, "answer": cell, "unread": Opaque()}]
    (row,) = OpenLog(source, Selection()).rows()
    assert (row.correct, row.answer) == (1, text)
    assert len(read(source).sha256) == 64


@pytest.mark.parametrize(
    ("cell", "message"),
    [(Opaque(), "a cell is a Python object of the type Opaque"), (b"\xff", "bytes that are no UTF-8")],
)
def test_cells_that_are_no_values(cell: object, message: str) -> None:
    with pytest.raises(LogError, match=rf"<list>:1: .*{message}"):
        read([{"id": 1, "correct": 1, "answer": cell}])


def test_cells_of_typed_columns() -> None:
    frame = pl.DataFrame(
        {
            "id": [b"a", b"b"],
            "correct": pl.Series([1, 0], dtype=pl.Decimal(3, 1)),
            "answer": [datetime.date(2026, 1, 2), None],
            "task": pl.Series(["x", "x"], dtype=pl.Categorical),
        }
    )
    first, second = OpenLog(frame, Selection()).rows()
    assert (first.id, first.correct, first.answer, first.task.name) == ("a", 1, "2026-01-02", "x")
    assert (second.id, second.correct, second.answer) == ("b", 0, None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "<list>: no rows; run the evaluation again"),
        ({}, "<dict>: no rows"),
        ([1], "<list>:1: the row is 1; make it a dict"),
        ([*TABLE, "x"], "<list>:4: the row is 'x'; make it a dict"),
        ({"id": [1], "correct": [1]}, r"<dict>\['id'\]:1: the row is 1; make it a dict"),
        (iter(TABLE), r"<list_iterator>: can be read only once; give a list of its rows"),
        ((row for row in TABLE), r"<generator>: can be read only once"),
        (datasets.Dataset.from_list(TABLE).to_iterable_dataset(), r"<IterableDataset>: can be read only once"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(TABLE)), r"several splits; give one of them: 'train'"),
        (None, "<NoneType>: no log; give a path, or a polars or pandas DataFrame"),
        (b"log.jsonl", "<bytes>: no log"),
        (np.zeros(3), "<ndarray>: no log"),
        (pl.Series([1]), "<Series>: no log"),
        (pl.scan_parquet("gone.parquet"), r"<LazyFrame>: cannot be read \(\w+: .*\); check it with its own library"),
        ([{"ID": 1, "Correct": 1}], "<list>: did you mean 'id' by 'ID' and 'correct' by 'Correct'"),
        ([{"x": 1}], "<list>: unknown format with the fields 'x'"),
        (pl.DataFrame({"id": [], "correct": []}), "<DataFrame>: no rows"),
    ],
)
def test_objects_that_are_no_logs(source: object, message: str) -> None:
    with pytest.raises(LogError, match=message):
        read(source)


def test_a_dict_of_tables_by_task() -> None:
    log = read({"piqa": TABLE, "gsm8k": pl.DataFrame(TABLE)})
    assert {name: task.ids for name, task in log.tasks.items()} == {"piqa": ["1", "2", "3"], "gsm8k": ["1", "2", "3"]}
    with pytest.raises(LogError, match=r"^<dict>\['piqa'\]:1: correct is 5"):
        read({"piqa": [{"id": 1, "correct": 5}]})


def test_the_samples_that_lm_eval_returns() -> None:
    """`lm_eval.simple_evaluate(...)["samples"]`: by task, rows as they are in its files."""
    row = {"doc_id": 0, "doc": {"q": "?"}, "target": "y", "filtered_resps": ["x"], "filter": "none"}
    row |= {"metrics": ["exact_match"], "exact_match": np.float64(0)}
    log = read({"gsm8k": [row]})
    assert (log.format, log.path) == (read([row]).format, "<dict>")
    assert (log.tasks["gsm8k"].metric, log.tasks["gsm8k"].correct.tolist()) == ("exact_match", [0])
    with pytest.raises(LogError, match=r"^<dict>\['gsm8k'\]:1: exact_match is 5"):
        read({"gsm8k": [row | {"exact_match": 5}]})
    with pytest.raises(LogError, match=r"^<list>:2: id '0' was wrong in line 1 and is right here"):
        read([row, row | {"exact_match": 1}])


def test_no_library_is_imported_that_is_not_met(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 1, "correct": 1}\n')
    code = (
        "import sys; from muscle.measure.logs import OpenLog; from muscle.measure.logs.rows import Selection\n"
        "OpenLog('t.jsonl', Selection()).read(); OpenLog([{'id': 1, 'correct': 1}], Selection()).read()\n"
        "print(*({'polars', 'pandas', 'pyarrow', 'datasets'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
