"""The desk's end of a connection to an agent.

A reader thread takes everything in, so that a dead target is noticed while nobody asks, and pings
go out. Messages wait in queues that the credit bounds: a request's data is granted only as its
consumer takes it.
"""

import contextlib
import os
import queue
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kwhy.agent import protocol
from kwhy.agent.wire import Hangup, Wire
from kwhy.errors import FeatureError, KwhyError, LinkError, UsageError
from kwhy.link.answer import MAX_RESULT, failure, unpack
from kwhy.link.hello import NoHello, shake_hands

PING_EVERY = 5.0
#: Not a byte, not even an answer to a ping, for this long: the target is dead.
DEAD_AFTER = 45.0
#: Seconds that a cancelled request may take to put the target back in order.
UNDO_PATIENCE = 40.0
PUT_PIECE = 256 << 10

JSON = Any


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a stream; the last has kind "end" and the result as its header."""

    kind: str
    header: dict[str, JSON]
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: KwhyError


class Stream(Iterator[Message]):
    """The messages of one request. Close it (or use ``with``) when leaving early."""

    def __init__(self, link: "Link", number: int, op: str, timeout: float | None) -> None:
        self.link = link
        self.number = number
        self.op = op
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._queue: queue.SimpleQueue[Message | _Failure] = queue.SimpleQueue()
        self._owed = 0
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        """The next message. Raises LinkError, FeatureError or UsageError as the agent says."""
        if self._over:
            raise StopIteration
        message = self._take()
        if isinstance(message, _Failure):
            self._over = True
            raise message.error
        if message.kind == "end":
            self._over = True
        else:
            self._owed += protocol.cost(message.data)
            if self._owed >= protocol.WINDOW // 4:
                self.link._send(protocol.CREDIT, self.number, {"bytes": self._owed})
                self._owed = 0
        return message

    def _take(self) -> Message | _Failure:
        wait = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            return self._queue.get(timeout=wait)
        except queue.Empty:
            self.close(patience=0)
            raise LinkError(
                f"the target did not finish {self.op!r} within {self._timeout:g} s; "
                "is it overloaded? --timeout allows more"
            ) from None

    def _deliver(self, message: Message | _Failure) -> None:
        self._queue.put(message)

    def stop(self) -> None:
        """End it early but in good order: what was recorded so far still arrives."""
        self._tell("stop")

    def let_go(self, tid: int) -> None:
        """A task that is kept at its exit need not stay there any longer, nor who is with it."""
        self._tell("let_go", tid=tid)

    def _tell(self, op: str, **params: JSON) -> None:
        if not self._over:
            header = {"op": op, "params": {"request": self.number, **params}}
            self.link._send(protocol.REQUEST, self.link._next_number(), header)

    def close(self, patience: float | None = None) -> None:
        """Give it up: cancels, and waits until the agent has put the target back in order."""
        if self._over:
            return
        self._over = True
        try:
            self.link._send(protocol.CANCEL, self.number, {})
            end = time.monotonic() + (UNDO_PATIENCE if patience is None else patience)
            while (left := end - time.monotonic()) > 0:
                message = self._queue.get(timeout=left)
                if isinstance(message, _Failure) or message.kind == "end":
                    break
        except (queue.Empty, LinkError):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


class Link:
    """A connection to an agent. Raises LinkError when the target cannot be reached or is lost.

    ``hello`` has the agent's version, the kernel's identity, and (unless ``probe`` is false) the
    feature probe under "features", "why" and "notes". ``on_close`` runs last in :meth:`close`.
    """

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        *,
        name: str = "the target",
        hello_timeout: float = 60.0,
        dead_after: float = DEAD_AFTER,
        probe: bool = True,
        alive: Callable[[], str | None] = lambda: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.hello: dict[str, JSON] = {}
        self._wire = Wire(read_fd, write_fd)
        self._alive = alive
        self._on_close = on_close
        self._dead_after = dead_after
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._number = 0
        self._dead: LinkError | None = None
        self._closing = False
        self._decoder = protocol.Decoder()
        self._tail = b""
        self._nonce = secrets.token_bytes(protocol.NONCE_SIZE)
        self._wake, self._waker = os.pipe()
        self._reader = threading.Thread(target=self._read_forever, name="kwhy-link", daemon=True)
        try:
            try:
                self.hello, rest = shake_hands(self._wire, self._nonce, hello_timeout)
            except (Hangup, NoHello) as error:
                raise self._fail(str(error)) from None
            self._heard = time.monotonic()
            self._take(rest)
            self._reader.start()
            if probe:
                self.hello.update(self.call("probe", timeout=hello_timeout)[0])
        except BaseException:
            self.close()
            raise

    # -- asking ---------------------------------------------------------------------------------

    def call(
        self, op: str, *, timeout: float = 30.0, input: bytes = b"", **params: JSON
    ) -> tuple[dict[str, JSON], bytes]:
        """Ask and wait: the result, and the data of all messages together (unpacked)."""
        pieces: list[bytes] = []
        size = 0
        with self.stream(op, timeout=timeout, input=input, **params) as stream:
            for message in stream:
                if message.kind == "end":
                    return message.header, unpack(message.header, b"".join(pieces))
                size += len(message.data)
                if size > MAX_RESULT:
                    raise LinkError(f"{self.name} sends without end in answer to {op!r}")
                pieces.append(message.data)
        raise LinkError(f"{self.name} ended {op!r} without a result")

    def stream(
        self, op: str, *, timeout: float | None, input: bytes = b"", **params: JSON
    ) -> Stream:
        """Ask, and iterate over the messages; ``timeout`` (s) bounds all of it, None nothing."""
        number = self._next_number()
        stream = Stream(self, number, op, timeout)
        with self._lock:
            if self._dead is not None:
                raise self._dead
            self._streams[number] = stream
        wanted = {key: value for key, value in params.items() if value is not None}
        pieces = [
            piece
            for start in range(0, len(input) or 1, protocol.CHUNK)
            for piece in protocol.cut_around_mark(input[start : start + protocol.CHUNK])
        ]
        header: dict[str, JSON] = {"op": op, "params": wanted}
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            self._send(
                protocol.REQUEST, number, header if last else {**header, "more": True}, piece
            )
            header = {"op": op}
        return stream

    def features(self) -> dict[str, JSON]:
        """The feature probe (asked for once)."""
        if "features" not in self.hello:
            self.hello.update(self.call("probe", timeout=60)[0])
        found: dict[str, JSON] = self.hello["features"]
        return found

    def blob(self, name: str, *, timeout: float = 120.0) -> bytes | None:
        """A named binary fact of the target, None when it has none."""
        try:
            return self.call("blob", timeout=timeout, name=name)[1]
        except FeatureError as error:
            if error.feature == "absent":
                return None
            raise

    def read_memory(
        self, ranges: list[tuple[int, int]], *, timeout: float = 120.0
    ) -> list[bytes | None]:
        """Kernel memory at (address, size) ranges: bytes (short where a mapping ends) or None."""
        result, data = self.call("read_memory", timeout=timeout, ranges=[list(r) for r in ranges])
        sizes = result.get("sizes")
        if not isinstance(sizes, list) or len(sizes) != len(ranges):
            raise LinkError(f"{self.name} answers read_memory with nonsense")
        found: list[bytes | None] = []
        at = 0
        for size in sizes:
            found.append(None if size is None else data[at : at + size])
            at += size or 0
        return found

    def put(self, local: Path, remote: str | None = None) -> str:
        """Copy a file into the target's working directory (or to ``remote``), mode included.

        Returns the path on the target. Raises UsageError when there is no such file here.
        """
        try:
            mode = local.stat().st_mode & 0o777
            data = local.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {local}: {error.strerror}") from None
        path = remote or local.name
        if path.endswith("/"):
            path += local.name
        result: dict[str, JSON] = {}
        for offset in range(0, len(data) or 1, PUT_PIECE):
            result, _ = self.call(
                "put_file",
                timeout=60,
                input=data[offset : offset + PUT_PIECE],
                path=path,
                mode=mode,
                size=len(data),
                offset=offset,
            )
        return str(result.get("path"))

    def close(self) -> None:
        """Give up what runs, wait until the target is in order again, and disconnect."""
        if self._closing:
            return
        try:
            for stream in list(self._streams.values()):
                stream.close()
        finally:
            self._closing = True
            os.close(self._waker)
            if self._reader.is_alive():
                self._reader.join(3.0)
            os.close(self._wake)
            with contextlib.suppress(KwhyError):
                self._fail("the connection was closed")
            self._wire.restore()
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    # -- frames ---------------------------------------------------------------------------------

    def _next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def _send(self, kind: int, number: int, header: dict[str, JSON], payload: bytes = b"") -> None:
        if self._dead is not None:
            raise self._dead
        try:
            data = protocol.encode(kind, number, header, payload)
        except protocol.ProtocolError as error:
            raise UsageError(f"too much for one request: {error}") from None
        with self._write_lock:
            self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self._wire.write(data, lambda: self._closing or self._dead is not None)
        except Hangup as error:
            raise self._fail(str(error)) from None
        except BaseException:
            # A signal may have torn the frame: nothing that follows could be understood.
            self._fail("interrupted while sending")
            raise

    def _fail(self, why: str) -> LinkError:
        with self._lock:
            if self._dead is None:
                detail = self._alive()
                self._dead = LinkError(
                    f"lost contact with {self.name}: {why}" + (f" ({detail})" if detail else "")
                )
            dead = self._dead
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            stream._deliver(_Failure(dead))
        return dead

    def _read_forever(self) -> None:
        last_ping = time.monotonic()
        poll = select.poll()
        for fd in (self._wire.read_fd, self._wake):
            poll.register(fd, select.POLLIN)
        try:
            while not self._closing and self._dead is None:
                poll.poll(1000)
                if self._closing:
                    break
                data = self._wire.read(0)
                now = time.monotonic()
                if data == b"":
                    self._fail("it hung up")
                elif data:
                    self._heard = now
                    self._take(data)
                elif now - self._heard > self._dead_after:
                    self._fail(f"not a sign of life for {self._dead_after:g} s")
                if now - last_ping > PING_EVERY:
                    last_ping = now
                    self._ping()
        except protocol.ProtocolError as error:
            self._fail(f"it sent nonsense: {error}")
        except KwhyError:
            pass

    def _ping(self) -> None:
        # Never wait here: this thread must go on reading. Whoever holds the lock is sending anyway.
        if self._write_lock.acquire(blocking=False):
            try:
                self._write(protocol.encode(protocol.PING, 0, {}))
            finally:
                self._write_lock.release()

    def _take(self, data: bytes) -> None:
        gone = protocol.GONE + self._nonce
        window = self._tail + data
        end = window.find(gone)
        if end >= 0:
            data = data[: max(0, end - len(self._tail))]
        self._tail = window[1 - len(gone) :]
        try:
            self._decode(data)
        finally:
            if end >= 0:
                self._fail("its agent was killed; its watchdog has put tracing back")

    def _decode(self, data: bytes) -> None:
        for frame in self._decoder.feed(data, protocol.SYNC_TO_DESK + self._nonce):
            if frame.type in (protocol.DATA, protocol.END, protocol.ERROR):
                self._deliver(frame)
            elif frame.type not in (protocol.PONG, protocol.HELLO):
                raise protocol.ProtocolError(f"a frame of type {frame.type} is not for the desk")

    def _deliver(self, frame: protocol.Frame) -> None:
        with self._lock:
            stream = self._streams.get(frame.request)
            if stream is not None and frame.type != protocol.DATA:
                del self._streams[frame.request]
        if frame.type == protocol.ERROR and frame.request == 0:
            raise protocol.ProtocolError(str(failure(frame.header)))
        if stream is None:
            return
        if frame.type == protocol.ERROR:
            stream._deliver(_Failure(failure(frame.header)))
        elif frame.type == protocol.END:
            stream._deliver(Message("end", frame.header))
        else:
            stream._deliver(Message(str(frame.header.get("kind")), frame.header, frame.payload))
