"""Processes of a command that end before it does: executed again while they can be.

Which failure explains the command's end is known at its end, and then most of its processes are
gone. So each that the agent keeps at its exit for a moment (``leaving`` of ``record_round``) has
its own likeliest failure executed again there and then. The memory that this read is put by; the
answer is given from it.
"""

import time
from dataclasses import dataclass

from kwhy.case.capture import HOLD_OTHERS, Leaving, keep_user, user_blob
from kwhy.case.live import LiveEvidence, Moment
from kwhy.diagnose.again import Held, execute, user_pages
from kwhy.diagnose.rounds import Session, call_in
from kwhy.errors import KwhyError, NothingToExplain
from kwhy.record.errno import errno_number
from kwhy.record.model import SyscallRecord
from kwhy.record.rank import rank
from kwhy.record.recording import read_recording
from kwhy.verdict import FailedCall


@dataclass(frozen=True, slots=True)
class Kept:
    """A failing call (by thread and time of its end, in ns) that was executed again when its
    process left, how likely it explains the end, and the memory of that moment."""

    tid: int
    exit: int
    score: float
    pid: int
    tasks: tuple[int, ...]
    moment: Moment

    def is_of(self, record: SyscallRecord) -> bool:
        """Whether it is this call."""
        return (self.tid, self.exit) == (record.tid, record.exit)


class Keeper:
    """What is put by of one round. ``call``: the one that an earlier round was about."""

    def __init__(self, session: Session, call: FailedCall | None = None) -> None:
        self.session = session
        self.syscall = call.syscall if call is not None else session.syscall
        self.errno = session.errno or (call.errno if call is not None else None)
        self.kept: list[Kept] = []

    @property
    def wanted(self) -> tuple[int | None, int | None]:
        """Number and result of the calls that are wanted, as ``record_round`` takes them."""
        calls = self.session.code.arch.syscalls
        number = next((number for number, name in calls.items() if name == self.syscall), None)
        error = errno_number(self.errno) if self.errno else None
        return number, None if error is None else -error

    def look(self, leaving: Leaving) -> None:
        """Execute the likeliest failure of a process again.

        Unless another's is likelier, or nobody asks for it and it speaks for nothing.
        """
        begun = time.monotonic()
        evidence = self.session.evidence
        assert isinstance(evidence, LiveEvidence)
        try:
            score, record = self._likeliest(leaving)
            if score <= 0 and not (self.syscall or self.errno):
                return
            if any(other.is_of(record) or other.score > score for other in self.kept):
                return
            blob = evidence.blobs.get(user_blob(len(evidence.rounds))) or b""
            held = Held(user_pages(leaving.so_far.extra.get("user"), blob, record), leaving.tids)
            execute(self.session.kernel, self.session.code, record, (), held)
        except KwhyError:
            return
        if time.monotonic() - begun < HOLD_OTHERS:
            kept = Kept(
                record.tid, record.exit, score, leaving.pid, leaving.tids, evidence.moment()
            )
            self.kept.append(kept)

    def _likeliest(self, leaving: Leaving) -> tuple[float, SyscallRecord]:
        session = self.session
        recording = read_recording(
            leaving.so_far,
            session.evidence.blob,
            session.kernel.symbols,
            session.code,
            session.kernel.prefetch,
        )
        for item in rank(recording, syscall=self.syscall, errno=self.errno):
            task = recording.tasks.get(item.tid)
            inside = leaving.ends and task is not None and task.pid == leaving.pid
            if item.tid in leaving.tids or inside:
                record = recording.syscall(item.index)
                if record.entry is not None:
                    return item.score, record
                break
        raise NothingToExplain("none of its failures can be executed")

    def choose(self) -> None:
        """At the end: back to the memory of the call that is to be explained, if it was put by."""
        if not self.kept:
            return
        evidence = self.session.evidence
        assert isinstance(evidence, LiveEvidence)
        index = len(evidence.rounds) - 1
        extra = evidence.rounds[index].extra
        try:
            record = call_in(self.session, index)
            if record is not None and record.pid == extra.get("held"):
                self.kept = [kept for kept in self.kept if kept.is_of(record)]
            for kept in reversed(self.kept):
                extra["held_for"] = [kept.tid, kept.exit]
                record = call_in(self.session, index)
                if record is not None and kept.is_of(record):
                    evidence.go_back(kept.moment)
                    extra["held"] = kept.pid
                    extra["held_tasks"] = list(kept.tasks)
                    break
                del extra["held_for"]
        except NothingToExplain:
            return
        if record is not None:
            keep_user(evidence, index, record.tid)
