"""Rows to loaders: in which order, from which blocks, in which batches."""
