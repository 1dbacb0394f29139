"""The switch that shows what goes over the wire."""

from __future__ import annotations

import logging
import sys

_NAME = "tensorstash"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, so that it can be found again; writes to whatever ``sys.stderr`` is just then."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_requests(on: bool = True) -> None:
    """Show every request to S3, Redis and the like as a line on standard error.

    A line says what was asked, for which key, the outcome, bytes, milliseconds, and the attempt
    where it was repeated; it holds no secrets. The same as ``TENSORSTASH_LOG=1`` in the
    environment. The lines are ``DEBUG`` records of the logger ``tensorstash``, which programs that
    set up logging themselves use directly.

    Args:
        on: ``False`` stops it.

    >>> stash.log_requests()
    >>> stash.log_requests(False)
    """
    logger = logging.getLogger(_NAME)
    for handler in [*logger.handlers]:
        if isinstance(handler, _Handler):
            logger.removeHandler(handler)
    logger.setLevel(logging.DEBUG if on else logging.NOTSET)
    if on:
        handler = _Handler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
        logger.addHandler(handler)
