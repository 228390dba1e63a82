"""Kernels for the tests of the flow analysis: recorded pieces of real ones, and toys of few bytes.

What is recorded, and how to do it again: ``data/flow/record.py``.
"""

import base64
import functools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kwhy import arch as architectures
from kwhy.diagnose import analysis
from kwhy.flow.cfg import Code, base_name
from kwhy.flow.decide import Passing
from kwhy.flow.explore import Exploration, Explorer, Observation, entry_state
from kwhy.flow.origin import Finding, Tracer
from kwhy.kernel.types import Prototype, TypeRef
from kwhy.record.model import Call, ProbeHit, SyscallRecord

DATA = Path(__file__).with_name("data") / "flow"
ARCH = architectures.of("x86_64")
TOY = 0xFFFF_FFFF_8100_0000
GAP = 0x1000
BOOL, INT = TypeRef("test", "bool"), TypeRef("test", "int")


@dataclass(frozen=True)
class Named:
    """A symbol."""

    name: str
    address: int
    size: int


@dataclass(frozen=True)
class Fixup:
    """An entry of the exception table."""

    insn: int
    fixup: int
    kind: str = "fault"
    register: str | None = None
    imm: int | None = None


@dataclass
class Machine:
    """A kernel made of pieces: what `kwhy.flow` and `kwhy.diagnose.analysis` ask of one.

    ``arity`` and ``booleans`` stand for debug information: the number of a function's parameters,
    and the functions that return a truth value. There are no lines.
    """

    trace_sites: ClassVar[frozenset[int] | None] = None
    memory: dict[int, bytes]
    named: list[Named]
    faults: list[Fixup] = field(default_factory=list)
    arity: dict[str, int] = field(default_factory=dict)
    booleans: set[str] = field(default_factory=set)
    arch: str = "x86_64"

    @property
    def symbols(self) -> "Machine":
        """This object itself."""
        return self

    @property
    def types(self) -> "Machine":
        """This object itself."""
        return self

    @property
    def vmlinux(self) -> "Machine":
        """This object itself."""
        return self

    def variants(self, name: str) -> list[int]:
        """Which of the symbols are a function's."""
        return [i for i, symbol in enumerate(self.named) if base_name(symbol.name) == name]

    def at(self, address: int) -> Named | None:
        """The symbol that contains an address."""
        for symbol in self.named:
            if symbol.address <= address < symbol.address + max(symbol.size, 1):
                return symbol
        return None

    def code(self, address: int, size: int) -> bytes:
        """Memory; behind a piece there are 4 KiB of zeros."""
        for start, data in self.memory.items():
            if start <= address < start + len(data):
                return data[address - start : address - start + size].ljust(size, b"\0")
        raise LookupError(f"nothing at {address:#x}")

    def prefetch(self, _ranges: list[tuple[int, int]]) -> None:
        """All is here."""

    def exception_table(self, start: int, end: int) -> Sequence[Fixup]:
        """The entries of a range of code."""
        return [entry for entry in self.faults if start <= entry.insn < end]

    def prototype(self, function: str | int) -> Prototype | None:
        """Of a function whose arity is known, by name or address."""
        if isinstance(function, int):
            symbol = self.at(function)
            function = symbol.name if symbol else ""
        result = BOOL if function in self.booleans else INT
        if function not in self.arity and function not in self.booleans:
            return None
        params = tuple((f"a{i}", INT) for i in range(self.arity.get(function, 6)))
        return Prototype(params, result)

    def is_bool(self, type: TypeRef) -> bool:
        """Whether a result is a truth value."""
        return type == BOOL

    def frames(self, _address: int) -> list[Any]:
        """No debug information."""
        return []


def toy(faults: Sequence[Fixup] = (), **functions: str) -> Machine:
    """A kernel of functions given in hex, ``GAP`` bytes apart from ``TOY`` on.

    ``@NAME`` is the distance to another function in 4 bytes, ``=NAME+OFFSET`` its address in 8.
    """
    places = {name: TOY + number * GAP for number, name in enumerate(functions)}
    memory, named = {}, []
    for name, text in functions.items():
        data = b""
        for word in text.split():
            if word[0] == "@":
                far = places[word[1:]] - (places[name] + len(data) + 4)
                data += far.to_bytes(4, "little", signed=True)
            elif word[0] == "=":
                other, _, offset = word[1:].partition("+")
                data += (places[other] + int(offset or "0", 16)).to_bytes(8, "little")
            else:
                data += bytes.fromhex(word)
        memory[places[name]] = data
        named.append(Named(name, places[name], len(data)))
    return Machine(memory, named, list(faults))


def explored(
    machine: Machine, observed: Observation = (), function: int = TOY, **more: Any
) -> tuple[Explorer, Exploration]:
    """A frame of ``function``, explored under an observation."""
    code = Code(machine, ARCH)
    explorer = Explorer(code, 1, code.function(function), observed, **more)
    return explorer, explorer.run(entry_state(1))


def results(exploration: Exploration) -> list[Any]:
    """What the explored call can have returned, without repeats."""
    return sorted({node.result for node in exploration.returns}, key=repr)


@dataclass
class Recorded:
    """A failed call of an incident, and the pieces of its kernel."""

    incident: str
    series: str
    machine: Machine
    record: SyscallRecord
    sites: dict[tuple[int, bool], tuple[str, str, bool]]
    passed: dict[tuple[int, bool], Passing]
    oracle: bool

    @property
    def entry(self) -> Call:
        """The system call's own function."""
        assert self.record.entry is not None
        return self.record.entry

    def named(self, name: str) -> int:
        """The address of a function."""
        return next(s.address for s in self.machine.named if s.name == name)

    def call(self, name: str) -> Call:
        """The first recorded call of a function."""
        return next(c for c in self.entry.walk() if c.function == self.named(name))

    def tracer(self, **more: Any) -> Tracer:
        """A tracer that knows of types and source what was known in truth."""
        code = Code(self.machine, ARCH)

        def count(address: int) -> int | None:
            return self.machine.arity.get(base_name(code.name(address)))

        def boolean(address: int) -> bool:
            return base_name(code.name(address)) in self.machine.booleans

        given: dict[str, Any] = {
            "arity": count,
            "returns_bool": boolean,
            "passing": lambda _f, _n, d, _want: self.passed.get((d.address, d.taken)),
            "oracle": self.oracle,
        }
        return Tracer(code, **(given | more))

    def findings(self, tracer: Tracer | None = None) -> list[Finding]:
        """Where the error was made."""
        return analysis._trace(ARCH, tracer or self.tracer(), self.record, self.entry)

    def answers(self, findings: Sequence[Finding]) -> set[tuple[str, str, bool]]:
        """The deciding branches as (function, condition, whether it was true) of the source."""
        return {self.sites[d.address, d.taken] for f in findings for _, d in f.deciding}


def recorded(name: str) -> Recorded:
    """The case in ``data/flow/NAME.json``."""
    data = json.loads((DATA / f"{name}.json").read_text())
    machine = Machine(
        {int(a, 16): zlib.decompress(base64.b64decode(b)) for a, b in data["code"].items()},
        [Named(n, int(a, 16), s) for n, a, s in data["symbols"]],
        [Fixup(*entry) for entry in data["faults"]],
        data["arity"],
        set(data["booleans"]),
    )
    clock = iter(range(1, 1 << 30))
    entry = _call(data["calls"], clock)
    args = tuple(int(a, 16) for a in data["args"])
    probes: list[ProbeHit] = []
    record = SyscallRecord(
        1, 1, "test", 0, data["syscall"], args, data["ret"], 0, next(clock), [entry], False,
        probes, 0, entry=entry,
    )  # fmt: skip
    sites = {}
    for key, (function, text, truth) in data["sites"].items():
        address, taken = key.split()
        sites[int(address, 16), taken == "True"] = (function, text, truth)
    passed = {(int(a, 16), taken): kind for a, taken, kind in data["passed"]}
    return Recorded(
        data["incident"], data["series"], machine, record, sites, passed, data["oracle"]
    )


def _call(item: list[Any], clock: Any) -> Call:
    function, site, kind, children, _ = item
    call = Call(int(function, 16), int(site, 16) if site else None, next(clock), [], kind)
    for child in children:
        call.children += [_call(child, clock) for _ in range(child[4])]
    return call


@functools.cache
def analysed(name: str) -> tuple[Recorded, Tracer, list[Finding]]:
    """A recorded case with its findings, worked out once for all tests."""
    case = recorded(name)
    tracer = case.tracer()
    return case, tracer, case.findings(tracer)
