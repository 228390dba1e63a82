"""A search that was stopped, in a file, to go on from: see :mod:`kwhy.emulate.search`.

A zip of three parts: ``search.json`` (what was searched, how far), ``seen`` (digests of states, 16
bytes each) and ``states`` (those still to be expanded: how they were reached, what they changed).
Reading one is safe whatever it contains: sizes are checked, nothing becomes a path or code.
"""

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kwhy.emulate.memory import State
from kwhy.errors import InputError

SCHEMA = "kwhy.search/1"
DIGEST = 16
_MAX_PART = 1 << 32
_MAX_JSON = 1 << 20
_HEAD = struct.Struct("<III")

_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError,
    RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
)  # fmt: skip

Steps = tuple[str, ...]


@dataclass(slots=True)
class Progress:
    """How far a search is. ``levels``: new states by depth; ``left``: states of the last level that
    are still to be expanded; ``stopped``: reasons with counts."""

    states: int = 1
    transitions: int = 0
    levels: list[int] = field(default_factory=lambda: [1])
    left: int = 0
    stopped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Transitions per second."""
        return self.transitions / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Checkpoint:
    """Where a search is: ``todo`` are states at depth ``level - 1``, ``after`` those of ``level``
    found so far, ``bad`` the bad ones among them with the reason."""

    level: int = 1
    seen: set[bytes] = field(default_factory=set)
    todo: list[tuple[Steps, State]] = field(default_factory=list)
    after: list[tuple[Steps, State]] = field(default_factory=list)
    bad: list[tuple[Steps, str]] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)


def digest(key: Hashable) -> bytes:
    """What stands for a state: equal for equal states, in every process and every run."""
    text = repr(key)
    if "z" in text and "frozenset" in text:  # its order differs between runs
        text = repr(_ordered(key))
    return hashlib.blake2b(text.encode(), digest_size=DIGEST).digest()


def _ordered(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_ordered, key))
    if isinstance(key, frozenset):
        return ("frozenset", *sorted(map(_ordered, key), key=repr))
    return key


def save(
    path: Path, point: Checkpoint, operations: Sequence[str], identity: dict[str, str]
) -> None:
    """Write a search, in place of what was there. ``identity``: what has to be the same again."""
    number = {name: bytes([at]) for at, name in enumerate(operations)}
    progress = point.progress
    head = {
        "schema": SCHEMA, "identity": identity, "operations": list(operations),
        "level": point.level, "todo": len(point.todo), "levels": progress.levels,
        "transitions": progress.transitions, "stopped": progress.stopped,
        "seconds": progress.seconds,
    }  # fmt: skip
    whys = dict(point.bad)
    states = bytearray()
    for steps, state in (*point.todo, *point.after):
        why = whys.get(steps, "").encode()
        states += _HEAD.pack(len(steps), len(why), len(state))
        states += b"".join(number[step] for step in steps) + why + state
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("search.json", json.dumps(head))
        archive.writestr("seen", b"".join(sorted(point.seen)))
        archive.writestr("states", bytes(states))
    part.chmod(0o600)  # it holds kernel memory
    part.replace(path)


def load(path: Path, operations: Sequence[str], identity: dict[str, str]) -> Checkpoint:
    """Read a search. Raises InputError for a damaged file, or one of another search."""
    try:
        with zipfile.ZipFile(path) as archive:
            head = json.loads(_part(archive, "search.json", _MAX_JSON))
            seen = _part(archive, "seen", _MAX_PART)
            states = _part(archive, "states", _MAX_PART)
        if head["schema"] != SCHEMA:
            raise ValueError("an unknown schema")
        for what, value in {**identity, "operations": list(operations)}.items():
            known = head["operations"] if what == "operations" else head["identity"][what]
            if known != value:
                raise InputError(f"{path}: was made by another search: its {what} is not this one")
        progress = Progress(
            len(seen) // DIGEST, int(head["transitions"]), [int(n) for n in head["levels"]], 0,
            {str(why): int(n) for why, n in head["stopped"].items()}, float(head["seconds"]),
        )  # fmt: skip
        point = Checkpoint(int(head["level"]), progress=progress)
        if len(seen) % DIGEST or point.level != len(progress.levels):
            raise ValueError("its parts do not agree")
        point.seen = {seen[at : at + DIGEST] for at in range(0, len(seen), DIGEST)}
        _states(point, states, operations, int(head["todo"]))
    except _DAMAGE as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: no search can go on from it: {why}") from error
    return point


def _part(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > limit or info.file_size > 2000 * max(info.compress_size, 1):
        raise ValueError(f"{name} is too large")
    return archive.read(info)


def _states(point: Checkpoint, data: bytes, operations: Sequence[str], todo: int) -> None:
    at = count = 0
    while at < len(data):
        steps, why, state = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + steps + why + state > len(data) or state % 8:
            raise ValueError("a state is cut off")
        path = tuple(operations[n] for n in data[at : at + steps])
        at += steps
        if why:
            point.bad.append((path, data[at : at + why].decode()))
        at += why
        (point.todo if count < todo else point.after).append((path, data[at : at + state]))
        at += state
        count += 1
