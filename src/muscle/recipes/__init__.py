"""Recipes of model updates, and the tasks they need beyond lm-eval's own."""

from pathlib import Path

PROJECT_TASKS = Path(__file__).parent / "tasks"
"""Folder of this project's own task definitions."""
