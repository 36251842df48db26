"""The sdist and the wheel: built, installed into clean environments, and run there. Needs a package index."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from .conftest import REPOSITORY

pytestmark = pytest.mark.slow

PACKAGE = REPOSITORY / "src" / "muscle"
CONSTRAINTS = REPOSITORY / "constraints.txt"
OUTSIDE = (".ci/", ".github/", "recipes")
"""Tracked files that a release does without; recipes is a link into the package."""

# What is tested is what was installed, not the checkout.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    environment = {**ENVIRONMENT, "PIP_CONSTRAINT": str(CONSTRAINTS)}
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=300)
    return folder


@pytest.fixture
def install(dist: Path) -> Iterator[Callable[[str], Path]]:
    """Installs the wheel with some extra into a clean environment and returns the folder of its programs."""
    (wheel,) = dist.glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:  # gigabytes, which pytest would keep

        def installed(extra: str) -> Path:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
            python = next(Path(folder).glob("[bS]*/python*"))
            options = ["--quiet", "--no-compile", "--constraint", str(CONSTRAINTS)]
            command = [str(python), "-m", "pip", "install", *options, f"{wheel}{extra}"]
            subprocess.run(command, env=ENVIRONMENT, check=True, timeout=1200)
            return python.parent

        yield installed


def run(program: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def test_the_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(set(names)) == len(names)
    packaged = {name for name in names if ".dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert packaged == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert {"muscle/py.typed", "muscle/recipes/ablation.yaml", "muscle/demo/tasks/sums.yaml"} <= packaged


def test_the_sdist_holds_what_it_is_built_and_tested_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)  # no link: not every system can unpack one
    names = [member.name.partition("/")[2] for member in members]
    assert len(set(names)) == len(names)
    git = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("no git checkout: nothing says which files are the project's")
    tracked = [name for name in git.stdout.split("\0") if name and (REPOSITORY / name).exists()]
    assert {name for name in tracked if not name.startswith(OUTSIDE)} <= set(names)
    assert not [name for name in names if name.startswith(OUTSIDE)]


def test_measuring_alone(install: Callable[[str], Path], logs: Path) -> None:
    programs = install("")
    muscle = programs / "muscle"
    show = "from importlib.metadata import version; import muscle; print(version('muscle-llm'), muscle.__file__)"
    version, _, file = run(programs / "python", "-c", show, cwd=logs).stdout.strip().partition(" ")
    assert programs.parent.resolve() in Path(file).resolve().parents
    assert run(muscle, "--version", cwd=logs).stdout == f"muscle {version}\n"
    assert "compare" in run(muscle, "--help", cwd=logs).stdout

    compared = run(muscle, "compare", "old.jsonl", "new.jsonl", "--json", "out.json", "--html", "page.html", cwd=logs)
    assert (compared.returncode, compared.stderr) == (0, "")
    assert json.loads((logs / "out.json").read_text())["negative_flips"] == 1
    assert "<html" in (logs / "page.html").read_text()

    (logs / "recipe.yaml").write_text("old: {base: a}\nnew: {base: b}\ntasks: {piqa: }\n")
    refused = run(muscle, "update", "recipe.yaml", cwd=logs)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: training needs torch, ")
    assert refused.stderr.endswith(": pip install 'muscle-llm[update]'\n")
    assert not (logs / "runs").exists()

    # py.typed: a type checker sees the installed package's own types
    (logs / "use.py").write_text("import muscle\nreveal_type(muscle.compare('old', 'new').update.negative_flips)\n")
    mypy = ["-m", "mypy", "--strict", "--python-executable", str(programs / "python"), "use.py"]
    typed = run(Path(sys.executable), *mypy, cwd=logs)
    assert 'Revealed type is "int"' in typed.stdout.replace("builtins.", "")
    assert typed.returncode == 0, typed.stdout


def test_a_whole_update(install: Callable[[str], Path], tmp_path: Path) -> None:
    """One of the package's own tasks, through every stage."""
    programs = install("[update]")
    data = tmp_path / "data" / "banking77"
    data.mkdir(parents=True)
    for split, items in (("train", 20), ("test", 6)):
        rows = [
            {"text": f"Message {item}: where is my card?", "label_text": ("card_arrival", "age_limit")[item % 2]}
            for item in range(items)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = "old: {scratch: {}}\nnew: {scratch: {}}\ntasks: {banking77: }\ndata: data\ncontrols: []\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    updated = run(programs / "muscle", "update", "recipe.yaml", "--dry-run", "tiny", "--out", "run", cwd=tmp_path)
    assert updated.returncode == 0, updated.stderr
    assert "table 4: multiple choice" in updated.stdout
    assert (tmp_path / "run/models/banking77/muscle/adapter_model.safetensors").exists()

    read_all = (
        "from pathlib import Path; import muscle.recipes; from muscle.update.recipe_file import read_recipe\n"
        "print(len([read_recipe(file) for file in Path(muscle.recipes.__file__).parent.glob('**/*_to_*.yaml')]))"
    )
    assert int(run(programs / "python", "-c", read_all, cwd=tmp_path).stdout) >= 14
