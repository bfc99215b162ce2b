"""What the benchmarks share: the model, the machine, the report, ways to draw the same images."""
