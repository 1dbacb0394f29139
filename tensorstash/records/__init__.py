"""Rows with named fields, over arrays that share their first axis."""

from ..columns import Ragged
from .create import create_records, open_records, save_records
from .records import Records
from .schema import json, ragged
from .writer import RecordWriter

__all__ = [
    "Ragged",
    "RecordWriter",
    "Records",
    "create_records",
    "json",
    "open_records",
    "ragged",
    "save_records",
]
