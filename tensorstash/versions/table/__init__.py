"""Where the chunks of an array are."""

from .blocks import MOST_INDEX_BITS, Blocks, Index, choose_block
from .edit import Applied, ReadyPage, apply
from .table import ChunkTable

__all__ = [
    "MOST_INDEX_BITS",
    "Applied",
    "Blocks",
    "ChunkTable",
    "Index",
    "ReadyPage",
    "apply",
    "choose_block",
]
