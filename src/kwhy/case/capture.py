"""One recording of a live target, made into a Round of the case."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from kwhy.case.evidence import PAGE, Round
from kwhy.case.live import LiveEvidence
from kwhy.errors import FeatureError, LinkError, UsageError

TAIL = 4096
HOLD = 150.0
"""Seconds that a command is kept at its exit when the desk is slow, or gone."""
MAX_PAGES = 512 << 20
"""Bytes of raw trace that one round keeps; what came first is dropped beyond it, and counted."""

EVENTS = (
    "sched/sched_process_fork",
    "sched/sched_process_exec",
    "sched/sched_process_exit",
    "task/task_newtask",
    "task/task_rename",
    "signal/signal_deliver",
)


CLOCK_FUNCTIONS = ("ktime_get_mono_fast_ns",)
"""What the clock "mono" runs for each event; where it is itself traced (5.10) that is one more."""


def user_blob(index: int) -> str:
    """The name of the pages that the ``extra["user"]`` snapshots of a round number."""
    return f"user/round{index}"


class Streamer(Protocol):
    """The part of a ``kwhy.link`` Link that is used here."""

    def stream(self, op: str, *, timeout: float | None, **params: Any) -> Any: ...


@contextlib.contextmanager
def record_round(
    evidence: LiveEvidence,
    link: Streamer,
    *,
    command: Sequence[str] = (),
    pid: int | None = None,
    probes: Sequence[dict[str, str]] = (),
    timeout: float | None = None,
    buffer_kb: int | None = None,
    output: Callable[[str, bytes], None] | None = None,
    enough: Callable[[bytes], bool] | None = None,
) -> Iterator[Round]:
    """Run ``command`` (or follow ``pid``) once under the function tracer and keep what it gave.

    ``probes`` are ``{"name", "definition"}``. ``output`` gets the command's output ("out"/"err",
    bytes); ``enough`` sees each batch of pages and may end the recording by returning True. The
    round is appended to ``evidence.rounds``. Within the context tracing is still being put back,
    and the command kept at its exit (its number is ``extra["held"]``) for at most HOLD seconds.
    Raises LinkError or FeatureError as the agent says.
    """
    params: dict[str, Any] = {
        "tracer": "function",
        "events": list(EVENTS),
        "clock": "mono",
        "notrace": list(CLOCK_FUNCTIONS),
    }
    params["argv" if pid is None else "pid"] = list(command) if pid is None else pid
    if pid is None:
        params["hold"] = HOLD
    if probes:
        params["probes"] = [probe["definition"] for probe in probes]
    if timeout is not None:
        params["seconds"] = timeout
    if buffer_kb is not None:
        params["buffer_kb"] = buffer_kb
    for name in ("header_page", "header_event"):
        evidence.blob(name)
    round_ = Round(command=list(command))
    pages: dict[int, list[bytes]] = {}
    kept = 0
    dropped = 0
    tails = {"out": b"", "err": b""}
    stream = link.stream("record", timeout=None, **params)
    with stream:
        for message in stream:
            if message.kind == "armed":
                _armed(evidence, round_, message)
            elif message.kind == "pages":
                pages.setdefault(int(message.header["cpu"]), []).append(message.data)
                kept += len(message.data)
                while kept > MAX_PAGES:
                    cpu = max(pages, key=lambda c: len(pages[c]))
                    dropped += len(pages[cpu][0])
                    kept -= len(pages[cpu].pop(0))
                if enough is not None and enough(message.data):
                    stream.stop()
                    enough = None
            elif message.kind == "user":
                blob = user_blob(len(evidence.rounds))
                evidence.blobs[blob] = (evidence.blobs.get(blob) or b"") + message.data
                round_.extra["user"] = message.header.get("snapshots")
            elif message.kind in tails:
                tails[message.kind] = (tails[message.kind] + message.data)[-TAIL:]
                if output is not None:
                    output(message.kind, message.data)
            elif message.kind == "drained":
                round_.pages = {cpu: b"".join(parts) for cpu, parts in pages.items()}
                round_.tails = {
                    kind: data.decode("utf-8", "replace") for kind, data in tails.items()
                }
                if dropped:
                    round_.extra["dropped_pages"] = dropped // PAGE
                _ended(round_, message.header)
                evidence.rounds.append(round_)
                yield round_
                if round_.extra.get("held"):
                    stream.stop()
            elif message.kind == "end":
                _ended(round_, message.header)
                return
    raise LinkError("the target ended the recording without a result; try again")


@dataclass(frozen=True, slots=True)
class Probed:
    """What a command did under one probe: raw ring-buffer pages by CPU, the text of the probe's
    format file, events that were lost, its status (as the shell has it; a signal is negative) and
    the end of its output."""

    pages: dict[int, bytes]
    format_text: str
    lost: int
    status: int
    output: str


def record_probe(link: Streamer, definition: str, argv: Sequence[str], seconds: float) -> Probed:
    """Run a command (killed after ``seconds``) with one probe event, given as kprobe_events takes
    it, and nothing else recorded.

    Raises UsageError when the kernel refuses the probe, or the command cannot be started.
    """
    pages: dict[int, list[bytes]] = {}
    output, text = b"", ""
    round_ = Round(command=list(argv))
    params: dict[str, Any] = {
        "argv": list(argv), "tracer": "nop", "syscalls": False, "strict": True, "seconds": seconds,
        "probes": [definition],
    }  # fmt: skip
    try:
        with link.stream("record", timeout=None, **params) as stream:
            for message in stream:
                if message.kind == "armed":
                    text = next(iter(json.loads(message.data).values()))
                elif message.kind == "pages":
                    pages.setdefault(int(message.header["cpu"]), []).append(message.data)
                elif message.kind in ("out", "err"):
                    output = (output + message.data)[-TAIL:]
                elif message.kind == "end":
                    _ended(round_, message.header)
    except FeatureError as error:
        if error.feature != "probe":
            raise
        place = definition.split()[1]
        raise UsageError(f"no probe can be set on {place}: {error}") from None
    if problem := round_.extra.get("exec_errno"):
        raise UsageError(f"cannot run {argv[0]!r}: {os.strerror(int(str(problem)))}")
    whole = {cpu: b"".join(parts) for cpu, parts in pages.items()}
    status = round_.status or 0
    return Probed(whole, text, sum(round_.lost.values()), status, output.decode("utf-8", "replace"))


def _armed(evidence: LiveEvidence, round_: Round, message: Any) -> None:
    header = message.header
    round_.page_size = int(header.get("page_size") or PAGE)
    group = str(header.get("group") or "")
    for name, text in json.loads(message.data or b"{}").items():
        blob = f"format/{name}"
        if name.split("/")[0] == group:
            # Probe events differ from round to round, their names need not.
            blob = f"format/round{len(evidence.rounds)}/{PurePosixPath(name).name}"
        evidence.blobs[blob] = text.encode()
        round_.formats.append(blob)
    round_.probes = list(header.get("probes") or [])
    round_.extra["armed"] = {
        key: header.get(key) for key in ("pid", "tracer", "timings", "refused", "instance")
    }


def _ended(round_: Round, header: dict[str, Any]) -> None:
    status = header.get("status") or {}
    round_.status = status.get("code")
    if round_.status is None and status.get("signal") is not None:
        round_.status = -int(status["signal"])
    round_.extra["exec_errno"] = status.get("exec_errno")
    lost = header.get("lost") or {}
    round_.lost = {int(cpu): int(n) for cpu, n in lost.items()} if isinstance(lost, dict) else {}
    round_.tasks = list(header.get("tasks") or [])
    if header.get("held"):
        armed = round_.extra.get("armed")
        round_.extra["held"] = armed.get("pid") if isinstance(armed, dict) else None
    for key in ("ended", "timed_out", "notes", "timings", "kmsg", "counts"):
        if header.get(key) is not None:
            round_.extra[key] = header[key]
