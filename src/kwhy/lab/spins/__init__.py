"""Threads that burn a processor inside the kernel in known ways; and the truth about them.

``kwhy_spin.c`` and ``kwhy_wait.c`` are modules: the thread that writes a :class:`Way`'s name to
/proc/kwhy_spin or /proc/kwhy_wait goes that way until somebody writes "release" there.
"""

from dataclasses import dataclass
from pathlib import Path

from kwhy.lab.boot import Settings

MODULE = Path(__file__).with_name("kwhy_spin.c")
CONTROL = "/proc/kwhy_spin"
WAIT_MODULE = Path(__file__).with_name("kwhy_wait.c")
WAIT_CONTROL = "/proc/kwhy_wait"

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

#: What never comes, and what only comes late: a loop whose end hangs on the time, on a counter in a
#: callee or on what is around it must never be called endless.
WAITS = (
    Way("eagain", "endless", "wait_eagain", "err == -EAGAIN", True, decides="wait_try"),
    Way("sequence", "endless", "wait_sequence"),
    Way("exchange", "endless", "wait_exchange", "cmpxchg(&state->flags, old, new) != old", True),
    Way("nested", "endless", "wait_nested", "!READ_ONCE(state->done)", True),
    Way("ready", "endless", "wait_ready", "!(status & 0x80)", True),
    Way("tail", "endless", "wait_behind", "!READ_ONCE(state->done)", True),
    Way("indirect", "endless", "wait_indirect", "state->more(state)", True),
    Way("timeout", "looping", "wait_timeout"),
    Way("jiffies", "looping", "wait_jiffies"),
    Way("clock", "looping", "wait_clock"),
    Way("cycles", "looping", "wait_cycles"),
    Way("drain", "looping", "wait_drain"),
    Way("steps", "looping", "wait_steps"),
    Way("raised", "looping", "wait_raised"),
    Way("odd", "looping", "wait_odd"),
    Way("inner", "looping", "wait_inner"),
    Way("moving", "looping", "wait_moving"),
    Way("guard", "lock", "wait_write_lock"),
    Way("masked", "unknown", "wait_masked"),
)
