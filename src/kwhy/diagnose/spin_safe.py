"""Whether a breakpoint can be set without waiting for the very thread that never lets go."""

from kwhy.diagnose.spin_watch import Watcher
from kwhy.kernel.model import Kernel

PERIOD = 10_000_000  # ns between samples that only pass the time
LOOKS, SECONDS = 3, 0.2  # a grace period takes some 10 to 100 ms

WHY = (
    "no breakpoint is set: that waits for an RCU grace period, and while the thread spins none ends"
)


def forbidden(kernel: Kernel, watcher: Watcher) -> str | None:
    """Why no breakpoint may be set while the watched thread spins, None if one may.

    Setting a breakpoint on a processor takes ``bp_cpuinfo_sem`` to write where a kernel has it
    (bp_constraints_lock() in kernel/events/hw_breakpoint.c), which waits for a grace period. So one
    has to be seen to end: closing the event of each look here makes RCU begin one.
    """
    if kernel.symbols.address("bp_cpuinfo_sem") is None:
        return None
    state = kernel.symbols.address("rcu_state")
    kind = kernel.types.named("struct rcu_state")
    field = kernel.types.field(kind, "gp_seq") if kind is not None else None
    if state is None or field is None:
        return WHY
    periods: list[int] = []
    for _ in range(LOOKS):
        watcher.clock(PERIOD, SECONDS)
        periods = watcher.memory(state + field.offset, 8)
    # The two lowest bits tell whether one is under way (kernel/rcu/rcu.h).
    return None if periods and periods[-1] >> 2 > periods[0] >> 2 else WHY
