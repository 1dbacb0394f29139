"""Selections, grids and plans: arithmetic on whole numbers, which knows no storage."""
