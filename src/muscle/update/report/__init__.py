"""What a run found: the paper's tables and figures, pictures, and model cards."""
