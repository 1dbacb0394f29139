"""A driver beside a ``dict``: Hypothesis tries sequences of calls until the two differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ..driver import Driver, Request, Span, Tag
from ..errors import Conflict

# On file systems a key cannot be a folder too: their names are kept apart.
_folders = st.sampled_from(["f", "foo", "foobar", "c"])
_leaves = st.sampled_from(["0", "1", "zarr.json", "é è", ".zattrs"])
_keys = st.builds(
    lambda path, leaf: "/".join([*path, leaf]), st.lists(_folders, max_size=2), _leaves
)
_prefixes = st.lists(_folders, max_size=2).map(lambda path: "".join(name + "/" for name in path))
_values = st.binary(max_size=40) | st.just(70_000).map(bytes)
_edges = st.integers(0, 50) | st.sampled_from([69_999, 70_000, 100_000])
_spans = st.builds(Span, _edges | st.integers(-50, -1)) | st.tuples(_edges, _edges).map(
    lambda pair: Span(min(pair), max(pair))
)


def machine(subject: Driver) -> type[RuleBasedStateMachine]:
    """What ``run_state_machine_as_test`` takes to compare ``subject`` with a ``dict``."""

    class Bound(DriverModel):
        driver = subject

    return Bound


class DriverModel(RuleBasedStateMachine):
    """Each run starts by emptying the driver."""

    driver: Driver

    def __init__(self) -> None:
        """Compare the driver, emptied, with an empty ``dict``."""
        super().__init__()
        self.model: dict[str, bytes] = {}
        self.tags: dict[str, Tag] = {}
        self.outdated: list[tuple[str, Tag]] = []
        self.driver.delete_prefix("")

    def _stored(self, key: str, value: bytes, tag: Tag) -> None:
        if key in self.tags:
            self.outdated.append((key, self.tags[key]))
        self.model[key], self.tags[key] = value, tag

    def _gone(self, gone: Callable[[str], bool]) -> None:
        for key in [key for key in self.model if gone(key)]:
            self.outdated.append((key, self.tags.pop(key)))
            del self.model[key]

    @rule(key=_keys, value=_values)
    def put(self, key: str, value: bytes) -> None:
        """Unconditional."""
        self._stored(key, value, self.driver.put(key, value))

    @rule(values=st.dictionaries(_keys, _values, max_size=4))
    def put_many(self, values: Mapping[str, bytes]) -> None:
        """Unconditional, several."""
        self.driver.put_many(values.items())
        for key, value in values.items():
            self._stored(key, value, self.driver.tag(key))

    @rule(key=_keys, value=_values)
    def put_if_absent(self, key: str, value: bytes) -> None:
        """Succeeds exactly when the model has no such key."""
        if not self.driver.capabilities.conditional_put:
            return
        if key in self.model:
            with pytest.raises(Conflict):
                self.driver.put(key, value, if_absent=True)
        else:
            self._stored(key, value, self.driver.put(key, value, if_absent=True))

    @rule(data=st.data(), value=_values, current=st.booleans())
    def put_if_tag(self, data: st.DataObject, value: bytes, current: bool) -> None:
        """Succeeds for the tag of now, never for one of before."""
        if not self.driver.capabilities.conditional_put:
            return
        if self.model and current:
            key = data.draw(st.sampled_from(sorted(self.model)))
            self._stored(key, value, self.driver.put(key, value, if_tag=self.tags[key]))
        elif self.outdated:
            key, tag = self.outdated[data.draw(st.integers(0, len(self.outdated) - 1))]
            if tag == self.tags.get(key) and self.driver.capabilities.content_tags:
                return  # the same bytes are stored again
            with pytest.raises(Conflict):
                self.driver.put(key, value, if_tag=tag)

    @rule(key=_keys)
    def delete(self, key: str) -> None:
        """Present or not."""
        self.driver.delete(key)
        self._gone(lambda other: other == key)

    @rule(keys=st.lists(_keys, max_size=4))
    def delete_many(self, keys: list[str]) -> None:
        """Repeats included."""
        self.driver.delete_many(keys)
        self._gone(lambda other: other in keys)

    @rule(prefix=_prefixes)
    def delete_prefix(self, prefix: str) -> None:
        """A folder, present or not."""
        self.driver.delete_prefix(prefix)
        self._gone(lambda key: key.startswith(prefix))

    @rule(key=_keys, spans=st.lists(_spans, min_size=1, max_size=3))
    def read(self, key: str, spans: list[Span]) -> None:
        """By every verb that reads one key."""
        value = self.model.get(key)
        expected = [_part(value, span) for span in spans]
        assert _copy(self.driver.get(key)) == value
        assert [_copy(self.driver.get(key, span)) for span in spans] == expected
        assert self.driver.tag(key) == self.tags.get(key)
        found = self.driver.get_ranges(key, spans)
        tagged = self.driver.get_tagged(key)
        out = bytearray(70_000)
        size = self.driver.get_into(key, memoryview(out))
        if value is None:
            assert found is None and tagged is None and size is None
            return
        assert found is not None and tagged is not None
        assert [*map(bytes, found[0])] == expected
        assert found[1] == tagged[1] == self.tags[key]
        assert bytes(tagged[0]) == value == bytes(out[:size])

    @rule(requests=st.lists(st.tuples(_keys, st.none() | _spans), max_size=6))
    def get_many(self, requests: list[tuple[str, Span | None]]) -> None:
        """Any order, repeats included."""
        expected = {i: _part(self.model.get(key), span) for i, (key, span) in enumerate(requests)}
        found = self.driver.get_many([Request(*request) for request in requests])
        assert {i: _copy(value) for i, value in found} == expected

    @rule(prefix=_prefixes)
    def list_dir(self, prefix: str) -> None:
        """A folder may outlive its keys, but a listed one that is wanted is never missing."""
        below = [key[len(prefix) :] for key in self.model if key.startswith(prefix)]
        keys, folders = self.driver.list_dir(prefix)
        assert [*keys] == sorted(name for name in below if "/" not in name)
        expected = {name.partition("/")[0] for name in below if "/" in name}
        assert [*folders] == sorted({*folders}) and expected <= {*folders}
        for extra in {*folders} - expected:
            assert [*self.driver.list(f"{prefix}{extra}/")] == []

    @rule(prefix=_prefixes)
    def list_below(self, prefix: str) -> None:
        """Exactly the keys that start with the prefix."""
        expected = sorted(key for key in self.model if key.startswith(prefix))
        assert sorted(self.driver.list(prefix)) == expected

    @invariant()
    def same_keys(self) -> None:
        """After every step."""
        assert sorted(self.driver.list()) == sorted(self.model)


def _copy(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _part(value: bytes | None, span: Span | None) -> bytes | None:
    return value if value is None or span is None else value[slice(*span.resolve(len(value)))]
