"""Frames: what goes in comes out, and hostile bytes are refused before they cost anything."""

from typing import Any

import pytest

from kwhy.agent import protocol
from kwhy.agent.protocol import Decoder, ProtocolError, cut_around_mark, encode

FRAMES: list[tuple[int, int, dict[str, Any], bytes]] = [
    (protocol.HELLO, 0, {"nonce": "00"}, b""),
    (protocol.DATA, 7, {"kind": "pages", "cpu": 1}, bytes(range(256)) * 20),
    (protocol.PING, 0, {}, b""),
    (protocol.END, 7, {"status": None}, b""),
]


@pytest.mark.parametrize("step", [1, 3, 19, 20, 21, 1000, 1 << 20])
def test_frames_survive_any_cutting(step: int) -> None:
    """However the stream is cut into reads, the same frames come out."""
    stream = b"".join(encode(*frame) for frame in FRAMES)
    decoder = Decoder()
    found = []
    for start in range(0, len(stream), step):
        found += list(decoder.feed(stream[start : start + step]))
    assert [tuple(frame) for frame in FRAMES] == [tuple(frame) for frame in found]


def test_nothing_before_the_last_byte() -> None:
    """A truncated frame gives nothing, and no error either."""
    data = encode(protocol.END, 1, {"a": 1}, b"xyz")
    decoder = Decoder()
    assert [] == list(decoder.feed(data[:-1]))
    assert 1 == len(list(decoder.feed(data[-1:])))


def _prefix(
    magic: bytes = protocol.MAGIC,
    version: int = protocol.PROTOCOL,
    kind: int = protocol.DATA,
    header: int = 0,
    size: int = 0,
) -> bytes:
    return protocol.PREFIX.pack(magic, version, kind, 0, 1, header, size)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (_prefix(magic=b"KWHY"), "not a frame"),
        (_prefix(kind=0), "unknown frame type"),
        (_prefix(kind=200), "unknown frame type"),
        (_prefix(version=99), "speaks protocol 99"),
        (_prefix(header=protocol.MAX_HEADER + 1), "claims"),
        (_prefix(size=protocol.MAX_PAYLOAD + 1), "claims"),
        (_prefix(header=0xFFFFFFFF, size=0xFFFFFFFF), "claims"),
        (_prefix(header=4) + b"\xff\xfe{}", "not JSON"),
        (_prefix(header=2) + b"[]", "not an object"),
        (_prefix(header=100000) + b"[" * 100000, "not JSON"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes, word: str) -> None:
    """Wrong magic, type, version, lengths and headers raise ProtocolError, naming the trouble."""
    with pytest.raises(ProtocolError, match=word):
        list(Decoder().feed(data))


def test_hello_of_another_version_can_be_read() -> None:
    """Two versions must be able to tell each other apart."""
    frame = protocol.PREFIX.pack(protocol.MAGIC, 2, protocol.HELLO, 0, 0, 14, 0) + b'{"protocol":2}'
    assert {"protocol": 2} == next(Decoder().feed(frame)).header


def test_oversized_frames_are_not_sent() -> None:
    """The bounds hold for our own frames as well."""
    with pytest.raises(ProtocolError, match="over the bounds"):
        encode(protocol.DATA, 1, {}, bytes(protocol.MAX_PAYLOAD + 1))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"plain",
        protocol.SYNC_TO_AGENT,
        b"a" + protocol.SYNC_TO_AGENT * 3 + b"b",
        protocol.SYNC_TO_AGENT[:-1],
    ],
)
def test_the_mark_never_appears_by_chance(payload: bytes) -> None:
    """A payload that holds the synchronisation mark is cut so that no piece does."""
    pieces = cut_around_mark(payload)
    assert payload == b"".join(pieces)
    assert not any(protocol.SYNC_TO_AGENT in piece for piece in pieces)
    framed = b"".join(encode(protocol.REQUEST, 1, {"op": "put_file"}, piece) for piece in pieces)
    assert protocol.SYNC_TO_AGENT not in framed


def test_a_repeated_greeting_is_passed_over() -> None:
    """A mark between two frames (an answer to a hello that was sent twice) disturbs nothing."""
    mark = protocol.SYNC_TO_DESK + bytes(16)
    ping, pong = encode(protocol.PING, 0, {}), encode(protocol.PONG, 0, {})
    decoder = Decoder()
    kinds = []
    for byte in ping + mark + pong:
        kinds += [frame.type for frame in decoder.feed(bytes([byte]), mark)]
    assert [protocol.PING, protocol.PONG] == kinds


def test_a_short_frame_is_not_held_back() -> None:
    """A frame shorter than the mark is delivered at once, not when more bytes come."""
    mark = protocol.SYNC_TO_DESK + bytes(16)
    assert 1 == len(list(Decoder().feed(encode(protocol.PONG, 0, {}), mark)))
