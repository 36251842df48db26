"""What fuzzing starts from: small logs of every format by hand, and real ones, cut short, where they are at hand.

A body is what `readers.py` writes into files: JSON documents or rows, one per line (see its targets). Real logs are
read at run time from the folder in MUSCLE_DATA, by default ../shared/data beside the repository; none is kept.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    import zipfile
else:
    from backports.zstd import zipfile

REAL_DATA = Path(os.environ.get("MUSCLE_DATA", Path(__file__).parents[2] / "shared" / "data"))
_LONGEST_TEXT, _MOST_ELEMENTS = 60, 4
_LARGEST = 6000  # bytes of a real log that is cut


def bodies(target: str) -> list[bytes]:
    """The bodies that fuzzing of a target starts from."""
    return [*_by_hand(target), *_real(target)]


def _lines(*documents: object) -> bytes:
    return b"\n".join(json.dumps(document).encode() for document in documents)


def _by_hand(target: str) -> Iterator[bytes]:
    if target in _ROWS:
        for rows in _ROWS[target]:
            yield _lines(*rows)
    elif target == "table-csv":
        header = b"id,correct,answer,target,score,task,draw,doc_hash,input\n"
        yield header + b"1,1,a,a,0.5,t,0,ab,?\n2,,,,,,,,\n3,0,b,c,1,t,1,1f,x\n"
        yield b'"id",correct,question\r\n"a ""b""\nc",true,"x,y"\r\n1.0,False,\xc3\xa9\r\n'
        yield b"id;correct\n1;0\n"
        yield b"Id,Correct\n1,0\n"
    elif target == "zip":
        yield from _zips()


def _lm_eval(number: int, **fields: Any) -> dict[str, Any]:
    """A generated answer, as lm-eval 0.4.9 logs it."""
    return {
        "doc_id": number,
        "doc": {"question": "2+2", "subject": "sums"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": "Q: 2+2\nA:", "arg_1": {"until": ["\n"]}}},
        "resps": [["4"]],
        "filtered_resps": ["4"],
        "filter": "strict",
        "metrics": ["exact_match"],
        "doc_hash": "ab" * 32,
        "exact_match": 1.0,
        **fields,
    }


def _choice(number: int, **fields: Any) -> dict[str, Any]:
    """A multiple choice."""
    arguments = {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {text}"} for i, text in enumerate(("yes", "no"))}
    scores = {
        "filtered_resps": [["-1.5", "False"], ["-2.5", "True"]],
        "metrics": ["acc", "acc_norm"],
        "acc": 1.0,
        "acc_norm": 0.0,
    }
    doc = {"choices": {"text": ["of course", "never"]}}
    return _lm_eval(number, target=0, arguments=arguments, filter="none", doc=doc, **scores) | fields


def _old_choice(number: int) -> dict[str, Any]:
    row = {"doc_id": number, "doc": {}, "target": "['1', \"2\"]", "arguments": [["Q", " a"], ["Q", " b"]]}
    return row | {"resps": [[[-1.0, True]], [[-2.0, False]]], "filtered_resps": [[-1.0, True], [-2.0, False]], "acc": 0}


def _write_out(number: int) -> dict[str, Any]:
    logits = {"prompt_0": "Q yes", "prompt_1": "Q no", "logit_0": -1.5, "logit_1": -2.5}
    return {"doc_id": number, "truth": "0", "acc": "True", "acc_norm": "0.0", **logits}


def _sample(number: int | str, **fields: Any) -> dict[str, Any]:
    """A sample of inspect_ai."""
    message = {"role": "assistant", "content": [{"type": "text", "text": "ANSWER: A"}]}
    return {
        "id": number,
        "epoch": 1,
        "input": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "attachment://a"}],
        "choices": ["yes", "no"],
        "target": ["A"],
        "output": {"choices": [{"message": message}], "completion": "ANSWER: A"},
        "scores": {
            "choice": {"value": "C", "answer": "A"},
            "all": {"value": {"f1": 0.5, "exact": 1}, "answer": "A, B"},
            "both": {"value": [1, 0]},
        },
        "metadata": {"subject": "law", "a.b": [1]},
        "attachments": {"a": "long text"},
        **fields,
    }


_EVAL = {
    "version": 2,
    "status": "success",
    "eval": {"task": "quiz", "task_id": "t1", "task_args": {"shots": 2}, "model": "m"},
    "samples": [],
}


def _result(number: int, **fields: Any) -> dict[str, Any]:
    """A result of promptfoo."""
    return {
        "testIdx": number,
        "promptIdx": 0,
        "provider": {"id": "openai:gpt", "label": "gpt"},
        "prompt": {"raw": "Translate: a", "label": "Translate: {{body}}"},
        "vars": {"body": f"text {number}"},
        "testCase": {"vars": {"body": "a"}, "assert": [{"type": "contains"}], "description": "d"},
        "success": True,
        "score": 1,
        "namedScores": {"tone": 0.25},
        "failureReason": 0,
        "gradingResult": {"pass": True, "reason": "No assertions"},
        "response": {"output": "texte"},
        "metadata": {"category": "easy"},
        **fields,
    }


def _cell() -> dict[str, Any]:
    graded = {"pass": False, "reason": "wrong"}
    cell = {"pass": False, "text": "wrong\n---\na", "prompt": "p", "score": 0, "namedScores": {}}
    return cell | {"gradingResult": graded}


_HELM_STATS: list[dict[str, Any]] = [
    {
        "instance_id": f"id{number}",
        "train_trial_index": 0,
        "perturbation": {"name": "typos", "prob": 0.1, "robustness": True} if number == 2 else None,
        "stats": [
            {"name": {"name": "num_prompt_tokens"}, "mean": 12},
            {"name": {"name": "exact_match", "split": "test"}, "count": 1, "mean": 1.0},
            {"name": {"name": "predicted_index"}, "mean": 0.0},
            {"name": {"name": "quasi_exact_match"}, "mean": 0.0},
            {"name": {"name": "f1_score"}, "mean": 0.5},
        ],
    }
    for number in range(3)
]


def _request(number: int, **fields: Any) -> dict[str, Any]:
    references = [{"output": {"text": "yes"}, "tags": ["correct"]}, {"output": {"text": "no"}, "tags": []}]
    tokens = [{"text": "ye", "logprob": -0.5}, {"text": "s", "logprob": -0.5}]
    return {
        "instance": {"id": f"id{number}", "input": {"text": "Q?"}, "references": references, "sub_split": "easy"},
        "train_trial_index": 0,
        "output_mapping": {"A": "yes"},
        "request_mode": "original",
        "result": {"completions": [{"text": "A", "logprob": -1.0, "tokens": tokens}]},
        **fields,
    }


def _choice_request(index: int, mode: str) -> dict[str, Any]:
    """One of the choices of an item, each of which is scored on its own."""
    text = ("yes", "no")[index]
    tokens = [{"text": token, "logprob": -1.5} for token in ("Q", "?", f" {text[:1]}", text[1:])]
    result = {"completions": [{"text": f"Q? {text}", "logprob": -6.0, "tokens": tokens}]}
    return _request(0, reference_index=index, request_mode=mode, result=result)


_SPEC = {"name": "mmlu:subject=law,model=a_b", "adapter_spec": {"model": "a/b"}}
_BLESSED = {"name": "t", "metric": "acc", "filter": "none", "score": "f1"}
_BASELINE = {"muscle_baseline": 1, "muscle": "0.1.0", "blessed": "2026-01-02", "source": "new.jsonl", "rows": 2}

_ROWS: Mapping[str, list[list[Any]]] = {
    "baseline": [
        [
            {**_BASELINE, "format": "lm-eval", "sha256": "ab" * 32, "tasks": [_BLESSED]},
            {"task": "t", "id": "1", "correct": 1, "answer": "4", "targets": ["4", "four"], "score": 0.5},
            {"task": "t", "id": "1", "draw": 1, "correct": 0, "doc_hash": "ab" * 8},
        ]
    ],
    "lm-eval": [
        [_lm_eval(0), _lm_eval(1, filter="loose"), _lm_eval(1, exact_match=0)],
        [_choice(0), _choice(1, acc=None), _choice(2, doc={"options": ["x", "y"]})],
        [_choice(0, acc_mutual_info=1.0, metrics=["acc_mutual_info", "acc_norm", "acc_bytes"], acc_bytes=1)],
        [_old_choice(0), _old_choice(1)],
        [_lm_eval(0, filtered_resps=[["-3.0", "False"]], acc=1, ppl=-3.0, metrics=["ppl", "acc"])],
        [_lm_eval(0, arguments=[['[{"role": "user", "content": "hi"}]', {}]])],
    ],
    "lm-eval-0.3": [
        [_write_out(0), _write_out(1)],
        [{"doc_id": 0, "prompt_0": "p", "logit_0": "text", "truth": "text", "em": "1.0", "f1": "0.5"}],
        [{"doc_id": 0, "prompt_0": "p", "logit_0": [-1.5, True], "truth": "x", "acc": "False"}],
    ],
    "inspect-json": [
        [_EVAL | {"samples": [_sample(1), _sample(1, epoch=2), _sample(2, error={"message": "!"})]}],
        [_EVAL | {"samples": [{"id": "a", "input": "Q", "target": "yes", "score": {"value": 1, "answer": "yes"}}]}],
        [_EVAL | {"version": 1, "status": "error", "samples": None}],
    ],
    "inspect-zip": [
        [_EVAL, _sample(1), _sample(2, scores={"choice": {"value": "I"}}), _sample("x", target="A", epoch=2)],
        [_EVAL, {"id": 1, "input": "Q", "output": {"completion": "text"}, "target": "text"}],
    ],
    "helm": [
        [_HELM_STATS, {"request_states": [_request(0), _request(1)]}, _SPEC],
        [
            [{"instance_id": "id0", "train_trial_index": 0, "stats": _HELM_STATS[0]["stats"][1:2]}],
            {
                "request_states": [
                    _choice_request(index, mode) for index in (0, 1) for mode in ("original", "calibration")
                ]
            },
        ],
        [_HELM_STATS[:1]],
    ],
    "promptfoo": [
        [_result(0), _result(1, success=False, score=0, error="wrong"), _result(2, failureReason=2)],
        [{"evalId": "e", "results": {"version": 3, "results": [_result(0), _result(0, promptIdx=1)]}}],
        [{"evalId": "e", "results": [_result(0), _result(1, vars={"body": "text 0"})], "prompts": []}],
        [
            {
                "evalId": "e",
                "results": {
                    "version": 2,
                    "results": [{"provider": "p", "prompt": {"raw": "r"}, "success": True}],
                    "table": {
                        "head": {"prompts": [{"provider": "p", "label": "l"}]},
                        "body": [{"outputs": [_cell()], "test": {"vars": {"a": "b"}, "metadata": {}}}],
                    },
                },
            }
        ],
        [_result(0, provider="p"), _result(0, provider={"id": "q"}, promptIdx=1)],
    ],
    "table-json": [
        [{"id": 1, "correct": True, "answer": "a", "target": ["a", "b"], "score": 0.5}, {"id": "x", "correct": 0}],
        [{"id": 1, "correct": 1, "answer": ["a", "b"], "target": ["b"], "task": "t", "draw": 1, "doc_hash": "ff"}],
        [{"id": {"a": 1}, "gold": {"answer": "x", "subject": "s"}, "question": "Q", "correct": None}],
        [{"ID": 1, "Correct": 1}],
    ],
}
_FRAMES: list[list[Any]] = [
    [{"id": 1, "correct": True, "answer": "a", "score": 0.5}, {"id": 2, "correct": None, "answer": "b", "score": 1.0}],
    [{"id": "a", "correct": 1, "gold": {"subject": "s"}, "answer": ["x"], "target": ["x", "y"], "draw": 0}] * 2,
]
_ROWS = {
    **_ROWS,
    "parquet": _FRAMES,
    "arrow": _FRAMES,
    "objects": _ROWS["table-json"] + _ROWS["lm-eval"],
    "any": [rows for group in _ROWS.values() for rows in group],
}


def _zips() -> Iterator[bytes]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("header.json", json.dumps(_EVAL))
            sample = {"id": 1, "input": "Q", "scores": {"a": {"value": 1}}}
            archive.writestr("samples/1_epoch_1.json", json.dumps(sample))
        yield file.getvalue()


def _real(target: str) -> Iterator[bytes]:
    """Real logs of the target's format, their texts and lists cut short."""
    logs = REAL_DATA / "logs"
    if not logs.is_dir():
        return
    if target == "lm-eval":
        for file in sorted(logs.rglob("samples_*.jsonl"))[:12]:
            with file.open(encoding="utf-8") as rows:
                yield _lines(*(_cut(json.loads(row)) for row in islice(rows, 2)))[:_LARGEST]
    elif target == "lm-eval-0.3":
        for file in sorted(logs.rglob("*_write_out_info.json"))[:2]:
            yield _lines(*_cut(json.loads(file.read_bytes())[:2]))
    elif target == "helm":
        for stats in sorted(logs.rglob("per_instance_stats.json")):
            beside = (stats.with_name(name) for name in (stats.name, "scenario_state.json", "run_spec.json"))
            yield _lines(*(_cut(json.loads(file.read_bytes())) for file in beside if file.is_file()))
    elif target == "inspect-json":
        for file in sorted(logs.rglob("*.json")):
            document = json.loads(file.read_bytes()) if "inspect" in str(file) else None
            if isinstance(document, dict) and "eval" in document:
                yield _lines(_cut({key: document.get(key) for key in _EVAL}))
    elif target == "inspect-zip":
        for file in sorted(logs.rglob("*.eval")):
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.startswith("samples/")][:2]
                wanted = [name for name in ("header.json", *names) if name in archive.namelist()]
                yield _lines(*(_cut(json.loads(archive.read(name))) for name in wanted))


def _cut(value: Any) -> Any:
    """The value with its texts and lists cut short."""
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    if isinstance(value, list):
        return [_cut(inner) for inner in value[:_MOST_ELEMENTS]]
    if isinstance(value, dict):
        return {key: _cut(inner) for key, inner in value.items() if key not in ("events", "timelines")}
    return value
