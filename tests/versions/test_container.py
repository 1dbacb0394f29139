"""Names and envelopes of what a repository stores: every damage is noticed, nothing is believed."""

from __future__ import annotations

import struct

import google_crc32c
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tensorstash import errors
from tensorstash.versions import ids
from tensorstash.versions.container import Kind, pack, unpack
from tensorstash.versions.ids import Reference
from tensorstash.versions.pages import Form, NewPages

REPO = bytes(range(16))
MOST = 1 << 20


def packed(kind: int, repo: bytes, nbytes: int, frame: bytes, form: int = 1) -> bytes:
    """An object with a right checksum, whatever it claims."""
    header = struct.pack("<7sBB16sQ", b"TSTASHV", form, kind, repo, nbytes)
    return header + struct.pack("<I", google_crc32c.value(header + frame)) + frame


@given(st.binary(max_size=300), st.sampled_from(Kind))
def test_what_is_packed_is_unpacked(raw: bytes, kind: Kind) -> None:
    assert unpack(pack(kind, REPO, raw, MOST), kind, REPO, "page/x/0", MOST) == raw


def test_the_bytes_are_those_that_the_format_says() -> None:
    data = pack(Kind.TREE, REPO, b"abc", MOST)
    assert data[:33] == b"TSTASHV\x01\x02" + REPO + (3).to_bytes(8, "little")
    assert data == packed(2, REPO, 3, data[37:])
    assert zstandard.ZstdDecompressor().decompress(data[37:]) == b"abc"


def test_every_truncation_is_noticed_and_named() -> None:
    data = pack(Kind.TREE, REPO, b"of no great length" * 3, MOST)
    for size in range(len(data)):
        with pytest.raises(errors.Corrupt, match="page/x/0") as caught:
            unpack(data[:size], Kind.TREE, REPO, "page/x/0", MOST)
        assert caught.value.key == "page/x/0"
    with pytest.raises(errors.Corrupt, match="page/x/0"):
        unpack(data + b"\0", Kind.TREE, REPO, "page/x/0", MOST)


def test_every_bit_that_flips_is_noticed() -> None:
    data = pack(Kind.TREE, REPO, b"of no great length" * 3, MOST)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.Corrupt, match="page/x/0"):
            unpack(damaged, Kind.TREE, REPO, "page/x/0", MOST)


def test_another_repository_another_kind_and_a_newer_format_are_told_apart() -> None:
    data = pack(Kind.TREE, REPO, b"abc", MOST)
    with pytest.raises(errors.Conflict, match="made anew") as caught:
        unpack(data, Kind.TREE, bytes(16), "page/x/0", MOST)
    assert caught.value.key == "page/x/0"
    with pytest.raises(errors.Corrupt, match="kind 2, where refs"):
        unpack(data, Kind.REFS, REPO, "page/x/0", MOST)
    newer = packed(2, REPO, 3, data[37:], form=2)
    with pytest.raises(errors.Unsupported, match=r"format 2.* reads format 1"):
        unpack(newer, Kind.TREE, REPO, "page/x/0", MOST)


def test_no_claim_is_believed() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    three = zstandard.ZstdCompressor().compress(b"abc")
    for nbytes, frame in [
        (1 << 24, bomb),
        (3, bomb),
        (1 << 63, three),
        (4, three),
        (3, unsized),
        (3, three + three),
        (3, b""),
        (0, b""),
        (3, b"no frame at all"),
    ]:
        with pytest.raises(errors.Corrupt, match="page/x/0"):
            unpack(packed(2, REPO, nbytes, frame), Kind.TREE, REPO, "page/x/0", MOST)


def test_what_could_not_be_read_again_is_not_stored() -> None:
    with pytest.raises(errors.Invalid, match="commit less at once"):
        pack(Kind.TREE, REPO, bytes(11), 10)
    with pytest.raises(errors.Corrupt, match="claims 11 bytes, the most is 10"):
        unpack(pack(Kind.TREE, REPO, bytes(11), 11), Kind.TREE, REPO, "page/x/0", 10)


def test_ids_are_random_sort_as_their_bytes_and_come_back() -> None:
    made = [ids.new_session() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(map(ids.is_session, made))
    stored = [ids.to_bytes(session) for session in made]
    assert {len(data) for data in stored} == {ids.SESSION_BYTES}
    assert [ids.from_bytes(data, "x") for data in stored] == made
    assert [ids.from_bytes(data, "x") for data in sorted(stored)] == sorted(made)
    assert ids.new_repo() != ids.new_repo()
    for wrong in (b"", bytes(12), bytes(14), b"\x10" + bytes(12)):
        with pytest.raises(errors.Corrupt, match="page/x/0"):
            ids.from_bytes(wrong, "page/x/0")


def test_a_commit_has_its_sessions_id_and_its_attempt() -> None:
    session = ids.new_session()
    assert ids.commit_id(session) == session
    assert ids.commit_id(session, 12) == f"{session}-12"
    for attempt in (1, 2, 9, 10, 123456789):
        assert ids.split_commit_id(ids.commit_id(session, attempt)) == (session, attempt)
    for wrong in ("", "main", session[1:], session.upper(), f"{session}-1", f"{session}-0",
                  f"{session}-02", f"{session}-", f"{session}\n", f"{session}-2\n", "i" * 20,
                  f"{session}-1234567890", f"{session}-\u0662"):  # fmt: skip
        assert not ids.is_commit(wrong)
        with pytest.raises(errors.Invalid, match="a commit's id"):
            ids.split_commit_id(wrong)
    assert not ids.is_session(f"{session}-2")
    assert not ids.is_session(f"{session}\n")


def test_keys_of_objects() -> None:
    session = "0123456789abcdefghjk"
    reference = Reference(session, 7, 100)
    assert ids.page_key(reference) == f"page/{session}/7"
    assert ids.chunk_key(reference) == f"chunk/{session}/7"
    assert ids.commit_key(f"{session}-2") == f"commit/{session}-2"
    assert ids.session_key(session) == f"session/{session}"


def test_new_pages_are_numbered_within_their_session() -> None:
    form = Form(Kind.VALUE, 100, lambda raw, what: (raw, what))
    new = NewPages(REPO, ids.new_session(), 3)
    first, second = new.add(form, b"one"), new.add(form, b"two")
    assert (first.number, second.number, new.next) == (3, 4, 5)
    stored = dict(new.items())
    assert len(stored[ids.page_key(first)]) == first.nbytes
    read = form.decode(stored[ids.page_key(second)], REPO, ids.page_key(second))
    assert read == (b"two", ids.page_key(second))
    assert form.read(second, stored[ids.page_key(second)], REPO) == read
    for wrong, why in ((None, "is missing"), (b"", f"has 0 bytes, not {second.nbytes}")):
        with pytest.raises(errors.Corrupt, match=f"{ids.page_key(second)} {why}") as caught:
            form.read(second, wrong, REPO)
        assert caught.value.key == ids.page_key(second)
    with pytest.raises(errors.Invalid, match="commit less"):
        new.add(form, bytes(101))
