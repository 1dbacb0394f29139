"""Single rows: appended, replaced, and written in place."""
