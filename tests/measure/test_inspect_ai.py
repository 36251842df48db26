"""inspect_ai logs: what real ones and hand-written ones become, and how damaged ones are refused."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import LogError
from muscle.measure import compare
from muscle.measure.logs import OpenLog, zips
from muscle.measure.logs.rows import Row, Selection
from muscle.measure.predictions import Log

if sys.version_info >= (3, 14):
    import zipfile
else:
    from backports.zstd import zipfile

ARC = "inspect_arc_easy_small"
EXAMPLES = Path("logs", "format_examples", "inspect_eval_zip")
UNSCORED_RUN = "2025-02-11T15-17-00-05-00_popularity_dPiJifoWeEQBrfWsAopzWr.eval"
MMLU = "2025-07-30T18-42-38+00-00_mmlu_ZYEnfbu3nstBuwzjiAGzuG.eval"


def read(path: Path, **choices: Any) -> Log:
    return OpenLog(path, Selection(**choices)).read()


def rows(path: Path, **choices: Any) -> list[Row]:
    return list(OpenLog(path, Selection(**choices)).rows())


def sample(id_: object = 1, value: object = "C", epoch: int = 1, **fields: Any) -> dict[str, Any]:
    """A sample as inspect_ai 0.3.138 writes it, without its transcript."""
    said = {"role": "assistant", "content": "ANSWER: A"}
    return {
        "id": id_,
        "epoch": epoch,
        "input": "Which?",
        "choices": ["yes", "no"],
        "target": "A",
        "messages": [],
        "output": {"model": "m", "choices": [{"message": said, "stop_reason": "stop"}], "completion": "ANSWER: A"},
        "scores": {"choice": {"value": value, "answer": "A", "explanation": "ANSWER: A", "history": []}},
        "metadata": {"subject": "logic", "a.b": {"c": 1}},
    } | fields


def header(status: str = "success", version: int = 2, **spec: Any) -> dict[str, Any]:
    return {"version": version, "status": status, "eval": {"task": "t", "task_id": "x", "model": "m"} | spec}


def write_json(file: Path, samples: Iterable[dict[str, Any]], **head: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(header(**head) | {"samples": list(samples)}, indent=2))
    return file


def write_eval(file: Path, members: dict[str, Any], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else json.dumps(content, indent=2))
    return file


def eval_members(*samples: dict[str, Any], **head: Any) -> dict[str, Any]:
    named = {f"samples/{one['id']}_epoch_{one['epoch']}.json": one for one in samples}
    return {"_journal/start.json": {}, **named, "summaries.json": [], "header.json": header(**head)}


# --- real logs ---


def test_the_public_pair_gives_the_flips_counted_elsewhere(data: Path) -> None:
    want = json.loads((data / "logs" / "expected.json").read_text())[ARC]["claude-sonnet-4-0 -> qwen2.5:0.5b"]
    folder = data / "logs" / ARC
    update = compare(folder / "data_arc_sonnet.json", folder / "data_arc_qwen.json").total.update
    counts = ("both_right", "positive_flips", "negative_flips", "both_wrong", "both_wrong_different")
    assert {name: getattr(update, name) for name in counts} == {name: want[name] for name in counts}
    assert (update.n, update.only_old, update.only_new) == (want["N"], want["only_in_v1"], want["only_in_v2"])
    assert (update.missing_answers_old, update.missing_answers_new) == (
        want["pred_missing_v1"],
        want["pred_missing_v2"],
    )
    rates = {"accuracy_old": "acc_v1", "accuracy_new": "acc_v2", "nfr": "NFR", "pfr": "PFR", "nfr_mc": "NFR_mc"}
    assert {name: getattr(update, name).value for name in rates} == {n: want[theirs] for n, theirs in rates.items()}


def test_a_real_zip(data: Path) -> None:
    log = read(data / EXAMPLES / MMLU, labels=("metadata.subject",))
    (task,) = log.tasks.values()
    assert (log.format, task.task, task.metric, len(task.ids), log.notes) == ("inspect_ai", "mmlu", "choice", 285, ())
    assert task.correct.sum() == 223  # inspect's own accuracy: 0.78246
    assert len(set(task.labels["metadata.subject"])) == 57  # all of MMLU's subjects
    assert (task.answers != 0).all()


def test_zstandard_members_read_the_same(data: Path, tmp_path: Path) -> None:
    original = data / EXAMPLES / MMLU
    with zipfile.ZipFile(original) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    copy = write_eval(tmp_path / "copy.eval", members, zipfile.ZIP_ZSTANDARD)
    with zipfile.ZipFile(copy) as archive:
        assert {member.compress_type for member in archive.infolist()} == {93}
    ours, theirs = rows(copy), rows(original)
    assert [(row.id, row.correct, row.answer) for row in ours] == [(row.id, row.correct, row.answer) for row in theirs]


def test_a_real_log_without_scores_is_unscored(data: Path) -> None:
    (task,) = read(data / EXAMPLES / UNSCORED_RUN).tasks.values()
    assert (task.metric, set(task.correct.tolist()), len(task.ids)) == (None, {-1}, 10)


def test_epochs_of_a_real_log_are_draws(data: Path) -> None:
    log = data / EXAMPLES / "log_streaming_2epochs.eval"
    (task,) = read(log).tasks.values()
    with zipfile.ZipFile(log) as archive:
        members = [json.loads(archive.read(name)) for name in archive.namelist() if name.startswith("samples/")]
    want = [(str(one["id"]), one["epoch"] - 1, int(one["scores"]["match"]["value"] == "C")) for one in members]
    assert list(zip(task.ids, task.draws.tolist(), task.correct.tolist(), strict=True)) == want
    assert {draw for _, draw, _ in want} == {0, 1}
    assert compare(log, log).repeats is not None


def test_a_real_log_with_choices_in_words(data: Path) -> None:
    log = OpenLog(data / EXAMPLES / "mmlu-summary-choices.eval", Selection())
    (task,) = log.read().tasks
    texts = log.texts({task: {("1", 0)}})[task, ("1", 0)]
    assert (texts.answer, texts.target) == ("12.2 eV", "6.0 e")
    assert (texts.input or "").startswith("Positronium is an atom")


def test_several_models_in_a_folder_are_refused(data: Path) -> None:
    with pytest.raises(LogError, match=r"task popularity of .*Llama.* beside that of openai/gpt-4o-mini; keep one"):
        read(data / EXAMPLES)


# --- scores ---


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        *(("C", 1), ("I", 0), ("N", 0), (1.0, 1), (0, 0), (True, 1), (False, 0), ("yes", 1), ("No", 0), ("1", 1)),
        *((math.nan, -1), (None, -1)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_score_is_worth(tmp_path: Path, value: object, outcome: int, packed: bool) -> None:
    if packed:
        log = write_eval(tmp_path / "log.eval", eval_members(sample(value=value)))
    else:
        log = write_json(tmp_path / "log.json", [sample(value=value)])
    (row,) = rows(log)
    assert (row.id, row.correct, row.answer, row.targets) == ("1", outcome, "A", ("A",))


@pytest.mark.parametrize("value", ["P", 0.37, 2, "A", -math.inf])
def test_neither_right_nor_wrong(tmp_path: Path, value: object) -> None:
    log = write_json(tmp_path / "log.json", [sample(), sample(2, value)])
    with pytest.raises(
        LogError, match=r"log.json: samples\[1\]: choice is .* neither right nor wrong; .*--score choice"
    ):
        rows(log)


def test_partial_credit_is_a_grade(tmp_path: Path) -> None:
    log = write_json(tmp_path / "log.json", [sample(i, value) for i, value in enumerate("CIPN")])
    graded = rows(log, metric="choice", score="choice")
    assert [row.score for row in graded] == [1.0, 0.0, 0.5, 0.0]
    assert [row.correct for row in graded] == [1, 0, -1, 0]
    assert [row.correct for row in rows(log, score="choice")] == [-1] * 4  # it does not judge every sample
    notes = read(log, metric="choice", score="choice").notes
    assert notes == ("task t: what choice grades between 0 and 1 is neither right nor wrong (unscored)",)


def test_a_scorer_that_judges_every_sample_may_grade_too(tmp_path: Path) -> None:
    log = write_json(tmp_path / "log.json", [sample(1, "C"), sample(2, "I"), sample(3, math.nan)])
    assert [(row.correct, row.task.metric) for row in rows(log, score="choice")] == [
        (1, "choice"),
        (0, "choice"),
        (-1, "choice"),
    ]


def several(id_: int, f1: float, match: str) -> dict[str, Any]:
    both = {
        "f1": {"value": f1},
        "match": {"value": match, "answer": "x"},
        "sub": {"value": {"a": 1, "b": "N"}},
        "l": {"value": [0, 1]},
    }
    return sample(id_, scores=both)


def test_several_scorers(tmp_path: Path) -> None:
    log = write_json(tmp_path / "log.json", [sample(0, scores={}), several(1, 0.0, "C"), several(2, 1.0, "I")])
    assert read(log).notes == (
        "task t: score f1 is read; choose with --metric among it and match, sub.a, sub.b, l.0, l.1",
    )
    assert [row.correct for row in rows(log)] == [-1, 0, 1]
    by_match = rows(log, metric="match", score="f1")
    assert [(row.correct, row.answer) for row in by_match[1:]] == [(1, "x"), (0, "x")]
    assert [row.score for row in by_match[1:]] == [0.0, 1.0]
    assert [row.correct for row in rows(log, metric="sub.a")] == [-1, 1, 1]
    assert [row.correct for row in rows(log, metric="sub.b")] == [-1, 0, 0]
    assert [row.correct for row in rows(log, metric="l.1")] == [-1, 1, 1]


@pytest.mark.parametrize("name", ["nope", "sub.c", "match.x", "sub"])
def test_a_scorer_that_is_not_there(tmp_path: Path, name: str) -> None:
    log = write_json(tmp_path / "log.json", [several(1, 0.0, "C")])
    with pytest.raises(
        LogError, match=f"'{name}'; choose with --metric among f1, match, sub.a, sub.b|sub is .*--metric"
    ):
        rows(log, metric=name)
    with pytest.raises(LogError, match=f"'{name}'; choose with --score among f1|sub is .*; write a number"):
        rows(log, metric="match", score=name)


def test_a_task_without_the_scorer_is_read_by_its_first(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "a.json", [sample()], task="a")
    write_json(tmp_path / "run" / "b.json", [several(1, 1.0, "C")], task="b")
    log = read(tmp_path / "run", metric="match")
    assert {name: task.metric for name, task in log.tasks.items()} == {"a": "choice", "b": "match"}
    with pytest.raises(LogError, match="no score 'nope'; choose with --metric among choice, f1, match"):
        read(tmp_path / "run", metric="nope")


def test_text_scores_need_no_scorer(tmp_path: Path) -> None:
    log = write_json(tmp_path / "log.json", [sample(1, 0.3), sample(2, 0.4, target="B")])
    (task,) = read(log, text_score="exact_match").tasks.values()
    assert task.correct.tolist() == [1, 0]


@pytest.mark.parametrize("status", ["error", "cancelled", "started"])
def test_a_run_that_did_not_finish_is_unscored(tmp_path: Path, status: str) -> None:
    log = read(write_json(tmp_path / "log.json", [sample(1, "P")], status=status), score="choice")
    (task,) = log.tasks.values()
    assert (task.correct.tolist(), math.isnan(task.scores[0])) == ([-1], True)
    assert any(f"the run's status is {status}, so its samples are unscored; finish it" in note for note in log.notes)


def test_a_sample_that_failed_is_unscored(tmp_path: Path) -> None:
    failed = sample(1, error={"message": "boom", "traceback": ""})
    (row,) = rows(write_json(tmp_path / "log.json", [failed]))
    assert (row.correct, row.answer) == (-1, None)


def test_a_failed_attempt_that_was_retried_is_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "1.json", [sample()], status="error")
    write_json(tmp_path / "run" / "2.json", [sample()])
    log = read(tmp_path / "run")
    assert log.notes == ("logs of failed attempts left out, because a retry finished: 1",)
    assert log.tasks["t"].correct.tolist() == [1]


def test_two_runs_of_a_task_in_a_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "1.json", [sample()])
    write_json(tmp_path / "run" / "2.json", [sample(value="I")], task_id="y")
    with pytest.raises(LogError, match=r"id '1' was right in .*two runs of the task lie in one folder"):
        read(tmp_path / "run")
    assert read(tmp_path / "run", duplicates="draws").tasks["t"].draws.tolist() == [0, 1]


def test_one_task_with_several_arguments_is_several(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "1.json", [sample()], task_args={"subject": "law", "shots": 5})
    write_json(tmp_path / "run" / "2.json", [sample(value="I")], task_args={"subject": "art", "shots": 5})
    assert list(read(tmp_path / "run").tasks) == ["t(shots=5, subject=law)", "t(shots=5, subject=art)"]


# --- answers, targets, texts, labels ---


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"scores": {"choice": {"value": "C"}}}, "ANSWER: A"),
        ({"scores": {"choice": {"value": "C", "answer": 18.0}}}, "18"),
        ({"scores": {}, "output": {"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]}}, "x"),
        (
            {
                "scores": {},
                "output": {
                    "choices": [
                        {
                            "message": {
                                "content": [{"type": "reasoning", "reasoning": "r"}, {"type": "text", "text": "x"}]
                            }
                        }
                    ]
                },
            },
            "x",
        ),
        ({"scores": {}, "output": {"choices": [], "completion": "y"}}, "y"),
        ({"scores": {}, "output": {}}, None),
        ({"scores": None, "output": None}, None),
    ],
)
def test_the_answer(tmp_path: Path, fields: dict[str, Any], answer: str | None) -> None:
    (row,) = rows(write_json(tmp_path / "log.json", [sample(**fields)]))
    assert row.answer == answer


def test_texts_are_in_words(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Which?"}]},
    ]
    choices = ["one", "two", "three"]
    answered = {"choice": {"value": "C", "answer": "A, C"}}
    long = sample(2, input="attachment://f00", attachments={"f00": "long text"}, choices=None)
    log = OpenLog(
        write_json(
            tmp_path / "log.json",
            [sample(1, input=chat, choices=choices, target=["A", "C"], scores=answered), long],
        ),
        Selection(),
    )
    log.read()
    found = log.texts({"t": {("1", 0), ("2", 0)}})
    assert found["t", ("1", 0)] == ("system: Be brief.\n\nuser: Which?", "one | three", "one | three")
    assert found["t", ("2", 0)] == ("long text", "A", "A")


def test_labels_are_paths_into_the_sample(tmp_path: Path) -> None:
    paths = ("metadata.subject", "metadata.a.b.c", "scores.choice.answer", "choices.1", "limit.type", "metadata.none")
    (row,) = rows(write_json(tmp_path / "log.json", [sample(limit={"type": "token"})]), labels=paths)
    assert row.labels == ("logic", "1", "A", "no", "token", None)


def test_other_choices_make_another_item(tmp_path: Path) -> None:
    old = write_json(tmp_path / "old.json", [sample()])
    new = write_json(tmp_path / "new.json", [sample(choices=["no", "yes"])])
    assert any("doc_hash differs between old and new for 1 of 1" in note for note in compare(old, new).notes)


def test_a_log_before_several_scorers(tmp_path: Path) -> None:
    old = sample(score={"value": "C", "answer": "A"}, epoch=1)
    del old["scores"]
    (row,) = rows(write_json(tmp_path / "log.json", [old], version=1))
    assert (row.correct, row.task.metric) == (1, "score")


def test_a_compact_document(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    log.write_text(json.dumps(header() | {"samples": [sample(), sample("b", "I")]}))
    assert [row.id for row in rows(log)] == ["1", "b"]


# --- damage ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": None}, "the row has no id"),
        ({"id": [1]}, "the id is"),
        ({"epoch": -1}, "epoch is -1; expected a whole number"),
        ({"epoch": 2**31}, "epoch is 2147483648; expected a whole number"),
        ({"epoch": "x"}, "epoch is 'x'"),
        ({"scores": [1]}, "Expected `object . null`, got `array`"),
        ({"scores": {"choice": 3}}, "Expected `object`, got `int`"),
        ({"output": {"choices": [3]}}, "Expected `object`, got `int`"),
    ],
)
def test_samples_of_the_wrong_kind(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LogError, match=f"log.json: .*{message}"):
        rows(write_json(tmp_path / "log.json", [sample(**fields)]))
    bad = sample(5) | fields
    members = {"samples/5_epoch_1.json": bad, "header.json": header()}
    with pytest.raises(LogError, match=f"log.eval: samples/5_epoch_1.json: .*{message}"):
        rows(write_eval(tmp_path / "log.eval", members))


@pytest.mark.parametrize("field", ["input", "target", "choices", "metadata"])
def test_deep_nesting_is_refused(tmp_path: Path, field: str) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    text = json.dumps(header() | {"samples": [sample(**{field: "DEEP"})]}, indent=2).replace('"DEEP"', deep)
    log = tmp_path / "log.json"
    log.write_text(text)
    with pytest.raises(LogError, match="nested too deeply"):
        rows(log, labels=("metadata",))
    for depth in range(900, 1001, 4):  # where decoding may still work, and what follows may not
        log.write_text(text.replace(deep, "[" * depth + "]" * depth))
        try:
            rows(log, labels=("metadata",))
        except LogError as error:
            assert "nested too deeply" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"_journal/start.json": {}}, "no header.json, the run did not finish; finish it with inspect eval-retry"),
        ({"header.json": b"{"}, "header.json: not JSON, or cut off"),
        ({"header.json": []}, "header.json: Expected `object`, got `array`"),
        ({"header.json": {"eval": {"task": 3}}}, r"header.json: Expected `str`, got `int` - at `\$.eval.task`"),
        (
            {"header.json": header(version=3)},
            "the log's layout is version 3, known are those up to 2; write it as .json",
        ),
        ({"header.json": header(), "samples/1_epoch_1.json": b"\xff"}, "samples/1_epoch_1.json: not JSON, or cut off"),
        ({"header.json": header()}, "no rows; run the evaluation again"),
    ],
)
def test_zips_with_a_fault(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    with pytest.raises(LogError, match=f"log.eval: {message}"):
        read(write_eval(tmp_path / "log.eval", members))


def test_a_zip_that_is_cut_off_anywhere(tmp_path: Path) -> None:
    log = write_eval(tmp_path / "log.eval", eval_members(sample()), zipfile.ZIP_ZSTANDARD)
    whole = log.read_bytes()
    for end in range(4, len(whole), 7):
        log.write_bytes(whole[:end])
        with pytest.raises(LogError, match="not a zip file, or cut off"):
            read(log)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_ZSTANDARD])
def test_flipped_bits_are_errors_or_do_no_harm(tmp_path: Path, method: int) -> None:
    log = write_eval(tmp_path / "log.eval", eval_members(sample()), method)
    whole = log.read_bytes()
    refused = 0
    for place in range(4, len(whole)):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read(log)
        except LogError:
            refused += 1
    assert refused > len(whole) / 4


def test_a_zip_bomb_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "LARGEST_MEMBER", 1 << 20)
    members = {"header.json": header(), "samples/1_epoch_1.json": b'{"id": "' + b"x" * (4 << 20) + b'"}'}
    with pytest.raises(LogError, match=r"'samples/1_epoch_1.json' is larger than 1 MiB unpacked"):
        read(write_eval(tmp_path / "log.eval", members, zipfile.ZIP_ZSTANDARD))


def test_an_encrypted_member(tmp_path: Path) -> None:
    log = write_eval(tmp_path / "log.eval", eval_members(sample()))
    whole = bytearray(log.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # where the two headers keep them
        place = whole.find(signature)
        while place >= 0:
            whole[place + flags] |= 1
            place = whole.find(signature, place + 1)
    log.write_bytes(whole)
    with pytest.raises(LogError, match=r"'header\.json' is encrypted; unpack the log with its password"):
        read(log)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"x.zip: unknown format; expected .*an inspect_ai log"):
        read(write_eval(tmp_path / "x.zip", {"a.txt": b"hello"}))


def test_a_member_that_was_rewritten_counts_as_its_last_version(tmp_path: Path) -> None:
    log = write_eval(tmp_path / "log.eval", eval_members(sample(value="I")))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(log, "a") as archive:
        archive.writestr("samples/1_epoch_1.json", json.dumps(sample(value="C")))
    assert [row.correct for row in rows(log)] == [1]


def test_filters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="inspect_ai logs have no filters; leave out --filter"):
        rows(write_json(tmp_path / "log.json", [sample()]), filter="x")
