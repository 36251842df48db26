"""Training: from two bases and a task to task adapters, a compatibility adapter and their evaluation logs."""

import logging
import warnings
from importlib.util import find_spec

from muscle.errors import MuscleError


def require_training_stack() -> None:
    """Check, without importing them, that the libraries of the `update` extra are installed.

    Raises:
        MuscleError: one is missing.
    """
    needed = ("torch", "transformers", "peft", "accelerate", "datasets", "lm_eval", "filelock")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MuscleError(f"training needs {', '.join(missing)}: pip install 'muscle-llm[update]'")


def quiet_libraries() -> None:
    """Keep back what the libraries underneath say to developers; their errors and progress bars stay."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("bitsandbytes", "lm_eval", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
