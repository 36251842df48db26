"""Every error that a user's logs can cause, through the real command: one line, exit code 2, nothing written."""

from pathlib import Path

import pytest

from .command import GOOD, NEW, muscle

LM_EVAL = '{"doc_id": 0, "filtered_resps": ["x"], "filter": "none", "metrics": ["acc"], "acc": NaN}\n'

# What is wrong -> (name given as NEW, content of that file, start of what follows "error: ").
ERRORS: dict[str, tuple[str, str | None, str]] = {
    "wrong path": ("nwe.jsonl", None, "nwe.jsonl: no such file or folder; did you mean new.jsonl?"),
    "wrong path, nothing like it": ("a/b/c", None, "a/b/c: no such file or folder; check the path"),
    "an empty folder": (
        "empty",
        None,
        "empty: no .jsonl, .json, .csv, .eval, .parquet, .arrow file",
    ),
    "an empty file": ("x.jsonl", "", "x.jsonl: the file is empty; run the evaluation again"),
    "a blank file": ("x.jsonl", "\n\n", "x.jsonl: the file is empty; run the evaluation again"),
    "unknown fields": (
        "x.jsonl",
        '{"item": 1}\n',
        "x.jsonl: unknown format with the fields 'item'; expected",
    ),
    "unknown columns": (
        "x.csv",
        "id;correct\n1;1\n",
        "x.csv: the columns are separated by ';'; separate them by commas",
    ),
    "quoted columns, no commas": (
        "x.csv",
        '"id";"correct"\n1;1\n',
        "x.csv: the columns are separated by ';'; separate",
    ),
    "tabs": ("x.csv", "id\tcorrect\n1\t1\n", "x.csv: the columns are separated by '\\t'; separate them by commas"),
    "capitals": ("x.csv", "ID,Correct\n1,1\n", "x.csv: did you mean 'id' by 'ID' and 'correct' by 'Correct'? Names"),
    "a blank in the header": ("x.csv", "id, correct\n1,1\n", "x.csv: did you mean 'correct' by ' correct'? Names"),
    "a column twice": ("x.csv", "id,correct,correct\n1,1,0\n", "x.csv: the header has 2 columns 'correct'; keep one"),
    "a header alone": ("x.csv", "id,correct\n\n", "x.csv: no rows below the header; run the evaluation again, or"),
    "gzip": ("x.jsonl.gz", "\x1f\udc8b\x08", "x.jsonl.gz: compressed; unpack it first with gunzip"),
    "UTF-16": ("x.jsonl", "\udcff\udcfe{\0", "x.jsonl: looks like UTF-16; convert the file to UTF-8"),
    "UTF-16 without a mark": ("x.jsonl", '{\0"\0', "x.jsonl: looks like UTF-16; convert the file to UTF-8"),
    "an empty path": ("", None, "the path of a log is empty; name a file or folder"),
    "control characters": ("\x1b[31m\u202e\n", None, "\\x1b[31m\\u202e\\n: no such file or folder; check the path"),
    "a metric with control characters": (
        "x.jsonl",
        LM_EVAL.replace("acc", "\\u001b[31m"),
        "x.jsonl: no field can have such a name: '\\x1b[31m'; rename it",
    ),
    "one JSON document": ("x.json", '{\n "id": 1\n}\n', "x.json: unknown format; expected a baseline"),
    "a JSON list of nothing known": ("x.json", '[{"item": 1}]\n', "x.json: unknown format with the fields 'item'"),
    "binary": ("x.eval", "PK\x03\x04\udcff\udcfe", "x.eval: not a zip file, or cut off (File is not a zip file)"),
    "no common ids": (
        "x.jsonl",
        '{"id": "b", "correct": 1}\n',
        "the logs have no id in common: old (old.jsonl) has '1', '2'; new (x.jsonl) has 'b'; name",
    ),
    "duplicate ids": ("x.jsonl", GOOD + NEW, "x.jsonl:3: id '1' was right in line 1 and is wrong here; keep one row"),
    "last line cut off": ("x.jsonl", GOOD[:-20], "x.jsonl:2: the last line is cut off (unfinished JSON); run the"),
    "only line cut off": ("x.jsonl", GOOD[:20], "x.jsonl:1: the last line is cut off (unfinished JSON); run the"),
    "last line cut off within a letter": ("x.jsonl", GOOD + '{"id": "\udcc3', "x.jsonl:3: the last line is cut off"),
    "last line no JSON": ("x.jsonl", GOOD + "INFO done\n", "x.jsonl:3: not JSON (Expecting value: line 1 column 1"),
    "last line nested deeply": ("x.jsonl", GOOD + '{"x": ' + "[" * 99_999, "x.jsonl:3: not JSON (maximum recursion"),
    "last line with a huge number": (
        "x.jsonl",
        f'{{"id": {"9" * 5001}, "correct": 1}}\n',
        "x.jsonl:1: not JSON (Integer value out of range",
    ),
    "last CSV line cut off": ("x.csv", "id,correct,answer\n1,1,x\n2,0", "x.csv:3: the last line is cut off (2 cells"),
    "CSV quote cut off": ("x.csv", 'id,correct\n1,1\n2,"0', "x.csv:3: not CSV, or the last line is cut off"),
    "a CSV row too long": ("x.csv", "id,correct\n1,1,1\n2,0\n", "x.csv:2: the row does not fit the header (3 cells"),
    "malformed first line": (
        "x.jsonl",
        f'{{"id": 1,,}}\n{GOOD}',
        "x.jsonl:1: not JSON (Expecting property name",
    ),
    "malformed middle line": (
        "x.jsonl",
        f'{GOOD}{{"id": 2,,}}\n{GOOD}',
        "x.jsonl:3: not JSON (Expecting property name",
    ),
    "a row without a field": ("x.jsonl", GOOD + '{"id": 3}\n', "x.jsonl:3: Object missing required field `correct`;"),
    "a row without an id": ("x.jsonl", '{"id": null, "correct": 1}\n', "x.jsonl:1: the row has no id; give every row"),
    "NaN in correct": (
        "x.jsonl",
        GOOD + '{"id": 3, "correct": NaN}\n',
        "x.jsonl:3: correct is NaN; remove it, or write",
    ),
    "NaN in a CSV": ("x.csv", "id,correct\n1,nan\n", "x.csv:2: correct is NaN; remove it, or write null"),
    "NaN in score": (
        "x.jsonl",
        '{"id": 3, "correct": 1, "score": NaN}\n',
        "x.jsonl:1: score is NaN; remove it, or write",
    ),
    "a huge score": (
        "x.jsonl",
        f'{{"id": 3, "correct": 1, "score": {"9" * 400}}}\n',
        "x.jsonl:1: score is 9999999999",
    ),
    "NaN as id": ("x.jsonl", '{"id": NaN, "correct": 1}\n', "x.jsonl:1: the row has no id; give every row"),
    "NaN in a metric": ("x.jsonl", LM_EVAL, "x.jsonl:1: acc is NaN; remove it, or write null"),
    "not UTF-8": ("x.csv", "id,correct\n\udcff,1\n", "x.csv:2: not valid UTF-8; convert the file to UTF-8"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_with_exit_code_2(logs: Path, case: str) -> None:
    name, content, message = ERRORS[case]
    (logs / "empty").mkdir()
    if content is not None:
        (logs / name).write_bytes(content.encode(errors="surrogateescape"))
    run = muscle("compare", "old.jsonl", name, "--json", "out.json", cwd=logs)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {message}")
    assert run.stderr.count("\n") == 1
    assert not (logs / "out.json").exists()
