"""The agent's end of a connection, driven frame by frame over a socket pair."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kwhy.agent import protocol, server
from kwhy.agent.errors import AgentError
from kwhy.agent.server import Request, Server
from kwhy.agent.wire import Wire

NONCE = bytes(range(16))


class Desk:
    """A hand-driven desk: sends raw bytes, reads frames."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(20)
        self.undone: list[int] = []
        self.blocked = threading.Event()
        operations: dict[str, server.Operation] = {
            "echo": lambda request, params: {"params": params, "input": len(request.input)},
            "flood": self._flood,
            "wait": self._wait,
            "bug": lambda request, params: {}[0],  # type: ignore[index]
            "refuse": self._refuse,
        }
        self.wire = Wire(theirs.fileno(), theirs.fileno())
        self._theirs = theirs
        self.server = Server(self.wire, operations, lambda: {"agent": "test"})
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.decoder = protocol.Decoder()
        self.frames: list[protocol.Frame] = []

    @staticmethod
    def _refuse(request: Request, params: dict[str, Any]) -> dict[str, Any]:
        raise AgentError("feature", "not here", "thing")

    def _flood(self, request: Request, params: dict[str, Any]) -> dict[str, Any]:
        for _ in range(int(params["count"])):
            request.send("data", {}, bytes(protocol.CHUNK))
        return {}

    def _wait(self, request: Request, params: dict[str, Any]) -> dict[str, Any]:
        try:
            self.blocked.set()
            request.stop.wait(30)
            request.check()
            return {"stopped": True}
        finally:
            self.undone.append(request.number)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def hello(self, nonce: bytes = NONCE) -> protocol.Frame:
        header = {"nonce": nonce.hex(), "protocol": 1}
        self.send(protocol.SYNC_TO_AGENT + protocol.encode(protocol.HELLO, 0, header))
        mark = protocol.SYNC_TO_DESK + nonce
        seen = b""
        while mark not in seen:
            seen += self.receive()
        self.decoder = protocol.Decoder()
        self.frames = list(self.decoder.feed(seen.partition(mark)[2]))
        return self.next()

    def receive(self) -> bytes:
        data = self.sock.recv(1 << 20)
        assert data, "the agent hung up"
        return data

    def next(self) -> protocol.Frame:
        while not self.frames:
            self.frames += list(self.decoder.feed(self.receive()))
        return self.frames.pop(0)

    def ask(self, number: int, op: str, payload: bytes = b"", **params: Any) -> None:
        header = {"op": op, "params": params}
        self.send(protocol.encode(protocol.REQUEST, number, header, payload))

    def close(self) -> None:
        self.sock.close()
        self.thread.join(20)
        self._theirs.close()
        assert not self.thread.is_alive()


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A server and the raw other end of its connection."""
    made = Desk()
    yield made
    made.close()


def test_hello_answers_the_nonce_among_garbage(desk: Desk) -> None:
    """Whatever an earlier client left in the pipe, the hello gets through."""
    desk.send(b"garbage" * 1000 + protocol.encode(protocol.REQUEST, 1, {"op": "echo"})[:-1])
    frame = desk.hello()
    assert (protocol.HELLO, NONCE.hex(), "test") == (
        frame.type,
        frame.header["nonce"],
        frame.header["agent"],
    )


def test_hello_interrupts_a_half_received_frame(desk: Desk) -> None:
    """A frame cut short by the death of an earlier desk does not swallow the next hello."""
    desk.hello()
    half = protocol.encode(protocol.REQUEST, 5, {"op": "echo", "params": {}}, bytes(500000))
    desk.send(half[:1000])
    other = bytes(reversed(NONCE))
    assert other.hex() == desk.hello(other).header["nonce"]
    desk.ask(6, "echo", a=1)
    assert (protocol.END, 6) == desk.next()[:2]


def test_hello_cut_anywhere(desk: Desk) -> None:
    """The mark is found also when it arrives byte by byte."""
    header = {"nonce": NONCE.hex(), "protocol": 1}
    for byte in b"\x00\xffkwhy" + protocol.SYNC_TO_AGENT:
        desk.send(bytes([byte]))
    desk.send(protocol.encode(protocol.HELLO, 0, header))
    seen = b""
    while protocol.SYNC_TO_DESK + NONCE not in seen:
        seen += desk.receive()


def test_a_new_hello_undoes_what_ran(desk: Desk) -> None:
    """Requests of an earlier desk are cancelled, and undone, before the new desk is greeted."""
    desk.hello()
    desk.ask(1, "wait")
    assert desk.blocked.wait(20)
    desk.hello(bytes(16))
    assert [1] == desk.undone
    desk.ask(1, "echo")
    assert {"params": {}, "input": 0} == desk.next().header


def test_hangup_undoes_what_ran() -> None:
    """The end of the stream cancels everything, and the server ends."""
    desk = Desk()
    desk.hello()
    desk.ask(3, "wait")
    assert desk.blocked.wait(20)
    desk.close()
    assert [3] == desk.undone


def test_data_stops_at_the_credit(desk: Desk) -> None:
    """Without credit the agent sends one window and not a byte more; it goes on when granted."""
    desk.hello()
    desk.ask(1, "flood", count=40)
    received = 0
    price = protocol.cost(bytes(protocol.CHUNK))
    while received + price <= protocol.WINDOW:
        received += protocol.cost(desk.next().payload)
    desk.ask(2, "echo")  # others are served meanwhile: the flood waits, the connection does not
    frame = desk.next()
    assert (protocol.END, 2) == frame[:2]
    assert 1 in desk.server.requests
    while (frame := _grant_and_take(desk)).type == protocol.DATA:
        received += protocol.cost(frame.payload)
    assert (protocol.END, 1) == frame[:2]
    assert 40 * price == received


def _grant_and_take(desk: Desk) -> protocol.Frame:
    desk.send(protocol.encode(protocol.CREDIT, 1, {"bytes": protocol.CHUNK + 64}))
    return desk.next()


@pytest.mark.parametrize("amount", [-5, "many", None, 1 << 50, [1]])
def test_absurd_credit_is_ignored(desk: Desk, amount: object) -> None:
    """Credit that is no sensible number grants nothing, and breaks nothing."""
    desk.hello()
    desk.ask(1, "wait")
    desk.send(protocol.encode(protocol.CREDIT, 1, {"bytes": amount}))
    desk.ask(2, "echo")
    assert (protocol.END, 2) == desk.next()[:2]
    assert protocol.WINDOW == desk.server.requests[1].credit()


def test_stop_ends_in_good_order(desk: Desk) -> None:
    """``stop`` lets a request finish and answer; a cancel does not."""
    desk.hello()
    desk.ask(1, "wait")
    assert desk.blocked.wait(20)
    desk.ask(2, "stop", request=1)
    answers = {frame.request: frame for frame in (desk.next(), desk.next())}
    assert {"stopped": [1]} == answers[2].header
    assert {"stopped": True} == answers[1].header


def test_cancel_is_answered_after_undoing(desk: Desk) -> None:
    """The answer to a cancelled request says that its work is undone."""
    desk.hello()
    desk.ask(9, "wait")
    assert desk.blocked.wait(20)
    desk.send(protocol.encode(protocol.CANCEL, 9, {}))
    frame = desk.next()
    assert (protocol.ERROR, 9, "cancelled") == (*frame[:2], frame.header["error"]["kind"])
    assert [9] == desk.undone


def test_errors_travel(desk: Desk) -> None:
    """A refusal, a bug and an unknown operation answer with their kinds; the agent goes on."""
    desk.hello()
    kinds = []
    for number, op in enumerate(("refuse", "bug", "nonsense"), 1):
        desk.ask(number, op)
        kinds.append(desk.next().header["error"]["kind"])
    assert ["feature", "internal", "usage"] == kinds


def test_nonsense_is_answered_and_forgotten(desk: Desk) -> None:
    """After bytes that are no frame the agent says so once, and waits for a new hello."""
    desk.hello()
    desk.send(bytes(64))
    frame = desk.next()
    assert (protocol.ERROR, 0) == frame[:2]
    desk.ask(1, "echo")  # not synchronised: ignored
    assert NONCE.hex() == desk.hello().header["nonce"]


def test_input_comes_in_pieces(desk: Desk) -> None:
    """A request's input may be spread over frames; the operation sees it whole."""
    desk.hello()
    more = {"op": "echo", "params": {"a": 1}, "more": True}
    desk.send(protocol.encode(protocol.REQUEST, 4, more, b"x" * 10))
    desk.send(protocol.encode(protocol.REQUEST, 4, {"op": "echo"}, b"y" * 5))
    assert {"params": {"a": 1}, "input": 15} == desk.next().header


def test_too_many_requests_are_refused(desk: Desk) -> None:
    """The number of threads is bounded."""
    desk.hello()
    for number in range(1, server.MAX_REQUESTS + 2):
        desk.ask(number, "wait")
    frame = desk.next()
    assert (protocol.ERROR, server.MAX_REQUESTS + 1) == frame[:2]


def test_a_silent_desk_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a request running and not even a ping from the desk, the work is undone."""
    monkeypatch.setattr(server, "IDLE_LIMIT", 0.0)
    desk.hello()
    desk.ask(1, "wait")
    assert "cancelled" == desk.next().header["error"]["kind"]
    assert [1] == desk.undone


def test_pings_are_answered(desk: Desk) -> None:
    """A ping comes back at once."""
    desk.hello()
    desk.send(protocol.encode(protocol.PING, 0, {}))
    assert protocol.PONG == desk.next().type
