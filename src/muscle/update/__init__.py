"""Training: from two bases and a task to task adapters, a compatibility adapter and their evaluation logs."""

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
