"""The first words between desk and agent, on a wire that may still carry a predecessor's noise."""

import time
from typing import Any

from kwhy import __version__
from kwhy.agent import protocol
from kwhy.agent.wire import Wire

JSON = Any

_AGAIN = 3.0  # seconds


class NoHello(Exception):
    """No agent of ours is at the other end; says why."""


def shake_hands(wire: Wire, nonce: bytes, timeout: float) -> tuple[dict[str, JSON], bytes]:
    """Say hello until the answer to this very hello comes, at most ``timeout`` seconds.

    The answer's header, and the bytes that came behind it. Raises NoHello, and Hangup of the wire.
    """
    header = {"nonce": nonce.hex(), "protocol": protocol.PROTOCOL, "kwhy": __version__}
    hello = protocol.SYNC_TO_AGENT + protocol.encode(protocol.HELLO, 0, header)
    mark = protocol.SYNC_TO_DESK + nonce
    end = time.monotonic() + timeout
    again = 0.0
    seen = b""
    while True:
        now = time.monotonic()
        if now > end:
            raise NoHello(f"no agent answered within {timeout:g} s")
        if now >= again:
            wire.write(hello, lambda: time.monotonic() > end)
            again = now + _AGAIN
        data = wire.read(min(0.5, max(end - now, 0.0)))
        if data is None:
            continue
        if not data:
            raise NoHello("it closed the connection before it said hello")
        seen = seen[-len(mark) :] + data
        found = seen.find(mark)
        if found >= 0:
            return _first_frame(wire, seen[found + len(mark) :], end)


def _first_frame(wire: Wire, data: bytes, end: float) -> tuple[dict[str, JSON], bytes]:
    while True:
        try:
            size = protocol.frame_size(data)
            if size is not None and len(data) >= size:
                frame = next(protocol.Decoder().feed(data[:size]))
                return _checked(frame), data[size:]
        except protocol.ProtocolError as error:
            raise NoHello(f"its hello is damaged: {error}") from None
        more = wire.read(max(0.0, min(1.0, end - time.monotonic())))
        if more == b"" or time.monotonic() > end:
            raise NoHello("its hello is cut short")
        data += more or b""


def _checked(frame: protocol.Frame) -> dict[str, JSON]:
    theirs = frame.header.get("protocol")
    if frame.type != protocol.HELLO or theirs != protocol.PROTOCOL:
        raise NoHello(
            f"its agent speaks protocol {theirs}, this kwhy {protocol.PROTOCOL}; "
            "use the same version of kwhy at both ends"
        )
    return {key: value for key, value in frame.header.items() if key != "nonce"}
