"""Watching a thread: what is asked of the target, kept so that a saved case answers the same."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kwhy.case.evidence import JSON, Facts
from kwhy.errors import NothingToExplain, UsageError
from kwhy.record.samples import Sample, decode
from kwhy.verdict.call import CallVerdict


@dataclass(frozen=True, slots=True)
class Seen:
    """What one event gave. ``error``: why the kernel refused it; ``offline``: what passed was not
    seen on the target, but where its code was gone on with offline."""

    samples: list[Sample]
    count: int
    lost: int
    error: str | None
    offline: bool = False

    @property
    def source(self) -> str:
        """What told."""
        return "offline" if self.offline else "breakpoint"


@dataclass(frozen=True, slots=True)
class Look:
    """One period of watching.

    ``before``/``after``: the thread as /proc had it, None: gone; ``running``: other threads that
    were runnable at both ends; ``deaf``: its processor takes no interrupts.
    """

    seen: list[Seen]
    seconds: float
    before: dict[str, Any]
    after: dict[str, Any] | None
    maps: list[str]
    running: list[dict[str, Any]]
    deaf: bool = False

    @property
    def ticks(self) -> int | None:
        """Clock ticks that the thread ran in the kernel meanwhile."""
        if self.after is None:
            return None
        return int(self.after["system_ticks"]) - int(self.before["system_ticks"])

    @property
    def faults(self) -> int | None:
        """Page faults of the thread that were done with meanwhile."""
        if self.after is None or "faults" not in self.before:
            return None
        return int(self.after["faults"]) - int(self.before["faults"])


Take = Callable[[list[JSON], float], tuple[dict[str, Any], dict[int, bytes]]]
"""Watches with events for some seconds: the agent's result, and raw records by event."""
Peek = Callable[[int, int], bytes | None]
"""Reads memory as it is now."""
Resume = Callable[[Sample, Sequence[int]], JSON]
"""Goes on from a sample offline: ``end``; ``counts`` and ``passed`` (registers) by address; ``why``
it ended."""
Decide = Callable[[Sample, int], JSON]
"""Executes offline the call that a sample is at, up to an address: ``end``, ``result``, and what
decided that: ``reads`` by address, ``inputs`` (registers), ``clock``."""
Rounds = Callable[[Sample, int], JSON]
"""Goes round offline from a sample at a loop's head: ``why`` that cannot be, else what it asks for:
``memory`` that it writes too, with size and values round by round, ``registers``, ``clock``."""
Run = Callable[[str], tuple[CallVerdict, dict[str, list[int]]]]
"""Runs a call offline, on memory as it is now; with the argument registers of what it called."""


@dataclass(frozen=True, slots=True)
class Live:
    """What can be asked of a live target; the last four execute offline, on memory as it is now.
    ``run`` is None when nobody asked for that."""

    take: Take
    peek: Peek
    resume: Resume
    decide: Decide
    rounds: Rounds
    run: Run | None = None


STARTS = 12  # samples that may be gone on from
ENOUGH, AT_LEAST = 3, 2  # of them, that could have gone on further
TORN = frozenset({"fault", "exception", "unsupported"})
"""Ends of a run whose registers and stack are not of the same moment."""


class Keeper(Protocol):
    """Evidence that keeps what it is given."""

    facts: Facts
    blobs: dict[str, bytes | None]

    def blob(self, name: str) -> bytes | None: ...


class Watcher:
    """Asks the live target, or the case (``live`` None)."""

    def __init__(
        self, evidence: Keeper, registers: dict[str, int], live: Live | None = None
    ) -> None:
        self.evidence = evidence
        self.names = sorted(registers, key=lambda name: registers[name])
        self.mask = sum(1 << bit for bit in registers.values())
        self.live = live
        self.number = 0
        self.forbidden: str | None = None
        self.refused: str | None = None
        """Why the kernel refused a breakpoint."""
        self.its_own: Callable[[Sample], bool] = lambda sample: True
        """Whether a hit is the thread's own, not that of an interrupt on top of it."""
        self.starts: list[Sample] = []
        """Samples that can be gone on from offline, where no breakpoint can be set."""

    def clock(self, period: int, seconds: float) -> Look:
        """Samples every ``period`` ns of running, with call chains."""
        event: dict[str, JSON] = {
            "kind": "clock", "period": period, "registers": self.mask, "chain": True,
        }  # fmt: skip
        return self._look([event], seconds)

    def breakpoints(self, addresses: Sequence[int], seconds: float) -> dict[int, Seen]:
        """What passed at each address, at most four at a time (the processor has no more).

        None is set while ``forbidden`` says why not. What cannot be watched on the target is
        watched where its code is gone on with offline, if that can be.
        """
        out = {address: Seen([], 0, 0, self.forbidden) for address in addresses}
        if self.forbidden is None:
            out = self.live_breakpoints(addresses, seconds)
        missing = [address for address in addresses if out[address].error is not None]
        self.refused = out[missing[0]].error if missing else self.refused
        out.update(self._offline(missing) if missing else {})
        return out

    def live_breakpoints(
        self, addresses: Sequence[int], seconds: float, chain: bool = False
    ) -> dict[int, Seen]:
        """The same on the target alone, if asked with call chains."""
        out: dict[int, Seen] = {}
        for start in range(0, len(addresses), 4):
            batch = list(addresses[start : start + 4])
            more: dict[str, JSON] = {"chain": True} if chain else {}
            events: list[JSON] = [
                {"kind": "breakpoint", "address": address, "registers": self.mask, **more}
                for address in batch
            ]
            out.update(zip(batch, self._look(events, seconds).seen, strict=True))
        return out

    def _offline(self, addresses: Sequence[int]) -> dict[int, Seen]:
        """What passes at each address when the thread is gone on with from its samples.

        Nothing if it would sleep there, or if hardly one of the samples fits the memory.
        """
        runs: list[tuple[Sample, Any]] = []
        for start in self.starts:
            if len(runs) == ENOUGH:
                break
            key = f"resume/{self.number}"
            self.number += 1
            if self.live is not None:
                self.evidence.facts.extra[key] = self.live.resume(start, addresses)
            kept: Any = self.evidence.facts.extra.get(key)
            if not isinstance(kept, dict) or kept["end"] not in (*TORN, "bound"):
                return {}
            if kept["end"] == "bound":
                runs.append((start, kept))
        if len(runs) < AT_LEAST:
            self.starts = []  # they will fit no better the next time
            return {}
        out = {}
        for address in addresses:
            samples = [
                replace(start, address=address, chain=(), registers=registers)
                for start, kept in runs
                for registers in kept["passed"][str(address)]
            ]
            count = sum(kept["counts"][str(address)] for _, kept in runs)
            out[address] = Seen(samples, count, 0, None, offline=True)
        return out

    def memory(self, address: int, size: int) -> list[int]:
        """Values of a number in memory, read as often as it was asked for while the target lived;
        [] when it cannot be read."""
        key = f"peeks/{address:x}+{size}"
        kept = self.evidence.facts.extra.setdefault(key, [])
        assert isinstance(kept, list)
        if self.live is not None:
            data = self.live.peek(address, size)
            if data is not None and len(data) == size:
                kept.append(int.from_bytes(data, "little"))
        return [value for value in kept if isinstance(value, int)]

    def inside(
        self, call: str, right: Callable[[str], bool], attempts: int
    ) -> tuple[CallVerdict, dict[str, list[int]]] | None:
        """What a call gives offline, a ``right`` result if one of some attempts gives it; with the
        arguments of each function's last call by it. None if it cannot be made."""
        key = f"inside/{call}"
        run = self.live.run if self.live is not None else None
        for _ in range(attempts if run is not None else 0):
            assert run is not None
            try:
                found, entered = run(call)
            except UsageError:
                return None
            self.evidence.facts.extra[key] = {
                "verdict": found.to_json(),
                "entered": json.loads(json.dumps(entered)),
            }
            if found.ret is not None and right(found.ret.value):
                break
        kept: Any = self.evidence.facts.extra.get(key)
        if not isinstance(kept, dict):
            return None
        return CallVerdict.from_json(kept["verdict"]), kept["entered"]

    def decided(
        self, calls: Sequence[Sample], site: int, right: Callable[[int], bool]
    ) -> list[tuple[Sample, Any]]:
        """What decides a call's result: each of ``calls`` (samples at its instruction) made offline
        on memory of its own moment, as far as it comes to ``site`` with a ``right`` result."""
        out = []
        for call in calls:
            key = f"decide/{self.number}"
            self.number += 1
            if self.live is not None:
                self.evidence.facts.extra[key] = self.live.decide(call, site)
            kept: Any = self.evidence.facts.extra.get(key)
            if isinstance(kept, dict) and kept["end"] == "returned" and right(kept["result"]):
                out.append((call, kept))
        return out

    def own(self, heads: Sequence[Sample]) -> Any:
        """What a loop asks for that it changes itself, by the first sample at its head that it can
        be gone round from; None if there is none."""
        for number, head in enumerate(heads):
            key = f"rounds/{head.address}/{number}"
            if self.live is not None:
                self.evidence.facts.extra[key] = self.live.rounds(head, head.address)
            kept: Any = self.evidence.facts.extra.get(key)
            if isinstance(kept, dict) and kept["why"] is None:
                return kept
        return None

    def _look(self, events: list[JSON], seconds: float) -> Look:
        key = f"watch/{self.number}"
        self.number += 1
        asked = json.loads(json.dumps(events))
        if self.live is not None:
            result, records = self.live.take(events, seconds)
            self.evidence.facts.extra[key] = {"asked": asked, "result": result}
            for index, data in records.items():
                self.evidence.blobs[f"{key}/{index}"] = data
        kept = self.evidence.facts.extra.get(key)
        if not isinstance(kept, dict) or kept.get("asked") != asked:
            missing = Seen([], 0, 0, "the case does not hold this")
            return Look([missing] * len(events), 0.0, {}, None, [], [])
        look = self._decode(key, events, kept["result"])
        if look.after is None:
            raise NothingToExplain(f"thread {look.before['tid']} ended while it was watched")
        return look

    def _decode(self, key: str, events: list[JSON], result: Any) -> Look:
        seen = []
        for index, (event, counts) in enumerate(zip(events, result["events"], strict=True)):
            assert isinstance(event, dict)
            data = self.evidence.blob(f"{key}/{index}") or b""
            samples = decode(data, bool(event.get("chain")), self.names)
            count = int(counts["count"])
            if event["kind"] == "breakpoint":
                own = [sample for sample in samples if self.its_own(sample)]
                count, samples = count - (len(samples) - len(own)), own
            seen.append(Seen(samples, count, int(counts["lost"]), counts.get("error")))
        return Look(
            seen, float(result["seconds"]), result["before"], result["after"], result["maps"],
            result["running"], bool(result.get("deaf")),
        )  # fmt: skip


def value(text: str) -> int | None:
    """The number behind a value as it is shown: "0x0", "-16", "false"."""
    word = text.split()[0] if text.split() else ""
    if word in ("true", "false"):
        return int(word == "true")
    try:
        return int(word, 0)
    except ValueError:
        return None
