"""Parts that benchmarks share: the model, the machine, the report, ways to draw the same images."""
