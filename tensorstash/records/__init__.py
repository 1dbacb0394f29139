"""Rows with named fields, over arrays that share their first axis."""
