"""One module per way of showing a Comparison; none of them computes a measure."""
