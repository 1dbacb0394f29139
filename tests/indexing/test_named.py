"""Named fields of records against NumPy."""

from __future__ import annotations

import math
import pickle
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.lib.recfunctions import repack_fields

import tensorstash as stash
from tensorstash.errors import Invalid, InvalidSelection, Unsupported
from tests.support.layouts import EXAMPLES
from tests.support.oracle import numpy_index, outer_index, outer_of, point_index, point_of, same
from tests.support.record_layouts import (
    ARRAYS,
    DOTTED,
    NESTED,
    PLAIN,
    TEXT,
    field_of,
    fields_of,
    is_nothing,
    model_of,
    names_of,
    random_records,
    record_layouts,
    spelled,
)

# -- against NumPy -----------------------------------------------------------------------------


def begun(data: Any, layout: Any, folder: str) -> tuple[Any, Any]:
    """A new array and its model, both never written or both full."""
    array = layout.create(layout.place(folder))
    model = model_of(layout)
    if data.draw(st.booleans()):
        model[...] = random_records(3, layout.shape, layout.dtype)
        array[...] = model
    return array, model


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_reads_are_numpys(data: Any) -> None:
    layout = data.draw(record_layouts())
    with tempfile.TemporaryDirectory() as folder:
        array, model = begun(data, layout, folder)
        for _ in range(3):
            names = data.draw(names_of(layout.dtype))
            index = data.draw(st.one_of(st.just(...), numpy_index(layout.shape)))
            selection = spelled(data.draw, names, index)
            chosen = np.asarray(model[index])
            wanted = fields_of(chosen, names)
            found = array[selection]
            element = not isinstance(model[... if is_nothing(index) else index], np.ndarray)
            same(found, wanted[()] if element else wanted)
            if not element:
                assert found.flags.c_contiguous and found.flags.writeable
            out = np.empty(wanted.shape, wanted.dtype)
            assert array.read(selection, out=out) is out
            same(out, wanted)


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_fields_inside_outer_and_pointwise_selections_are_numpys(data: Any) -> None:
    layout = data.draw(record_layouts())
    with tempfile.TemporaryDirectory() as folder:
        array, model = begun(data, layout, folder)
        places = np.arange(model.size).reshape(layout.shape)
        rules: Any = {"oindex": (outer_index, outer_of), "vindex": (point_index, point_of)}
        for turn in range(4):
            verb = data.draw(st.sampled_from(sorted(rules)))
            draws, rule = rules[verb]
            names = data.draw(names_of(layout.dtype))
            index = data.draw(draws(layout.shape))
            selection = spelled(data.draw, names, index)
            chosen = np.asarray(rule(model, index))
            wanted = np.asarray(fields_of(chosen, names))
            same(getattr(array, verb)[selection], wanted if wanted.ndim else wanted[()])
            view = getattr(array.lazy[...], verb)
            if not wanted.shape[chosen.ndim :]:  # there are no views of fields that are arrays
                same(view[selection].read(), wanted)
            value = random_records(turn, chosen.shape, layout.dtype)
            at = np.asarray(rule(places, index))
            if len(np.unique(at)) < at.size:  # which of two values stays is not said
                value[...] = random_records(turn, (), layout.dtype)
            getattr(array, verb)[selection] = fields_of(value, names)
            flat = model.reshape(-1)
            for name in [names] if isinstance(names, str) else names:
                part = field_of(flat, name)
                part[at] = field_of(value, name)
            same(array[...], model)


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_assignments_are_numpys_and_keep_every_other_field(data: Any) -> None:
    layout = data.draw(record_layouts())
    with tempfile.TemporaryDirectory() as folder:
        array, model = begun(data, layout, folder)
        places = np.arange(model.size).reshape(layout.shape)
        for turn in range(3):
            names = data.draw(names_of(layout.dtype))
            index = data.draw(st.one_of(st.just(...), numpy_index(layout.shape)))
            where = np.asarray(places[index])
            value = fields_of(random_records(turn, where.shape, layout.dtype), names)
            if data.draw(st.booleans()):
                value = value[..., :1] if value.ndim and value.shape[-1] else value
            array[spelled(data.draw, names, index)] = value
            flat = model.reshape(-1)
            for name in [names] if isinstance(names, str) else names:
                field_of(flat, name)[where] = value if isinstance(names, str) else value[name]
            same(array[...], np.asarray(model))
        same(stash.load(array.driver), model)


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_views_of_fields_are_numpys(data: Any) -> None:
    layout = data.draw(record_layouts((PLAIN, TEXT, NESTED, DOTTED)))
    with tempfile.TemporaryDirectory() as folder:
        array = layout.create(layout.place(folder))
        model = random_records(3, layout.shape, layout.dtype)
        array[...] = model
        view: Any = array.lazy[...]
        wanted = model
        for _ in range(data.draw(st.integers(1, 3))):
            if wanted.dtype.names and data.draw(st.booleans()):
                names = data.draw(st.sampled_from(sorted(wanted.dtype.names)))
                if data.draw(st.booleans()):
                    view, wanted = view[names], wanted[names]
                else:
                    view, wanted = view[[names]], wanted[[names]]
            elif data.draw(st.booleans()):
                index = data.draw(numpy_index(wanted.shape))
                view, wanted = view[index], np.asarray(wanted[index], wanted.dtype)
            else:
                index = data.draw(outer_index(wanted.shape))
                view, wanted = view.oindex[index], outer_of(wanted, index)
            assert view.shape == wanted.shape
            assert repack_fields(np.empty(0, wanted.dtype)).dtype == view.dtype
        same(np.asarray(view), np.array(repack_fields(wanted), order="C"))


def test_a_view_of_a_field_is_written_through_and_travels(tmp_path: Path) -> None:
    model = random_records(1, (6, 5), NESTED)
    array = stash.save(str(tmp_path / "a"), model, chunks=(4, 3))
    view = array.lazy["in", 1:4]["in"]["c", :, 2]
    assert (view.shape, view.dtype, view.nbytes) == ((3,), np.dtype("i2"), 6)
    view[1:] = 7
    array.lazy["a"].oindex[[0, 5], [1]] = 9
    array.lazy[["a", "in"], 0][["in"], 0] = random_records(2, (), NESTED)[["in"]]
    model["in"]["in"]["c"][2:4, 2] = 7
    model["a"][[0, 5], 1] = 9
    model["in"][0, 0] = random_records(2, (), NESTED)["in"]
    same(array[...], model)
    again = pickle.loads(pickle.dumps(view))
    same(again.read(), model["in"]["in"]["c"][1:4, 2].copy())
    assert [*again] == model["in"]["in"]["c"][1:4, 2].tolist()


# -- what raises -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("q", r"there is no field 'q'; the fields are \['x', 'y', 'z'\]"),
        ("yy", "did you mean 'y'"),
        (["x", "zz"], "did you mean 'z'"),
        ("x.y", "no field 'x.y'"),
        ("", "no field ''"),
        (["x", "x"], "named twice"),
        (("x", "x", 2), "named twice"),
        ((["x"], "y"), "named once"),
        ((["x"], ["y"]), "named once"),
        (["x", 1], "is not an index"),
        (("x", 9), "out of bounds"),
        (("x", 0, 0), "too many indices"),
        (np.array(["x"]), "is not an index"),
    ],
)
def test_what_names_no_field(selection: Any, says: str) -> None:
    array = stash.create({}, (4,), PLAIN)
    for call in (
        lambda: array[selection],
        lambda: array.read(selection),
        lambda: array.lazy[selection],
        lambda: array.explain(selection),
        lambda: array.__setitem__(selection, 0),
        lambda: array.lazy[...].__setitem__(selection, 0),
    ):
        with pytest.raises(InvalidSelection, match=says):
            call()
    assert not array.info().stored_chunks


@pytest.mark.parametrize("dtype", ["f4", "U3", "M8[s]", "string"])
def test_a_plain_array_has_no_fields(dtype: str) -> None:
    array = stash.create({}, (4,), dtype)
    for selection in ("x", ["x", "y"], ("x", 1), (0, "x")):
        with pytest.raises(InvalidSelection, match="fields are named in"):
            array[selection]
    for pick in (array.oindex, array.vindex):
        with pytest.raises(InvalidSelection, match="fields are named in"):
            pick["x", [0]]


def test_values_that_do_not_fit() -> None:
    array = stash.create({}, (4,), PLAIN)
    for selection, value in (
        ("x", [1, 2, 3]),
        ("x", "text"),
        (["x", "y"], np.zeros(4, [("a", "i4")])),
        (["x", "y"], (1, 2, 3)),
    ):
        with pytest.raises(Invalid):
            array[selection] = value
    with pytest.raises(Invalid, match="out has shape"):
        array.read("x", out=np.empty(4, "f4"))
    array[["x", "y"], 1] = (2, 3)
    array[["x", "z"], 2] = 4
    assert array[...].tolist() == [(0, 0, 0), (2, 3, 0), (4, 0, 4), (0, 0, 0)]


def test_fields_that_are_arrays() -> None:
    array = stash.create({}, (4,), ARRAYS, chunks=(3,), zarr_format=2)
    array["pos", 1:3] = [1, 2, 3]
    assert array["pos", 2].tolist() == [1, 2, 3]
    assert array["pos"].shape == (4, 3) and array["m.t"].shape == (4, 2, 2)
    with pytest.raises(Invalid, match="C-contiguous"):
        array.read("pos", out=np.empty((3, 4), "f4").T)
    with pytest.raises(Unsupported, match=r"read it with a\[field, selection\]"):
        array.lazy["pos"]


def test_a_tensor_of_a_field() -> None:
    torch = pytest.importorskip("torch")
    model = random_records(1, (6, 5), PLAIN)
    array = stash.save({}, model, chunks=(4, 3))
    assert torch.equal(array.torch["x", 1:4], torch.from_numpy(model["x"][1:4].copy()))
    array.torch["y"] = torch.arange(5)
    assert array["y", 5].tolist() == [*range(5)]
    assert math.prod(array.torch["z"].shape) == 30
