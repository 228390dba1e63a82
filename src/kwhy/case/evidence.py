"""What an explanation reads: one interface over a live target and a saved case.

Analysis never knows whether the bytes come from an agent, from a ``.kwhy`` file or from a bare
kernel image: it asks an :class:`Evidence`.  Whatever was asked for while the target was alive is
what ``save`` writes, so the same questions have the same answers later.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kwhy.errors import KwhyError

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

PAGE = 4096
"""Memory is kept in pages of this many bytes, whatever the target's page size."""


class MissingMemory(KwhyError):
    """Kernel memory at ``address`` (an int) cannot be read, or is not part of the saved case."""

    exit_code = 3

    def __init__(
        self, address: int, why: str = "it is not readable, or not part of the case"
    ) -> None:
        super().__init__(f"no kernel memory at {address:#x}: {why}")
        self.address = address
        self.why = why


@dataclass
class Facts:
    """What is known of the target and the question, small enough for the manifest.

    ``hello`` is the agent's own greeting (version, feature probe, kernel identity), ``question``
    what the user asked (verb, options, command line), so that ``kwhy explain`` asks the same.
    """

    release: str = ""
    build_id: str = ""
    arch: str = "x86_64"
    target: str = ""
    hello: dict[str, JSON] = field(default_factory=dict)
    question: dict[str, JSON] = field(default_factory=dict)
    extra: dict[str, JSON] = field(default_factory=dict)


@dataclass
class Round:
    """One recording: a command (or a followed pid) run once under one set of probes.

    ``pages`` holds, per CPU, raw trace pages concatenated (each ``page_size`` bytes); ``lost`` the
    events the kernel dropped per CPU; ``formats`` the names of the blobs that describe the events;
    ``tails`` the end of what the command wrote (``{"out": ..., "err": ...}``).
    """

    command: list[str] = field(default_factory=list)
    pages: dict[int, bytes] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    page_size: int = PAGE
    formats: list[str] = field(default_factory=list)
    probes: list[JSON] = field(default_factory=list)
    status: int | None = None
    tasks: list[JSON] = field(default_factory=list)
    tails: dict[str, str] = field(default_factory=dict)
    extra: dict[str, JSON] = field(default_factory=dict)


@runtime_checkable
class Evidence(Protocol):
    """The one source of facts for ``record``, ``kernel``, ``flow`` and ``diagnose``."""

    facts: Facts
    rounds: list[Round]

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of kernel memory; raises :class:`MissingMemory`."""
        ...

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch ``(address, size)`` ranges in one go; what cannot be read is silently absent."""
        ...

    def blob(self, name: str) -> bytes | None:
        """A named binary fact of the target ("btf/vmlinux", "kallsyms"), None if it has none."""
        ...

    def derived(self, name: str, compute: Callable[[], bytes | None]) -> bytes | None:
        """A binary fact worked out at the desk (a symbol table): computed once, then remembered."""
        ...

    def answer(self, key: str, compute: Callable[[], JSON]) -> JSON:
        """A JSON fact worked out from desk-side debug info or source text, computed once."""
        ...
