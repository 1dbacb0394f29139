"""What is done to an array that is written in place, and to a model of it, for every driver."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

from tests.support.layouts import values
from tests.support.oracle import numpy_index


def step(data: Any, handle: Any, model: Any, fill: int, all_handles: tuple[Any, ...]) -> Any:
    """A change through ``handle``; returns the model as it is then. All handles know the shape."""
    kind = data.draw(st.sampled_from(["put", "put", "put", "append", "resize", "writer"]))
    if kind == "append":
        axis = data.draw(st.integers(0, model.ndim - 1))
        rows = list(model.shape)
        rows[axis] = data.draw(st.integers(0, 5))
        new = np.random.default_rng(3).integers(0, 9, rows).astype(model.dtype)
        assert handle.append(new, axis) == model.shape[axis]
        model = np.concatenate([model, new], axis)
    elif kind == "resize":
        wanted = tuple(data.draw(st.integers(0, 9)) for _ in model.shape)
        handle.resize(wanted)
        grown = np.full(wanted, fill, model.dtype)
        both = tuple(slice(min(a, b)) for a, b in zip(wanted, model.shape, strict=True))
        grown[both] = model[both]
        model = grown
    else:
        index = data.draw(numpy_index(model.shape))
        value = data.draw(values(model[index].shape, model.dtype))
        with np.errstate(all="ignore"):
            model[index] = value
        if kind == "writer":
            with handle.writer() as writer:
                writer[index] = value
        else:
            handle[index] = value
        return model
    for each in all_handles:
        each.refresh()
    return model
