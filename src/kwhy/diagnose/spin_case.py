"""What the parts of an answer about a spinning thread share."""

from dataclasses import dataclass, field, replace
from typing import Any

from kwhy.diagnose.spin_watch import Watcher
from kwhy.flow.cfg import Code
from kwhy.kernel.model import Kernel
from kwhy.verdict.spin import Spin


@dataclass(slots=True)
class Case:
    """Who is asked, and the answer so far: ``base``, to which ``notes`` come."""

    kernel: Kernel
    code: Code
    watcher: Watcher
    base: Spin
    notes: list[str] = field(default_factory=list)

    def answer(self, **parts: Any) -> Spin:
        """The answer with what was found out."""
        notes = tuple(dict.fromkeys([*self.notes, *self.kernel.notes]))
        return replace(self.base, evidence=replace(self.base.evidence, notes=notes), **parts)


def who(case: Case) -> str:
    """The thread in words."""
    thread = case.base.thread
    return f"{thread.comm} (thread {thread.tid})"
