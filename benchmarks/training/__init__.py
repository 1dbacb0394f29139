"""Training workloads beside the loaders that people use: ``python -m benchmarks train``."""
