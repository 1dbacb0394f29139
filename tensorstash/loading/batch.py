"""A batch of named tensors that moves as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Batch(dict[str, Any]):
    """A dict of tensors by field name, with :meth:`to` and :meth:`pin_memory` for all of them.

    Values may be dicts or lists in turn; what is no tensor, text for example, stays as it is.
    torch's ``DataLoader`` takes it for the dict it is: in workers, in its pinning thread, and
    where it converts.
    """

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which copies to an accelerator may run beside
        computing."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Batch:
        """The batch on ``device``; ``non_blocking``: without waiting, where its memory is
        pinned. Tensors that are there already are not copied."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _moved(self, change: Callable[[Any], Any]) -> Batch:
        made = Batch(moved(self, change))
        made.__dict__ |= self.__dict__  # what it knows of the fields
        return made


def moved(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with every tensor in it changed, and whatever else moves as a tensor does; its
    dicts, lists and tuples are made anew."""
    if isinstance(value, dict):
        parts = {name: moved(inner, change) for name, inner in value.items()}
        return Batch(parts) if isinstance(value, Batch) else parts
    if hasattr(value, "pin_memory"):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(inner, change) for inner in value))
    if isinstance(value, (list, tuple)):
        return type(value)(moved(inner, change) for inner in value)
    return value
