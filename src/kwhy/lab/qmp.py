"""Talking to QEMU itself: its machine protocol (QMP), one JSON object per line."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kwhy.errors import LinkError


class Qmp:
    """A QMP connection. Every wait has a limit (seconds); LinkError when QEMU is gone or mute."""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self._read(time.monotonic() + timeout)  # the greeting
            self.command("qmp_capabilities", timeout=timeout)
        except OSError as error:
            self.close()
            raise LinkError(f"QEMU does not answer on its control socket: {error}") from None

    def command(self, name: str, *, timeout: float = 30.0, **arguments: Any) -> Any:
        """Run one command and give its ``return`` value. Raises LinkError, also when refused."""
        request: dict[str, Any] = {"execute": name}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): arguments[key] for key in arguments}
        deadline = time.monotonic() + timeout
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise LinkError(f"QEMU is gone: {error.strerror}") from None
        while True:
            answer = self._read(deadline)
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise LinkError(f"QEMU refused {name}: {answer['error'].get('desc')}")
            else:
                return answer.get("return")

    def monitor(self, line: str, timeout: float = 30.0) -> str:
        """A command of the human monitor, such as ``log exec``; its output."""
        return str(self.command("human-monitor-command", command_line=line, timeout=timeout))

    def wait_event(
        self, wanted: Callable[[dict[str, Any]], bool], timeout: float
    ) -> dict[str, Any] | None:
        """The first event that ``wanted`` accepts, now or within ``timeout`` seconds; else None."""
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self._events):
                if wanted(event):
                    del self._events[: index + 1]
                    return event
            self._events.clear()
            try:
                message = self._read(deadline)
            except TimeoutError:
                return None
            if "event" in message:
                self._events.append(message)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("QEMU did not answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise
            except OSError as error:
                raise LinkError(f"QEMU is gone: {error.strerror}") from None
            if not data:
                raise LinkError("QEMU ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
