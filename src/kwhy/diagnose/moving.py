"""A target that goes on while it is read: what its pages say of each other can be torn."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from kwhy.kernel.model import Kernel


@runtime_checkable
class Moving(Protocol):
    """Evidence of a target that goes on (``kwhy.case.live.LiveEvidence``)."""

    pages: dict[int, bytes]

    def reread(self, keep: Callable[[int], bool]) -> None: ...


def reread(kernel: Kernel) -> bool:
    """Read all pages but those of code again, in one request; whether any is another now.

    False for a target that stands still.
    """
    evidence = kernel.evidence
    if not isinstance(evidence, Moving):
        return False
    start, end = (kernel.symbols.address(name) or 0 for name in ("_stext", "_etext"))
    before = dict(evidence.pages)
    evidence.reread(lambda page: start <= page < end or kernel.module_at(page) is not None)
    return any(evidence.pages.get(page) != data for page, data in before.items())
