"""Decoded chunks that are kept: the cache, reads of what it holds, and what comes next."""
