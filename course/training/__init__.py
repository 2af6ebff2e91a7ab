"""Training: one loop, one checkpoint format, one recipe a model."""
