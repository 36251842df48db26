"""Writes the table of keys in docs/recipes.md from the fields and their texts in recipe.py and
alignment_settings.py of src/muscle/update.

python docs/make_recipe_keys.py
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from muscle.update import alignment_settings, recipe
from muscle.update.settings import TargetTokens

PAGE = Path(__file__).parent / "recipes.md"
START, END = "<!-- keys -->\n", "<!-- end of keys -->\n"
GROUPS = {
    "Recipe": "Top level",
    "Side": "`old` and `new`",
    "Loading": "`old` and `new`: how the base is loaded",
    "Scratch": "`old.scratch` and `new.scratch`",
    "TaskSettings": "`tasks.<name>`",
    "LoraSettings": "`lora`",
    "TrainingSettings": "`training`, `alignment_training`",
    "AlignmentSettings": "`alignment`, `methods.<name>`",
    "SearchSettings": "`methods.<name>.search`",
    "EvaluationSettings": "`evaluation`",
}


def page() -> str:
    """The page with its tables as the source has them now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    return before + START + "\n".join(_tables()) + "\n" + END + rest.partition(END)[2]


def _tables() -> Iterator[str]:
    nodes = (node for module in (recipe, alignment_settings) for node in ast.parse(inspect.getsource(module)).body)
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    for name, title in GROUPS.items():
        yield from ("", f"### {title}", "", "| key | values | default | |", "|---|---|---|---|")
        for field, text in _fields(classes[name]):
            default = "" if field.value is None else _default(field.value)
            yield f"| `{ast.unparse(field.target)}` | {_values(field.annotation)} | {default} | {text} |"


def _fields(settings: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    for node, after in zip(settings.body, [*settings.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if documented else ""  # type: ignore[union-attr]
            yield node, " ".join(text.split()).replace("|", "\\|")


def _values(annotation: ast.expr) -> str:
    known = {
        "Count": "whole number >= 1",
        "Number": "whole number >= 0",
        "Share": "0 to 1",
        "Positive": "number > 0",
        "TargetTokens": ", ".join(get_args(TargetTokens)),
        "TokenizerKind": ", ".join(get_args(recipe.TokenizerKind)),
        **{
            name: ", ".join(get_args(getattr(alignment_settings, name)))
            for name in ("WeightName", "EmphasisName", "Across", "CacheDtype")
        },
        "bool": "true, false",
        "float": "number",
        "tuple[Share, ...]": "list of numbers from 0 to 1",
        "str": "text",
        "tuple[Control, ...]": f"list of {', '.join(get_args(recipe.Control))}",
        "tuple[str, ...]": "list of texts",
    }
    text = ast.unparse(annotation)
    words = []
    for part in [text] if text.startswith("Mapping") else text.split(" | "):
        if part == "None":
            part = "null"
        elif part.startswith("Literal["):
            part = part.removeprefix("Literal[").removesuffix("]").replace("'", "")
        elif part.startswith("Annotated[float"):
            limits = [f"{float(limit):.10g}" for limit in re.findall(r"[gl]e=(-?[\d.]+)", part)]
            part = f"number >= {limits[0]}" if len(limits) == 1 else f"{limits[0]} to {limits[1]}"
        elif part.startswith("Mapping") or part.endswith("Settings") or part in ("Side", "Scratch"):
            part = "keys"
        words.append(known.get(part, part))
    return ", ".join(words)


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    if "Settings(" in text or text == "{}" or text == "()":
        return ""
    if "lambda" in text:
        text = text.partition("lambda: ")[2].removesuffix(")").replace("'", "")
    if isinstance(value, ast.Tuple):
        text = f"[{', '.join(map(str, ast.literal_eval(value)))}]"
    plain = {"None": "null", "True": "true", "False": "false", "''": ""}
    text = plain.get(text, text.strip("'"))
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
