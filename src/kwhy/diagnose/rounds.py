"""All rounds of a case together: which call to explain, and the best round's verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kwhy import arch as architectures
from kwhy.case.capture import user_blob
from kwhy.case.evidence import Evidence, Round
from kwhy.diagnose.again import Held, user_pages
from kwhy.diagnose.analysis import Analysis, probe_addresses, probe_definitions
from kwhy.diagnose.fail import explain_call
from kwhy.errors import InputError, NothingToExplain
from kwhy.flow.cfg import Code
from kwhy.kernel.model import Kernel, open_kernel
from kwhy.record.model import SyscallRecord
from kwhy.record.rank import Ranked, rank
from kwhy.record.recording import Recording, read_recording
from kwhy.verdict import Evidence as Account
from kwhy.verdict import OtherFailure, Verdict
from kwhy.verdict.common import doubt

MAX_OTHERS = 12
MAX_SCAN = 200


@dataclass(slots=True)
class Session:
    """What is kept from round to round: the kernel, its code, the question."""

    evidence: Evidence
    kernel: Kernel
    code: Code
    syscall: str | None = None
    errno: str | None = None
    recordings: dict[int, Recording] | None = None

    def recording(self, index: int) -> Recording:
        """A round, decoded once."""
        if self.recordings is None:
            self.recordings = {}
        if index not in self.recordings:
            self.recordings[index] = read_recording(
                self.evidence.rounds[index],
                self.evidence.blob,
                self.kernel.symbols,
                self.code,
                self.kernel.prefetch,
            )
        return self.recordings[index]


def open_session(evidence: Evidence, debuginfo: Any = "auto", source: Any = "auto") -> Session:
    """A session over live or saved evidence."""
    kernel = open_kernel(evidence, debuginfo, source)
    try:
        arch = architectures.of(kernel.arch)
    except KeyError:
        raise InputError(f"kwhy does not know the machine code of {kernel.arch!r} yet") from None
    question = evidence.facts.question
    syscall, errno = question.get("syscall"), question.get("errno")
    return Session(
        evidence,
        kernel,
        Code(kernel, arch),
        syscall if isinstance(syscall, str) else None,
        errno if isinstance(errno, str) else None,
    )


@dataclass(slots=True)
class Answer:
    """A verdict, the analysis behind it, and the probes that would make it surer."""

    verdict: Verdict
    analysis: Analysis
    probes: list[dict[str, Any]]


def answer(session: Session) -> Answer:
    """The verdict over all rounds so far.

    The first round decides which call is explained; later ones, in which probes were armed, are
    searched for the same failure. Raises NothingToExplain when no call failed.
    """
    first = _first(session)
    best = None
    for index in range(len(session.evidence.rounds) - 1, -1, -1):
        found = _in_round(session, index, first)
        if found is None:
            continue
        if best is None or _doubt(found) < _doubt(best):
            best = found
        if best.verdict.confidence == "observed":
            break
    if best is None:
        raise NothingToExplain("the failing call could not be read back from the recording")
    return best


def _first(session: Session) -> tuple[int, Ranked, list[Ranked]]:
    for index in range(len(session.evidence.rounds)):
        ranked = rank(session.recording(index), syscall=session.syscall, errno=session.errno)
        if ranked:
            return index, _chosen(session, index, ranked), ranked
    raise NothingToExplain(_nothing(session))


def _chosen(session: Session, index: int, ranked: list[Ranked]) -> Ranked:
    """The likeliest; of several alike the one that was executed again when its process left."""
    wanted = session.evidence.rounds[index].extra.get("held_for")
    first = ranked[0]
    if wanted is None:
        return first
    ends = session.recording(index).windows.exit
    for item in ranked:
        if (item.score, item.name, item.errno) != (first.score, first.name, first.errno):
            break
        if wanted == [item.tid, int(ends[item.index])]:
            return item
    return first


def _nothing(session: Session) -> str:
    wanted = " ".join(x for x in (session.syscall, session.errno) if x)
    recordings = [session.recording(i) for i in range(len(session.evidence.rounds))]
    total = sum(len(r.windows) for r in recordings)
    failed = sum(len(r.failing) for r in recordings)
    if wanted and failed:
        seen = ", ".join(
            f"{name} {errno}" for (name, errno), _ in recordings[0].counts.most_common(6)
        )
        return f"no call failed as asked ({wanted}); what failed: {seen}"
    return f"no system call failed ({total} were made); nothing to explain"


def _doubt(found: Answer) -> int:
    return doubt(found.verdict.confidence)


def call_in(session: Session, index: int) -> SyscallRecord | None:
    """The call of a round that an answer would be about; None when the round has no such failure.

    Raises NothingToExplain when no call failed.
    """
    return _call_in(session, index, _first(session))


def _call_in(
    session: Session, index: int, first: tuple[int, Ranked, list[Ranked]]
) -> SyscallRecord | None:
    start, chosen, _ = first
    recording = session.recording(index)
    window = chosen.index
    if index != start:
        base = session.recording(start)
        again = rank(recording, syscall=base.name(window), errno=session.errno or chosen.errno)
        if not again:
            return None
        window = again[0].index
    return recording.syscall(window)


def _in_round(
    session: Session, index: int, first: tuple[int, Ranked, list[Ranked]]
) -> Answer | None:
    start, chosen, ranked = first
    recording = session.recording(index)
    round_ = session.evidence.rounds[index]
    record = _call_in(session, index, first)
    if record is None:
        return None
    probes = _probe_addresses_of(round_)
    verdict, analysis = explain_call(
        session.kernel,
        record,
        code=session.code,
        probes=probes,
        held=held_of(session, index, record),
        traced=bool(round_.command),
        account=_account(session, recording),
        others=_others(session.recording(start), ranked, chosen),
        kmsg=_kmsg(round_),
    )
    wanted = probe_addresses(analysis.findings)
    arch = architectures.of(session.kernel.arch)
    return Answer(verdict, analysis, probe_definitions(arch, wanted))


def held_of(session: Session, index: int, record: SyscallRecord) -> Held | None:
    """What is there of the process that made a call, if it was kept at its exit.

    Only the last round's counts: what changes was read again then.
    """
    rounds = session.evidence.rounds
    extra = rounds[index].extra
    if index != len(rounds) - 1 or extra.get("held") != record.pid:
        return None
    if extra.get("held_for", [record.tid, record.exit]) != [record.tid, record.exit]:
        return None  # the number was another process's
    tasks = extra.get("held_tasks")
    blob = session.evidence.blob(user_blob(index)) or b""
    return Held(
        user_pages(extra.get("user"), blob, record),
        tuple(tid for tid in tasks if isinstance(tid, int)) if isinstance(tasks, list) else (),
    )


def _probe_addresses_of(round_: Round) -> dict[str, int]:
    out = {}
    for probe in round_.probes:
        if isinstance(probe, dict) and probe.get("ok"):
            words = str(probe.get("definition", "")).split()
            if len(words) > 1 and words[1].startswith("0x"):
                out[str(probe.get("name"))] = int(words[1], 16)
    return out


def _account(session: Session, recording: Recording) -> Account:
    rounds = session.evidence.rounds
    probes = []
    for round_ in rounds:
        for probe in round_.probes:
            if isinstance(probe, dict) and probe.get("ok"):
                words = str(probe.get("definition", "")).split()
                if len(words) > 1 and words[1].startswith("0x"):
                    address = int(words[1], 16)
                    symbol = session.kernel.symbols.at(address)
                    probes.append(
                        f"{symbol.name}+{address - symbol.address:#x}" if symbol else words[1]
                    )
    seen = (
        [session.recordings[i] for i in sorted(session.recordings or {})]
        if session.recordings
        else []
    )
    return Account(
        rounds=len(rounds),
        events=sum(len(r.events) for r in seen),
        lost=sum(sum(r.lost.values()) for r in rounds),
        probes=tuple(dict.fromkeys(probes)),
        notes=tuple(dict.fromkeys([*recording.notes, *_round_notes(rounds)])),
    )


def _round_notes(rounds: Sequence[Round]) -> list[str]:
    """What the agent said of the recordings, and what the desk could not keep of them."""
    out = []
    for round_ in rounds:
        notes = round_.extra.get("notes")
        out += [str(note) for note in notes] if isinstance(notes, list) else []
        dropped = round_.extra.get("dropped_pages")
        if dropped:
            out.append(f"the first {dropped} pages of the recording were dropped: it grew too long")
    return out


def _others(recording: Recording, ranked: Sequence[Ranked], chosen: Ranked) -> list[OtherFailure]:
    groups: dict[tuple[str, str], OtherFailure] = {}
    for item in ranked:
        if item is chosen:
            continue
        key = (item.name, item.errno)
        known = groups.get(key)
        groups[key] = (
            replace(known, count=known.count + 1)
            if known
            else OtherFailure(
                syscall=item.name,
                errno=item.errno,
                count=1,
                comm=task.comm if (task := recording.tasks.get(item.tid)) else None,
                why=item.reason,
            )
        )
    return list(groups.values())[:MAX_OTHERS]


def _kmsg(round_: Round) -> list[str]:
    lines = round_.extra.get("kmsg")
    if isinstance(lines, str):
        return [line for line in lines.splitlines() if line]
    if isinstance(lines, list):
        return [str(line) for line in lines][:50]
    return []
