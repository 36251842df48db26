"""Recipes of model updates, and the tasks they need beyond lm-eval's own."""
