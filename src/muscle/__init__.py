"""Update a language model without breaking what users rely on (the MUSCLE paper, arXiv 2407.09435).

Two halves meet at the evaluation log: `muscle.compare` measures compatibility between the logs of an old and a new
model and needs neither torch nor transformers; `muscle.update` trains the adapter that makes the new model compatible.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muscle.errors import MuscleError
    from muscle.measure import Comparison, compare

__version__ = "0.1.0"
__all__ = ["Comparison", "MuscleError", "__version__", "compare"]

# Looked up on first use, so that `import muscle` (and `muscle --help`) loads no numpy, let alone torch.
_HOMES = {"Comparison": "muscle.measure", "MuscleError": "muscle.errors", "compare": "muscle.measure"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
