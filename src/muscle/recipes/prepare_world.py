"""The demo's world as local data: python -m muscle.recipes.prepare_world DIR [--seed N].

DIR gets scenes/ and sums/ with their splits and definitions, and v1.txt and v2.txt, the documents that the old and the
new base are to read: all in the sizes of `muscle demo`, and for the same seed the same items and documents.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from muscle.demo.plan import FULL, QUICK, Sizes
from muscle.demo.stages import TASKS, write_tasks
from muscle.demo.world import Version, World
from muscle.errors import MuscleError

STRIPPED = """\
filter_list:
  - name: none
    filter:
      - function: remove_whitespace
      - function: take_first
"""
"""Not every tokenizer gives an answer without the space before it."""
VERSIONS: Mapping[Version, int] = {"v1": 1, "v2": 2}


def prepare(destination: Path, seed: int, sizes: Sizes = FULL) -> None:
    """Write the world of a seed.

    Raises:
        MuscleError: The folder cannot be written.
    """
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder)
            write_tasks(made, lambda *_: None, seed=seed, items=sizes.items)
            for task in TASKS:
                definition = (made / f"{task}.yaml").read_text(encoding="utf-8")
                (made / task / f"{task}.yaml").write_text(_for_local_data(definition), encoding="utf-8")
                shutil.copytree(made / task, destination / task, dirs_exist_ok=True)
        for version, number in VERSIONS.items():
            documents = World(seed).documents(
                version, sizes.documents[version], np.random.default_rng([seed, 1, number])
            )
            text = "".join(f"{document}\n" for document in documents)
            (destination / f"{version}.txt").write_text(text, encoding="utf-8")
    except OSError as error:
        raise MuscleError(f"{destination} cannot be written ({error}): choose another folder") from None


def _for_local_data(definition: str) -> str:
    """The demo's definition without the code that finds its data, and with room for a space before an answer."""
    lines = definition.splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.startswith("custom_dataset:"))
    return kept + (STRIPPED if "output_type: generate_until" in kept else "")


def main() -> None:
    """Parse the command line, and write."""
    parser = argparse.ArgumentParser(prog="python -m muscle.recipes.prepare_world", description=__doc__)
    parser.add_argument("destination", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides tables, items and documents")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    arguments = parser.parse_args()
    try:
        prepare(arguments.destination, arguments.seed, QUICK if arguments.quick else FULL)
    except MuscleError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
