"""Threads that burn a processor inside the kernel in known ways; and the truth about them.

``kwhy_spin.c`` is a module: the thread that writes a :class:`Way`'s name to /proc/kwhy_spin goes
that way until somebody writes "release" there.
"""

from dataclasses import dataclass
from pathlib import Path

from kwhy.lab.guest import Settings

MODULE = Path(__file__).with_name("kwhy_spin.c")
CONTROL = "/proc/kwhy_spin"

#: Two processors, of which nothing but what is put there runs on the second.
SETTINGS = Settings(cpus=2, append="isolcpus=1 irqaffinity=0")
ON_ITS_OWN = ("taskset", "-c", "1")


@dataclass(frozen=True, slots=True)
class Way:
    """How a thread spins.

    ``function`` holds the loop; ``condition`` is the source condition that keeps it going and
    ``always`` what that is; ``decides`` the callee whose result it hangs on.
    """

    name: str
    state: str
    function: str
    condition: str | None = None
    always: bool | None = None
    decides: str | None = None


WAYS = (
    Way("plain", "endless", "spin_plain", "!READ_ONCE(state->done)", True),
    Way(
        "resched",
        "endless",
        "spin_resched",
        "READ_ONCE(state->taken) < READ_ONCE(state->pending)",
        True,
    ),
    Way(
        "masked",
        "endless",
        "spin_masked",
        "!spin_queue_empty(queue)",
        True,
        decides="spin_queue_empty",
    ),
    Way("circle", "endless", "spin_circle", "list_for_each_entry(item, items, node)", True),
    Way("slow", "slow", "spin_slow", "number < todo", True),
    Way("lock", "lock", "spin_lock_dead"),
)
