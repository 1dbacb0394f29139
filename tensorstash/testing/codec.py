"""The codec contract as a test suite, for our codecs and for those of others."""
# ruff: noqa: D102 - a test's name says what it promises

from __future__ import annotations

import contextlib
import json
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from ..codec import UNSIZED_LIMIT, ArrayCodec, BytesCodec, ChunkSpec, Codec, Pipeline
from ..errors import Corrupt
from ..registry import make_codec

THREADS = 8
CLAIM_BYTES = 32 << 20
"""What decoding a small damaged chunk may allocate at most."""


def spec(shape: Sequence[int], dtype: Any, fill: Any = None) -> ChunkSpec:
    """A chunk of ``shape`` and ``dtype``; the fill value is zero unless given."""
    kind = np.dtype(dtype)
    value = np.zeros((), kind)
    if fill is not None:
        value[()] = fill
    return ChunkSpec(tuple(shape), kind, value)


SPECS: tuple[ChunkSpec, ...] = (
    *(spec((3, 5), kind) for kind in ("?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16")),
    *(spec((4, 2), kind) for kind in ("M8[ns]", "m8[s]", "U3", "S5", "V7")),
    spec((2, 3), [("a", "i4"), ("b", "f8", (2,)), ("c", [("d", "u2"), ("e", "S3")])]),
    spec((), "i4"),
    spec((1,), "u1"),
    spec((0, 3), "f4"),
    spec((7, 1, 6), "u2"),
    spec((64, 130), "f4"),
    spec((300_000,), "u1"),
)
"""Fixed-size elements of every kind; without axes, without elements, small and large."""


class CodecContract:
    """The tests that every codec must pass; subclass it, name your codec, run pytest.

    ::

        class TestMine(CodecContract):
            codec = Mine(level=3)

    ``specs`` are the chunks it takes. Override :meth:`values` for elements of your own, and
    :meth:`same` where the codec is lossy. Set ``checks`` to ``True`` when every flipped bit must
    be noticed, ``notices_cut`` or ``notices_extra`` to ``False`` when a shortened or lengthened
    chunk cannot be.
    """

    codec: ClassVar[Codec]
    specs: ClassVar[Sequence[ChunkSpec]] = SPECS
    checks: ClassVar[bool] = False
    notices_cut: ClassVar[bool] = True
    notices_extra: ClassVar[bool] = True

    def values(self, spec: ChunkSpec, seed: int = 0) -> NDArray[Any]:
        """A chunk like ``spec``, different for each ``seed``; compressible, every byte in use."""
        rng = np.random.default_rng(seed)
        if spec.dtype == np.bool_:
            return np.asarray(rng.random(spec.shape) < 0.5)
        if spec.dtype.kind == "U":
            points = rng.integers(1, 0xD7FF, spec.count * (spec.dtype.itemsize // 4), np.uint32)
            return points.view(spec.dtype).reshape(spec.shape)
        noise = rng.integers(0, 256, spec.nbytes, np.uint8)
        noise[rng.random(spec.nbytes) < 0.5] = 7
        return noise.view(spec.dtype).reshape(spec.shape)

    def same(self, before: NDArray[Any], after: NDArray[Any]) -> bool:
        """Whether ``after`` is what ``before`` becomes by encoding and decoding: the same bits."""
        if before.dtype.hasobject or before.dtype.kind == "T":
            return bool(before.tolist() == after.tolist())
        return before.tobytes() == after.tobytes()

    def pipeline(self, spec: ChunkSpec) -> Pipeline:
        """The shortest chain that holds the codec."""
        plain = make_codec("bytes", {"endian": "little"})
        if isinstance(self.codec, ArrayCodec):
            return Pipeline([self.codec, plain], spec)
        if isinstance(self.codec, BytesCodec):
            return Pipeline([plain, self.codec], spec)
        return Pipeline([self.codec], spec)

    def cases(self) -> Iterator[tuple[ChunkSpec, Pipeline, NDArray[Any], bytes]]:
        """Each spec with its chain, a chunk, and that chunk encoded."""
        assert self.specs, "a codec that takes no chunk promises nothing"
        for number, spec in enumerate(self.specs):
            chain = self.pipeline(spec)
            chunk = self.values(spec, number)
            yield spec, chain, chunk, bytes(chain.encode(chunk))

    def small(self) -> tuple[ChunkSpec, Pipeline, bytes]:
        """The case with the shortest encoded chunk that has more than one element."""
        cases = [(spec, chain, data) for spec, chain, _, data in self.cases() if spec.count > 1]
        return min(cases, key=lambda case: len(case[2]))

    def test_what_is_encoded_is_decoded(self) -> None:
        for spec, chain, chunk, data in self.cases():
            back = chain.decode(data)
            assert back.shape == spec.shape, spec
            assert back.dtype == spec.dtype, spec
            assert self.same(chunk, back), spec
            assert len(data) <= chain.most, spec
            if chain.nbytes is not None and not chain.codecs[1:]:
                assert len(data) == chain.nbytes, spec

    def test_any_memory_layout_is_encoded(self) -> None:
        for spec, chain, chunk, data in self.cases():
            wide = np.zeros((*spec.shape, 2), spec.dtype)
            wide[..., 0] = chunk
            layouts = [np.asfortranarray(chunk), wide[..., 0]]
            if spec.dtype.kind not in "TO":
                layouts.append(chunk.astype(spec.dtype.newbyteorder("S")))
            frozen = chunk.copy()
            frozen.flags.writeable = False
            for layout in (*layouts, frozen):
                before = layout.copy()
                assert bytes(chain.encode(layout.reshape(spec.shape))) == data, (spec, layout.dtype)
                assert self.same(before, layout), f"{spec}: encoding changed its input"

    def test_decoding_into_memory_is_decoding(self) -> None:
        for spec, chain, _, data in self.cases():
            if not chain.direct:
                continue
            into = np.zeros(chain.stored.shape, chain.stored.dtype)
            view = into.reshape(-1).view(np.uint8).data
            direct = chain.decode(data, into, view)
            assert self.same(chain.decode(data), direct), spec

    def test_any_buffer_is_decoded(self) -> None:
        for spec, chain, _, data in self.cases():
            expected = chain.decode(data)
            for buffer in (bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
                assert self.same(expected, chain.decode(buffer)), (spec, type(buffer))

    def test_limits_hold(self) -> None:
        codec = self.codec
        if not isinstance(codec, BytesCodec):
            pytest.skip("only bytes -> bytes codecs are given limits")
        for spec in self.specs:
            bound = codec.bind(spec)
            assert isinstance(bound, BytesCodec)
            plain = self.values(spec).tobytes()
            data = bound.encode(plain)
            size = len(plain)
            assert bytes(bound.decode(data, size)) == plain, spec
            assert bytes(bound.decode(data, UNSIZED_LIMIT)) == plain, spec
            out = memoryview(bytearray(size))
            answer = bound.decode(data, size, out)
            assert answer is out, spec
            assert bytes(out) == plain, spec
            wrong = [size + 1, *([size - 1] if size else [])]
            for other in wrong:
                with pytest.raises(ValueError, match=r"\w"):
                    bound.decode(data, max(other, size), memoryview(bytearray(other)))
            if size:
                with pytest.raises(ValueError, match=r"\w"):
                    bound.decode(data, size - 1)

    def test_its_document_makes_it(self) -> None:
        for spec in self.specs[:3]:
            for codec in (self.codec, self.codec.bind(spec)):
                document = json.loads(json.dumps(codec.document()))
                assert set(document) <= {"name", "configuration"}
                again = make_codec(document["name"], document.get("configuration"))
                assert again == codec
                assert hash(again) == hash(codec)
                assert again.document() == document
                assert repr(again) == repr(codec)

    def test_binding_twice_changes_nothing(self) -> None:
        for spec in self.specs:
            bound = self.codec.bind(spec)
            assert bound.bind(spec) == bound

    def test_equal_input_gives_equal_output(self) -> None:
        first = [data for *_, data in self.cases()]
        assert first == [data for *_, data in self.cases()]

    def test_it_pickles(self) -> None:
        for spec, chain, chunk, data in self.cases():
            codec = pickle.loads(pickle.dumps(self.codec))
            assert codec == self.codec
            bound = pickle.loads(pickle.dumps(chain.codecs))
            assert bound == chain.codecs
            assert bytes(Pipeline(bound, spec).encode(chunk)) == data, spec

    def test_threads_share_it(self) -> None:
        cases = list(self.cases())

        def work(offset: int) -> int:
            for turn in range(len(cases)):
                spec, chain, chunk, data = cases[(turn + offset) % len(cases)]
                assert bytes(chain.encode(chunk)) == data, spec
                assert self.same(chunk, chain.decode(data)), spec
            return offset

        with ThreadPoolExecutor(THREADS) as pool:
            assert sorted(pool.map(work, range(THREADS))) == list(range(THREADS))

    def test_damage_is_an_error_or_a_chunk_of_the_right_size(self) -> None:
        spec, chain, data = self.small()
        good = chain.decode(data)
        rng = np.random.default_rng(0)
        cuts = {*range(min(len(data), 64)), *(len(data) - 1 - i for i in range(min(len(data), 8)))}
        for cut in sorted(cuts):
            refused = self._refuses(chain, data[:cut], spec)
            assert refused or not self.notices_cut, f"{spec}: cut to {cut} bytes goes unnoticed"
        for extra in (b"\0", b"\0\0\0\0", b"\xff" * 16, data):
            refused = self._refuses(chain, data + extra, spec)
            assert refused or not self.notices_extra, f"{spec}: {extra!r} added goes unnoticed"
        for _ in range(300):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            refused = self._refuses(chain, bytes(damaged), spec)
            assert refused or not self.checks, f"{spec}: a flipped bit goes unnoticed"
        for size in (0, 1, 5, 16, 100, len(data)):
            self._refuses(chain, rng.bytes(size), spec)
        assert self.same(good, chain.decode(data)), "damage left something behind"

    def test_claims_allocate_nothing(self) -> None:
        spec, chain, data = self.small()
        tail = [codec for codec in chain.codecs if isinstance(codec, BytesCodec)]
        tracemalloc.start()
        try:
            for at in range(min(len(data), 40)):
                for claim in (b"\xff", b"\x7f", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\xf0" * 8):
                    claimed = (data[:at] + claim + data[at + len(claim) :])[: len(data)]
                    tracemalloc.reset_peak()
                    before = tracemalloc.get_traced_memory()[0]
                    self._refuses(chain, claimed, spec)
                    for codec in tail:
                        # As for strings, whose decoded size nothing in the chain fixes.
                        with contextlib.suppress(ValueError):
                            codec.decode(claimed, UNSIZED_LIMIT)
                    taken = tracemalloc.get_traced_memory()[1] - before
                    assert taken < CLAIM_BYTES, f"{claim!r} at byte {at} took {taken} bytes"
        finally:
            tracemalloc.stop()

    def _refuses(self, chain: Pipeline, data: bytes, spec: ChunkSpec) -> bool:
        try:
            chunk = chain.decode(data)
        except Corrupt as error:
            assert error.codec, "the error does not name the codec"
            assert "\n" not in str(error), "the message has more than one line"
            return True
        assert chunk.shape == spec.shape
        assert chunk.dtype == spec.dtype
        return False
