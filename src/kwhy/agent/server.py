"""The agent's end of a connection: one reader, one thread per request.

The reader alone takes frames in, so credit, pings and cancellations are served while an operation
sits in a slow tracefs write.
"""

import collections
import sys
import threading
import time
from types import TracebackType
from typing import Any, Callable, Deque, Dict, List, Optional

from . import protocol
from .errors import AgentError, Cancelled
from .wire import Hangup, Wire

MAX_REQUESTS = 16
#: With requests running and not a byte (not even a ping) from the desk for this long, it is dead.
IDLE_LIMIT = 60.0
#: How long a cancelled operation may take to put tracing back before it is left to the watchdog.
UNDO_PATIENCE = 60.0

MAX_INPUT = 64 << 20


class Terminated(Exception):
    """A signal asked the agent to end."""


class Request(object):
    """One running operation: its way to send, its credit, and the wish to end it."""

    def __init__(self, server: "Server", number: int, op: str, params: Dict[str, Any]) -> None:
        self.server = server
        self.number = number
        self.op = op
        self.params = params
        self.generation = server.generation
        self.input = b""
        self.stop = threading.Event()  # end early, but in good order
        self.cancelled = threading.Event()  # nobody listens any more
        self.let_go: Deque[int] = collections.deque()  # tasks that the desk has looked at
        self._credit = protocol.WINDOW
        self._changed = threading.Condition()

    def credit(self) -> int:
        """Bytes that may be sent now without waiting."""
        return self._credit

    def grant(self, amount: int) -> None:
        """The desk consumed ``amount`` bytes."""
        with self._changed:
            self._credit += amount
            self._changed.notify_all()

    def cancel(self) -> None:
        """Make every later (and any waiting) ``send`` raise Cancelled."""
        self.cancelled.set()
        self.stop.set()
        with self._changed:
            self._changed.notify_all()

    def check(self) -> None:
        """Raise Cancelled when nobody listens any more."""
        if self.cancelled.is_set():
            raise Cancelled()

    def send(self, kind: str, header: Optional[Dict[str, Any]] = None, data: bytes = b"") -> None:
        """One or more messages of ``kind``; waits for credit; raises Cancelled."""
        head = dict(header or {}, kind=kind)
        for start in range(0, len(data) or 1, protocol.CHUNK):
            piece = data[start : start + protocol.CHUNK]
            price = protocol.cost(piece)
            with self._changed:
                while self._credit < price and not self.cancelled.is_set():
                    self._changed.wait(5.0)
                self.check()
                self._credit -= price
            self.server.send(protocol.DATA, self.number, head, piece, self.generation)


Operation = Callable[[Request, Dict[str, Any]], Dict[str, Any]]


def where(frame: Optional[TracebackType]) -> List[str]:
    """The innermost places of a traceback, "file:line function" each, outermost first."""
    places = []
    while frame is not None:
        code = frame.tb_frame.f_code
        name = code.co_filename.rpartition("/")[2]
        places.append("%s:%d %s" % (name, frame.tb_lineno, code.co_name))
        frame = frame.tb_next
    return places[-3:]


class Server(object):
    """Serves a wire until it ends.

    ``patient``: an end before the first hello is none; a port reads like that while nobody has
    connected to its other side.
    """

    def __init__(
        self,
        wire: Wire,
        operations: Dict[str, Operation],
        greeting: Callable[[], Dict[str, Any]],
        patient: bool = False,
    ) -> None:
        self.wire = wire
        self.operations = operations
        self.greeting = greeting
        self.patient = patient
        self.on_hello: Callable[[bytes], None] = lambda nonce: None
        self.terminated = False
        self.undoing = False  # in _forget(): not the time for an exception from a signal handler
        self.requests: Dict[int, Request] = {}
        self.threads: Dict[int, threading.Thread] = {}
        self.pending: Dict[int, Request] = {}
        self.lock = threading.Lock()
        self.write_lock = threading.Lock()
        self.generation = 0
        self.gone = False
        self.closing = False
        self.synced = False
        self.tail = b""
        self.decoder = protocol.Decoder()
        self.last_heard = time.monotonic()

    # -- out ------------------------------------------------------------------------------------

    def send(
        self,
        kind: int,
        number: int,
        header: Dict[str, Any],
        payload: bytes = b"",
        generation: Optional[int] = None,
    ) -> None:
        """Write one frame; on a dead wire cancels everything and raises Cancelled.

        ``generation``: the connection that the frame belongs to, when it may be an earlier one.
        """
        self._write(protocol.encode(kind, number, header, payload), generation)

    def _write(self, data: bytes, generation: Optional[int] = None) -> None:
        with self.write_lock:
            if generation is not None and generation != self.generation:
                raise Cancelled()
            if not self.gone:
                try:
                    self.wire.write(data, lambda: self.closing)
                    return
                except Hangup:
                    self.gone = True
        self.cancel_all()
        raise Cancelled()

    # -- in -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the stream ends; undoes everything on the way out."""
        try:
            while True:
                data = self.wire.read(1.0)
                if data:
                    self.last_heard = time.monotonic()
                    self._take(data)
                elif data is None:
                    self._check_idle()
                elif self.patient and not self.generation:
                    time.sleep(0.1)  # a port without a host polls readable: nothing to wait on
                else:
                    return
        finally:
            self.closing = True
            self._forget("the connection ended")

    def _check_idle(self) -> None:
        if self.requests and time.monotonic() - self.last_heard > IDLE_LIMIT:
            self._forget("the desk is silent")

    def _forget(self, why: str) -> None:
        """Cancel all requests and wait until each has undone what it did."""
        self.undoing = True
        self.synced = False
        self.tail = b""
        self.pending.clear()
        self.cancel_all()
        end = time.monotonic() + UNDO_PATIENCE
        for thread in list(self.threads.values()):
            thread.join(max(0.0, end - time.monotonic()))
        self.undoing = False
        if self.terminated and not self.closing:
            raise Terminated()

    def terminate(self) -> None:
        """Called by a signal handler in the serving thread: end, but not in mid-repair."""
        self.terminated = True
        if not self.undoing and not self.closing:
            raise Terminated()

    def cancel_all(self) -> None:
        """Tell every running request that nobody listens any more."""
        with self.lock:
            requests = list(self.requests.values())
        for request in requests:
            request.cancel()

    def _take(self, data: bytes) -> None:
        window = self.tail + data
        mark = protocol.SYNC_TO_AGENT
        found = window.rfind(mark)
        self.tail = window[1 - len(mark) :]
        if found >= 0:
            self._forget("a new connection")
            with self.write_lock:
                self.generation += 1
                self.gone = False
            self.synced = True
            self.decoder = protocol.Decoder()
            data = window[found + len(mark) :]
            self.tail = data[1 - len(mark) :]
        if not self.synced:
            return
        try:
            for frame in self.decoder.feed(data):
                self._dispatch(frame)
        except protocol.ProtocolError as error:
            try:
                problem = AgentError("usage", "the agent cannot read this: %s" % error)
                self.send(protocol.ERROR, 0, {"error": problem.as_json()})
            except Cancelled:
                pass
            self._forget("protocol error")
        except Cancelled:
            self._forget("the wire broke")

    def _dispatch(self, frame: protocol.Frame) -> None:
        number = frame.request
        if frame.type == protocol.HELLO:
            self._greet(frame)
        elif frame.type == protocol.PING:
            self.send(protocol.PONG, number, {})
        elif frame.type == protocol.REQUEST:
            self._gather(frame)
        elif frame.type in (protocol.CREDIT, protocol.CANCEL):
            with self.lock:
                request = self.requests.get(number)
            if request is None:
                return
            if frame.type == protocol.CANCEL:
                request.cancel()
            else:
                amount = frame.header.get("bytes")
                if isinstance(amount, int) and 0 <= amount <= 1 << 40:
                    request.grant(amount)
        else:
            raise protocol.ProtocolError("a frame of type %d is not for the agent" % frame.type)

    def _greet(self, frame: protocol.Frame) -> None:
        nonce = bytearray.fromhex(str(frame.header.get("nonce", "")))
        header = {"nonce": frame.header.get("nonce"), "protocol": protocol.PROTOCOL}
        header.update(self.greeting())
        self.on_hello(bytes(nonce))
        self._write(
            protocol.SYNC_TO_DESK + bytes(nonce) + protocol.encode(protocol.HELLO, 0, header)
        )

    # -- requests -------------------------------------------------------------------------------

    def _gather(self, frame: protocol.Frame) -> None:
        """Collect the pieces of a request's input, then start it."""
        number = frame.request
        request = self.pending.get(number)
        if request is None:
            params = frame.header.get("params")
            if not isinstance(params, dict):
                params = {}
            request = Request(self, number, str(frame.header.get("op")), params)
        request.input += frame.payload
        if frame.header.get("more") and len(request.input) <= MAX_INPUT:
            self.pending[number] = request
            return
        self.pending.pop(number, None)
        self._start(request)

    def _start(self, request: Request) -> None:
        with self.lock:
            taken = request.number in self.requests or len(self.requests) >= MAX_REQUESTS
        if taken:
            busy = AgentError("usage", "the agent is busy with %d requests" % len(self.requests))
            self.send(protocol.ERROR, request.number, {"error": busy.as_json()})
            return
        if request.op in ("stop", "let_go"):
            self._tell(request)
            return
        thread = threading.Thread(target=self._perform, args=(request,))
        thread.daemon = True
        with self.lock:
            self.requests[request.number] = request
            self.threads[request.number] = thread
        thread.start()

    def _tell(self, request: Request) -> None:
        """``stop {"request": n}``: end that request early but in good order (none given: all).

        ``let_go {"request": n, "tid": t}``: who stands at the exit with it need not stay there.
        """
        wanted = request.params.get("request")
        told: List[int] = []
        with self.lock:
            for number, other in self.requests.items():
                if wanted is None or wanted == number:
                    if request.op == "stop":
                        other.stop.set()
                    else:
                        other.let_go.append(int(request.params.get("tid") or 0))
                    told.append(number)
        self.send(protocol.END, request.number, {"stopped": told})

    def _perform(self, request: Request) -> None:
        try:
            kind = protocol.END
            header: Dict[str, Any] = {}
            try:
                operation = self.operations.get(request.op)
                if operation is None:
                    raise AgentError("usage", "this agent has no operation %r" % request.op)
                header = operation(request, request.params)
            except AgentError as error:
                kind, header = protocol.ERROR, {"error": error.as_json()}
            except Cancelled:
                kind, header = protocol.ERROR, {"error": {"kind": "cancelled", "message": "gone"}}
            except Exception as error:  # a bug must reach the desk, not end the agent
                detail = where(sys.exc_info()[2])
                message = "%s: %s" % (type(error).__name__, error)
                kind = protocol.ERROR
                header = {"error": {"kind": "internal", "message": message, "detail": detail}}
            # Off the list first: once the desk knows, it may use the number of requests again.
            self._drop(request)
            try:
                self.send(kind, request.number, header, b"", request.generation)
            except (Cancelled, protocol.ProtocolError):
                pass
        finally:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        with self.lock:
            if self.requests.get(request.number) is request:
                del self.requests[request.number]
                del self.threads[request.number]
