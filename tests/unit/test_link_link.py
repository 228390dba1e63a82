"""The desk's end against peers that misbehave: every way to fail is a LinkError, never a hang."""

import contextlib
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kwhy.agent import protocol
from kwhy.errors import FeatureError, KwhyError, LinkError, UsageError
from kwhy.link import Link
from kwhy.link import link as link_module

Peer = Callable[["Other"], None]


class Other:
    """The far end of a link, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = protocol.Decoder()
        self.frames: list[protocol.Frame] = []
        self.synced = False
        self.nonce = b""

    def next(self) -> protocol.Frame:
        """The desk's next frame that is no ping."""
        while True:
            while not self.frames:
                data = self.sock.recv(1 << 20)
                if not data:
                    raise EOFError
                if not self.synced:
                    data = data.partition(protocol.SYNC_TO_AGENT)[2]
                    self.synced = True
                self.frames += list(self.decoder.feed(data))
            frame = self.frames.pop(0)
            if frame.type == protocol.HELLO:
                self.nonce = bytes.fromhex(frame.header["nonce"])
            if frame.type != protocol.PING:
                return frame

    def greet(self, version: int = protocol.PROTOCOL) -> None:
        """Answer the hello."""
        self.next()
        self.sock.sendall(self.greeting(version))

    def greeting(self, version: int = protocol.PROTOCOL) -> bytes:
        """The bytes of an answer to the hello."""
        header = {"nonce": self.nonce.hex(), "protocol": version, "agent": "x"}
        return protocol.SYNC_TO_DESK + self.nonce + protocol.encode(protocol.HELLO, 0, header)

    def send(self, kind: int, request: int, header: dict[str, Any], data: bytes = b"") -> None:
        """Send a frame."""
        self.sock.sendall(protocol.encode(kind, request, header, data))


@pytest.fixture
def connect() -> Iterator[Callable[..., Link]]:
    """Make a Link to a peer that runs in a thread; everything is closed at the end."""
    undo: list[Callable[[], None]] = []

    def make(peer: Peer, **options: Any) -> Link:
        ours, theirs = socket.socketpair()
        other = Other(theirs)

        def play() -> None:
            with contextlib.suppress(EOFError, OSError):
                peer(other)

        thread = threading.Thread(target=play, daemon=True)
        thread.start()

        def finish() -> None:
            ours.close()
            thread.join(20)
            theirs.close()

        undo.append(finish)
        settings: dict[str, Any] = {"probe": False, "hello_timeout": 20.0, "name": "it"}
        link = Link(ours.fileno(), ours.fileno(), **{**settings, **options})
        undo.append(link.close)
        return link

    yield make
    for step in reversed(undo):
        step()


def test_stale_bytes_before_the_hello_are_skipped(connect: Callable[..., Link]) -> None:
    """Frames, marks and garbage meant for an earlier desk do not disturb."""

    def peer(other: Other) -> None:
        other.sock.sendall(protocol.SYNC_TO_DESK + bytes(16) + b"rubbish" * 99)
        other.send(protocol.DATA, 1, {"kind": "old"}, b"old")
        other.greet()
        other.next()

    assert "x" == connect(peer).hello["agent"]


def test_a_hello_answered_twice(connect: Callable[..., Link]) -> None:
    """When the hello was repeated, the second answer is passed over."""

    def peer(other: Other) -> None:
        other.greet()
        other.sock.sendall(other.greeting())
        number = other.next().request
        other.send(protocol.END, number, {"ok": 1})

    assert {"ok": 1} == connect(peer).call("echo")[0]


def test_version_mismatch(connect: Callable[..., Link]) -> None:
    """An agent of another protocol version is refused in words."""
    with pytest.raises(LinkError, match=r"speaks protocol 7, this kwhy 1; use the same version"):
        connect(lambda other: other.greet(7))


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (lambda other: other.sock.close(), r"lost contact with it: "),
        (lambda other: other.next() and other.sock.close(), "closed the connection"),
        (
            lambda other: (
                other.next(),
                other.sock.sendall(other.greeting()[:60]),
                other.sock.shutdown(socket.SHUT_WR),
            ),
            "cut short",
        ),
    ],
)
def test_no_hello(connect: Callable[..., Link], peer: Peer, words: str) -> None:
    """A peer that goes away before it is greeted, or in the middle of it."""
    with pytest.raises(LinkError, match=words):
        connect(peer)


def test_nobody_answers(connect: Callable[..., Link]) -> None:
    """Silence instead of a hello ends after the time allowed."""
    with pytest.raises(LinkError, match=r"no agent answered within 0\.3 s"):
        connect(lambda other: other.next() and other.next() and None, hello_timeout=0.3)


def test_death_in_the_middle(connect: Callable[..., Link]) -> None:
    """A target that dies during a call gives LinkError to it, and to every later one."""

    def peer(other: Other) -> None:
        other.greet()
        other.send(protocol.DATA, other.next().request, {"kind": "data"}, b"some")
        other.sock.close()

    link = connect(peer)
    for _ in range(2):
        with pytest.raises(LinkError, match="lost contact with it"):
            link.call("blob")


def test_silence_is_death(connect: Callable[..., Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that answers neither requests nor pings is dead after a while."""

    def peer(other: Other) -> None:
        other.greet()
        while True:
            other.next()

    with pytest.raises(LinkError, match=r"not a sign of life for 0\.2 s"):
        connect(peer, dead_after=0.2).call("blob", timeout=100)


def test_timeout_of_a_call(connect: Callable[..., Link]) -> None:
    """A slow answer ends the call in time, tells the agent so, and leaves the link usable."""
    cancelled: list[int] = []

    def peer(other: Other) -> None:
        other.greet()
        number = other.next().request
        frame = other.next()
        assert protocol.CANCEL == frame.type
        cancelled.append(frame.request)
        other.send(protocol.END, number, {"too": "late"})
        other.send(protocol.END, other.next().request, {"in": "time"})

    link = connect(peer)
    with pytest.raises(LinkError, match=r"did not finish 'blob' within 0\.1 s"):
        link.call("blob", timeout=0.1)
    assert {"in": "time"} == link.call("echo")[0]
    assert [1] == cancelled


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense" * 100,
        protocol.PREFIX.pack(protocol.MAGIC, 1, protocol.DATA, 0, 1, 1, 0xFFFFFFFF),
        protocol.PREFIX.pack(protocol.MAGIC, 9, protocol.DATA, 0, 1, 0, 0),
        protocol.PREFIX.pack(protocol.MAGIC, 1, protocol.DATA, 0, 1, 3, 0) + b"{]}",
        protocol.encode(protocol.REQUEST, 1, {}),
        protocol.encode(protocol.ERROR, 0, {"error": {"kind": "usage", "message": "what?"}}),
    ],
)
def test_nonsense(connect: Callable[..., Link], answer: bytes) -> None:
    """What is no frame, or none for a desk, ends the link with one clear error."""

    def peer(other: Other) -> None:
        other.greet()
        other.next()
        other.sock.sendall(answer)
        other.next()

    with pytest.raises(LinkError, match="it sent nonsense"):
        connect(peer).call("blob")


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("feature", FeatureError, "no such thing"),
        ("absent", FeatureError, "no such thing"),
        ("usage", UsageError, "no such thing"),
        ("command", UsageError, "no such thing"),
        ("internal", LinkError, "the agent failed: no such thing"),
        ("novel", LinkError, "the agent failed"),
    ],
)
def test_errors_of_the_agent(
    connect: Callable[..., Link], kind: str, error: type[KwhyError], words: str
) -> None:
    """Each kind of refusal becomes the exception with the right exit code."""

    def peer(other: Other) -> None:
        other.greet()
        found = {"kind": kind, "message": "no such thing", "feature": "thing"}
        other.send(protocol.ERROR, other.next().request, {"error": found})

    with pytest.raises(error, match=words):
        connect(peer).call("blob")


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"encoding": "zlib", "size": 10}, zlib.compress(bytes(1 << 20)), "more or less"),
        ({"encoding": "zlib", "size": 1 << 20}, zlib.compress(b"x"), "more or less"),
        ({"encoding": "zlib", "size": 1 << 60}, b"", "absurd"),
        ({"encoding": "zlib", "size": "big"}, b"", "absurd"),
        ({"encoding": "zlib", "size": 4}, b"garbage", "damaged"),
    ],
)
def test_compressed_answers_are_bounded(
    connect: Callable[..., Link], header: dict[str, Any], data: bytes, words: str
) -> None:
    """A blob never unpacks to more than was announced."""

    def peer(other: Other) -> None:
        other.greet()
        number = other.next().request
        other.send(protocol.DATA, number, {"kind": "data"}, data)
        other.send(protocol.END, number, header)

    with pytest.raises(LinkError, match=words):
        connect(peer).call("blob")


def test_memory_answers_are_checked(connect: Callable[..., Link]) -> None:
    """Sizes that do not fit the question are nonsense."""

    def peer(other: Other) -> None:
        other.greet()
        other.send(protocol.END, other.next().request, {"sizes": [1, 2, 3]})

    with pytest.raises(LinkError, match="nonsense"):
        connect(peer).read_memory([(0, 1)])


def test_credit_follows_the_consumer(connect: Callable[..., Link]) -> None:
    """The desk grants what was consumed, and nothing before."""
    granted: list[int] = []
    sent = threading.Event()

    def peer(other: Other) -> None:
        other.greet()
        number = other.next().request
        for _ in range(8):
            other.send(protocol.DATA, number, {"kind": "pages"}, bytes(protocol.CHUNK))
        sent.set()
        while sum(granted) < protocol.WINDOW // 4:
            granted.append(other.next().header["bytes"])
        other.send(protocol.END, number, {})

    link = connect(peer)
    with link.stream("record", timeout=20) as stream:
        assert sent.wait(20)
        assert [] == granted
        assert 8 == sum(message.kind == "pages" for message in stream)
    assert protocol.WINDOW // 4 <= sum(granted) <= 8 * (protocol.CHUNK + 64)


def test_streams_do_not_mix(connect: Callable[..., Link]) -> None:
    """A call in the middle of a stream gets its own answer, the stream goes on."""

    def peer(other: Other) -> None:
        other.greet()
        first = other.next().request
        other.send(protocol.DATA, first, {"kind": "a"}, b"1")
        second = other.next().request
        other.send(protocol.DATA, first, {"kind": "a"}, b"2")
        other.send(protocol.DATA, second, {"kind": "data"}, b"answer")
        other.send(protocol.END, second, {})
        other.send(protocol.END, first, {"done": True})

    link = connect(peer)
    kinds = []
    with link.stream("record", timeout=20) as stream:
        kinds.append(next(stream).data)
        assert b"answer" == link.call("blob")[1]
        kinds += [message.data for message in stream]
    assert [b"1", b"2", b""] == kinds


def test_leaving_a_stream_cancels_it(connect: Callable[..., Link]) -> None:
    """Leaving early tells the agent, and waits until it has put things back."""
    order: list[str] = []

    def peer(other: Other) -> None:
        other.greet()
        number = other.next().request
        other.send(protocol.DATA, number, {"kind": "pages"}, b"1")
        assert protocol.CANCEL == other.next().type
        order.append("restored")
        other.send(protocol.ERROR, number, {"error": {"kind": "cancelled", "message": ""}})

    link = connect(peer)
    with link.stream("record", timeout=20) as stream:
        next(stream)
    order.append("left")
    assert ["restored", "left"] == order


def test_close_does_not_wait_for_the_dead(
    connect: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a link whose target says nothing any more ends by itself."""
    monkeypatch.setattr(link_module, "UNDO_PATIENCE", 0.1)

    def peer(other: Other) -> None:
        other.greet()
        while True:
            other.next()

    link = connect(peer)
    link.stream("record", timeout=None)
    link.close()
