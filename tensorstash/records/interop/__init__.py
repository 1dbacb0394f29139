"""Columns as the tables and tensors of other libraries, and back."""
