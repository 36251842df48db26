"""Draw the table of a demo as the terminal shows it: python docs/make_picture.py muscle-demo/seed-0 docs/demo.svg."""

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from muscle.demo.table import Row, print_rows

run, picture = (Path(argument) for argument in sys.argv[1:])
console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
print_rows([Row(**row) for row in json.loads((run / "table.json").read_text())], console)
svg = console.export_svg(title="make demo")
picture.write_text(
    re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
)  # a picture that asks no server for fonts
