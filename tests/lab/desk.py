"""What the lab tests do at the desk: build programs, start guests, run ``kwhy`` in this process."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from kwhy import lab
from kwhy.cli.main import main
from kwhy.lab.build import build_program
from kwhy.lab.incidents import INCIDENTS, PROGRAMS
from kwhy.lab.kernels import cached_kernels, resolve

SERIES = ("5.10", "6.1", "6.12", "7")
"""The series of the lab; "7" is the newest 7.x there is."""


@cache
def program(name: str) -> Path:
    """An incident's program, static; built once per state of the sources."""
    header = hashlib.sha256((PROGRAMS / "incident.h").read_bytes()).hexdigest()[:16]
    return build_program(INCIDENTS[name].source, ["-Wextra", "-Werror", f"-DHEADER_{header}"])


@cache
def truth_series(series: str) -> str:
    """The series whose truths hold: "7" is "7.2", or whatever 7.x the lab has."""
    known = [kernel for kernel in cached_kernels() if kernel.matches(series)]
    return (known[-1] if known else resolve(series)).series


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of ``kwhy`` ended."""

    status: int
    out: str
    err: str

    @property
    def verdict(self) -> dict[str, Any]:
        """The JSON on standard output: one object and nothing else."""
        answer = json.loads(self.out)
        assert isinstance(answer, dict)
        return answer


def kwhy(*words: str) -> Outcome:
    """``kwhy WORDS`` in this process, its output caught."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(words))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Outcome(status, *texts)


@contextlib.contextmanager
def kwhy_process(*words: str) -> "Iterator[subprocess.Popen[str]]":
    """``kwhy WORDS`` in a process of its own, for what would kill this one; it ends with the block.

    Ctrl-C reaches it also when we were started in the background, with SIGINT ignored.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "kwhy", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def own_guest(series: str, label: str, **settings: Any) -> Iterator[lab.Guest]:
    """A guest for one purpose that ``--lab NAME`` finds; it ends with the block, or with us."""
    name = f"{label}-{os.getpid()}-{series}"
    guest = lab.start(series, name, lab.Settings(keep=False, **settings))
    try:
        yield guest
    finally:
        guest.stop()


def run_in(link: Any, *argv: str, timeout: float = 60) -> tuple[int, str, str]:
    """A command in the guest: its status (negative: a signal), output and errors."""
    texts = {"out": b"", "err": b""}
    status: dict[str, Any] = {}
    with link.stream("spawn", argv=list(argv), timeout=timeout) as messages:
        for message in messages:
            if message.kind in texts:
                texts[message.kind] += message.data
            elif message.kind == "end":
                status = message.header["status"]
    code = -status["signal"] if status["code"] is None else status["code"]
    return code, texts["out"].decode(), texts["err"].decode()
