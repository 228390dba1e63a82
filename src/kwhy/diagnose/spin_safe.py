"""Whether a breakpoint can be set without waiting for the very thread that never lets go."""

from kwhy.diagnose.spin_watch import Look, Watcher
from kwhy.flow.cfg import Code
from kwhy.kernel.model import Kernel

PERIOD = 10_000_000  # ns between samples that only pass the time
LOOKS, SECONDS = 3, 0.2  # a grace period takes some 10 to 100 ms

NONE_ENDS = (
    "no breakpoint is set: that waits for an RCU grace period, and while the thread spins none ends"
)
MAY_NOT_END = (
    "no breakpoint is set: that waits for an RCU grace period, and on this kernel a thread that "
    "gives nobody else the processor can hold one up for good"
)


def forbidden(kernel: Kernel, code: Code, watcher: Watcher, look: Look) -> str | None:
    """Why no breakpoint may be set while the watched thread spins, None if one may.

    Setting a breakpoint on a processor takes ``bp_cpuinfo_sem`` to write where a kernel has it
    (bp_constraints_lock() in kernel/events/hw_breakpoint.c), which waits for a grace period. So one
    has to be seen to end: closing the event of each look here makes RCU begin one. ``look`` is the
    first one at the thread.
    """
    if kernel.symbols.address("bp_cpuinfo_sem") is None:
        return None
    if _softirqs_wait(kernel, code) and not _shares(look):
        return MAY_NOT_END
    state = kernel.symbols.address("rcu_state")
    kind = kernel.types.named("struct rcu_state")
    field = kernel.types.field(kind, "gp_seq") if kind is not None else None
    if state is None or field is None:
        return NONE_ENDS
    periods: list[int] = []
    for _ in range(LOOKS):
        watcher.clock(PERIOD, SECONDS)
        periods = watcher.memory(state + field.offset, 8)
    # The two lowest bits tell whether one is under way (kernel/rcu/rcu.h).
    return None if periods and periods[-1] >> 2 > periods[0] >> 2 else NONE_ENDS


def _softirqs_wait(kernel: Kernel, code: Code) -> bool:
    """Whether softirqs, RCU's among them, are left to ksoftirqd once that was woken.

    It then waits for a processor that it never gets: ksoftirqd_running() in kernel/softirq.c, which
    asks __kthread_should_park(), until d15121be7485 (6.5).
    """
    for name in ("__irq_exit_rcu", "irq_exit_rcu"):
        for symbol in kernel.symbols.named(name, modules=False):
            targets = (s.target for s in code.function(symbol.address).segments.values())
            called = {code.name(code.resolve(each)) for each in targets if each is not None}
            if "__kthread_should_park" in called:
                return True
    return False


def _shares(look: Look) -> bool:
    """Whether others got the processor while the thread was watched."""
    if look.after is None:
        return True
    return any(look.after[key] > look.before[key] for key in ("switches", "preempted"))
