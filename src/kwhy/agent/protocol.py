"""The frames that desk and agent exchange, the same code at both ends.

A frame is a 20-byte prefix (big endian: magic, protocol version, type, a reserved half word,
request id, length of the header, length of the payload), a JSON object as header, then raw bytes.
All lengths are bounded before anything is allocated.

A byte stream may hold the remains of an earlier client (a virtio port outlives its clients), so
both ends synchronise first. The desk sends ``SYNC_TO_AGENT`` and a HELLO with a fresh nonce; the
agent forgets every earlier request whenever it sees that mark *anywhere* in its input and answers
``SYNC_TO_DESK``, the nonce and its own HELLO; the desk skips everything up to that. The desk cuts
payloads that happen to hold the mark (see :func:`cut_around_mark`), so it cannot appear by chance.

Flow control: DATA frames of a request use up credit (their payload and a little more) that the desk
grants with CREDIT frames as it consumes them; each request starts with ``WINDOW``. A slow desk
makes the agent wait, never hold more.
"""

import json
import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

PROTOCOL = 1

MAGIC = b"kwhy"
SYNC_TO_AGENT = b"\x00\xffkwhy>agent\xff\x00\r\n"
SYNC_TO_DESK = b"\x00\xffkwhy>desk\xff\x00\r\n"
#: Followed by the nonce, anywhere in the stream, even inside a torn frame: the agent is dead. Sent
#: by its watchdog, over a port that would otherwise just fall silent.
GONE = b"\x00\xffkwhy>gone\xff\x00\r\n"
NONCE_SIZE = 16

# Frame types. The prefix layout, HELLO and the marks never change between protocol versions.
HELLO = 1  # both ways, once per connection
REQUEST = 2  # desk: {"op", "params", "more"}; payload: its input, continued while "more"
DATA = 3  # agent: one message of a request {"kind", ...}
END = 4  # agent: the request is finished, the header is its result
ERROR = 5  # agent: the request failed {"error": {"kind", "message", "feature"}}
CREDIT = 6  # desk: {"bytes": n} more may be sent for this request
CANCEL = 7  # desk: nobody wants this request any more
PING = 8  # desk
PONG = 9  # agent

TYPES = frozenset(range(HELLO, PONG + 1))

#: magic, protocol, type, reserved, request id, header length, payload length
PREFIX = struct.Struct(">4sBBHIII")

MAX_HEADER = 8 << 20
MAX_PAYLOAD = 1 << 20
CHUNK = 256 << 10  # payload bytes of one DATA frame, as the agent cuts them
WINDOW = 4 << 20  # initial credit of a request, in bytes


class ProtocolError(Exception):
    """The bytes are not what the protocol says; the connection is of no further use."""


Frame = NamedTuple(
    "Frame",
    [("type", int), ("request", int), ("header", Dict[str, Any]), ("payload", bytes)],
)


def encode(kind: int, request: int, header: Dict[str, Any], payload: bytes = b"") -> bytes:
    """One frame as bytes. Raises ProtocolError when header or payload exceed the bounds."""
    text = json.dumps(header, separators=(",", ":")).encode("ascii") if header else b""
    if len(text) > MAX_HEADER or len(payload) > MAX_PAYLOAD:
        raise ProtocolError(
            "a frame of %d + %d bytes is over the bounds" % (len(text), len(payload))
        )
    return PREFIX.pack(MAGIC, PROTOCOL, kind, 0, request, len(text), len(payload)) + text + payload


def cost(payload: bytes) -> int:
    """What a DATA frame takes from the credit: its payload and a flat price for the rest."""
    return len(payload) + 64


def cut_around_mark(payload: bytes, mark: bytes = SYNC_TO_AGENT) -> List[bytes]:
    """Pieces of ``payload`` of which none holds ``mark``; a frame boundary breaks it up."""
    pieces = []
    start = 0
    while True:
        found = payload.find(mark, start)
        if found < 0:
            pieces.append(payload[start:])
            return pieces
        pieces.append(payload[start : found + 1])
        start = found + 1


def frame_size(data: bytes) -> Optional[int]:
    """The size of the frame that ``data`` starts with, None when that cannot be told yet."""
    if len(data) < PREFIX.size:
        return None
    magic, version, kind, _, _, header_size, size = PREFIX.unpack_from(data)
    check_prefix(magic, version, kind, header_size, size)
    return PREFIX.size + int(header_size) + int(size)


class Decoder(object):
    """Bytes in, frames out. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes, skip: bytes = b"") -> Iterator[Frame]:
        """Complete frames, in order; a mark ``skip`` between two frames is passed over.

        Raises ProtocolError on a wrong magic, an unknown type, hostile lengths or a broken header.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= PREFIX.size:
                if skip and buffer[at] == skip[0]:  # no frame starts like that
                    if len(buffer) - at < len(skip):
                        break
                    if buffer.startswith(skip, at):
                        at += len(skip)
                        continue
                magic, version, kind, _, request, header_size, size = PREFIX.unpack_from(buffer, at)
                check_prefix(magic, version, kind, header_size, size)
                body = at + PREFIX.size
                end = body + header_size + size
                if len(buffer) < end:
                    break
                header = decode_header(bytes(buffer[body : body + header_size]))
                payload = bytes(buffer[body + header_size : end])
                at = end
                yield Frame(kind, request, header, payload)
        finally:
            del buffer[:at]


def check_prefix(magic: bytes, version: int, kind: int, header_size: int, size: int) -> None:
    """Raise ProtocolError unless a prefix is one that this end understands."""
    if magic != MAGIC:
        raise ProtocolError("not a frame: it starts with %r" % (magic,))
    # A HELLO of any version can be read: that is how two versions tell each other apart.
    if version != PROTOCOL and kind != HELLO:
        raise ProtocolError("the other end speaks protocol %d, this one %d" % (version, PROTOCOL))
    if kind not in TYPES:
        raise ProtocolError("unknown frame type %d" % kind)
    if header_size > MAX_HEADER or size > MAX_PAYLOAD:
        raise ProtocolError("a frame claims %d + %d bytes" % (header_size, size))


def decode_header(text: bytes) -> Dict[str, Any]:
    """The JSON object of a frame. Raises ProtocolError when it is none."""
    if not text:
        return {}
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame's header is not JSON: %s" % error)
    if not isinstance(header, dict):
        raise ProtocolError("a frame's header is not an object")
    return header
