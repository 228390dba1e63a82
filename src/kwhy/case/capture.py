"""One recording of a live target, made into a Round of the case."""

import contextlib
import json
import os
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Protocol

from kwhy.case.evidence import PAGE, Round
from kwhy.case.live import LiveEvidence
from kwhy.errors import FeatureError, LinkError, UsageError

TAIL = 4096
HOLD = 150.0
"""Seconds that a command is kept at its exit when the desk is slow, or gone,"""
HOLD_OTHERS = 30.0
"""and one of its descendants, for which others may wait."""
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


@dataclass(frozen=True, slots=True)
class Leaving:
    """Threads that are kept at their exits while the command goes on, their process, whether it
    ends with them, and the recording since it was born."""

    pid: int
    tids: tuple[int, ...]
    ends: bool
    so_far: Round


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
    leaving: Callable[[Leaving], None] | None = None,
    wanted: tuple[int | None, int | None] = (None, None),
) -> Iterator[Round]:
    """Run ``command`` (or follow ``pid``) once under the function tracer and keep what it gave.

    ``probes`` are ``{"name", "definition"}``. ``output`` gets the command's output ("out"/"err",
    bytes); ``enough`` sees each batch of pages and may end the recording by returning True.
    ``leaving`` may look at descendants that are kept at their exits meanwhile: those in which the
    system call with the number and the result of ``wanted`` failed (None: any), or that end badly
    after a failure, HOLD_OTHERS seconds at most. The
    round is appended to ``evidence.rounds``. Within the context tracing is still being put back,
    and the command kept at its exit (its number is ``extra["held"]``, its threads
    there are ``extra["held_tasks"]``) for at most HOLD seconds.
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
        if leaving is not None:
            number, result = wanted
            params["others"] = {"seconds": HOLD_OTHERS, "nr": number, "ret": result}
    if probes:
        params["probes"] = [probe["definition"] for probe in probes]
    if timeout is not None:
        params["seconds"] = timeout
    if buffer_kb is not None:
        params["buffer_kb"] = buffer_kb
    for name in ("header_page", "header_event"):
        evidence.blob(name)
    evidence.go_back(None)
    round_ = Round(command=list(command))
    pages: dict[int, list[bytes]] = {}
    kept = 0
    dropped = 0
    snapshots: list[Any] = []
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
                snapshots += message.header.get("snapshots") or []
                round_.extra["user"] = snapshots
            elif message.kind == "leaving":
                try:
                    if leaving is not None:
                        leaving(_leaving(round_, pages, tails, message.header))
                finally:
                    stream.let_go(message.header["tids"][0])
            elif message.kind in tails:
                tails[message.kind] = (tails[message.kind] + message.data)[-TAIL:]
                if output is not None:
                    output(message.kind, message.data)
            elif message.kind == "drained":
                round_.pages = {cpu: b"".join(parts) for cpu, parts in pages.items()}
                round_.tails = _texts(tails)
                if dropped:
                    round_.extra["dropped_pages"] = dropped // PAGE
                _ended(round_, message.header)
                if held := message.header.get("held"):
                    armed = round_.extra.get("armed")
                    round_.extra["held"] = armed.get("pid") if isinstance(armed, dict) else None
                    round_.extra["held_tasks"] = held
                evidence.rounds.append(round_)
                yield round_
                if held:
                    stream.stop()
            elif message.kind == "end":
                _ended(round_, message.header)
                return
    raise LinkError("the target ended the recording without a result; try again")


def _texts(tails: dict[str, bytes]) -> dict[str, str]:
    return {kind: data.decode("utf-8", "replace") for kind, data in tails.items()}


def _leaving(
    round_: Round, pages: dict[int, list[bytes]], tails: dict[str, bytes], header: dict[str, Any]
) -> Leaving:
    pid, tids = int(header["pid"]), tuple(int(tid) for tid in header["tids"])
    so_far = replace(
        round_,
        pages={
            cpu: _since(b"".join(parts), round_.page_size, int(header["born"]))
            for cpu, parts in pages.items()
        },
        tails=_texts(tails),
        tasks=[{"tid": tid, "tgid": pid} for tid in tids],
    )
    return Leaving(pid, tids, bool(header["ends"]), so_far)


def _since(pages: bytes, size: int, time: int) -> bytes:
    """The pages of one CPU that have events of ``time`` (ns) or later, and the one before."""
    begins = range(0, len(pages), size)
    first = bisect(begins, time, key=lambda at: int.from_bytes(pages[at : at + 8], "little"))
    return pages[size * max(first - 2, 0) :]


def keep_user(evidence: LiveEvidence, index: int, tid: int) -> None:
    """Forget the pages of user memory of a round that are not of this thread."""
    name, extra = user_blob(index), evidence.rounds[index].extra
    old = evidence.blobs.get(name) or b""
    found: Any = extra.get("user") or []
    mine = [snapshot for snapshot in found if snapshot[1] == tid]
    numbers: dict[int, int] = {}
    extra["user"] = [
        [time, owner, [[a, numbers.setdefault(n, len(numbers))] for a, n in places]]
        for time, owner, places in mine
    ]
    evidence.blobs[name] = b"".join(old[PAGE * n : PAGE * (n + 1)] for n in numbers)


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
    for key in ("ended", "timed_out", "notes", "timings", "kmsg", "counts"):
        if header.get(key) is not None:
            round_.extra[key] = header[key]
