"""Whether a breakpoint can be set without waiting for the very thread that never lets go."""

from kwhy.diagnose.spin_watch import Watcher
from kwhy.errors import FATAL, KwhyError
from kwhy.kernel.model import Kernel

PERIOD = 10_000_000  # ns between samples that only pass the time
SECONDS = 0.4  # a grace period takes some 10 to 100 ms
DEPTH = 0xFFFF  # PREEMPT_MASK | SOFTIRQ_MASK, include/linux/preempt.h

WHY = (
    "a breakpoint would never be set: it waits for an RCU grace period, and the thread, which "
    "cannot be preempted, lets none end"
)


class Caution:
    """Looks at RCU while the thread spins.

    Setting a breakpoint on a processor takes ``bp_cpuinfo_sem`` to write where a kernel has it
    (bp_constraints_lock() in kernel/events/hw_breakpoint.c), which waits for a grace period.
    """

    def __init__(self, kernel: Kernel, watcher: Watcher) -> None:
        self.kernel = kernel
        self.watcher = watcher
        self.waits = kernel.symbols.address("bp_cpuinfo_sem") is not None

    def _look(self) -> list[int]:
        """Numbers of RCU's grace periods so far (rcu_state.gp_seq without its state bits)."""
        state = self.kernel.symbols.address("rcu_state")
        kind = self.kernel.types.named("struct rcu_state")
        field = self.kernel.types.field(kind, "gp_seq") if kind is not None else None
        if not self.waits or state is None or field is None:
            return []
        return [value >> 2 for value in self.watcher.memory(state + field.offset, 8)]

    def reason(self, cpu: int) -> str | None:
        """Why no breakpoint may be set on ``cpu``, None if one may."""
        if not self.waits:
            return None
        self._look()
        self.watcher.clock(PERIOD, SECONDS)
        periods = self._look()
        if periods and periods[-1] - periods[0] >= 2:
            return None  # one began and ended while the thread spun
        return None if self._preemptible(cpu) else WHY

    def _preemptible(self, cpu: int) -> bool:
        if "PREEMPT" not in self.kernel.banner:
            return False
        try:
            address = self._count_address(cpu)
        except FATAL:
            raise
        except (KwhyError, LookupError):
            return False
        values = self.watcher.memory(address, 4) + self.watcher.memory(address, 4)
        return any(value & DEPTH == 0 for value in values)

    def _count_address(self, cpu: int) -> int:
        """Where the processor's preemption count is: a variable of its own, or since 6.2
        (64701838bf03) and until 6.15 a member of ``pcpu_hot``."""
        kernel = self.kernel
        for name, member in (("__preempt_count", None), ("pcpu_hot", "preempt_count")):
            inside = 0
            if member is not None:
                kind = kernel.types.named(f"struct {name}")
                field = kernel.types.field(kind, member) if kind is not None else None
                if field is None:
                    continue
                inside = field.offset
            table = kernel.symbols.percpu
            found = table.named(name)
            place = table.symbol(found[0]).address if found else kernel.symbols.address(name)
            offsets = kernel.symbols.address("__per_cpu_offset")
            if place is None or offsets is None:
                continue
            base = int.from_bytes(kernel.evidence.read(offsets + 8 * cpu, 8), "little")
            return base + place + inside & (1 << 64) - 1
        raise LookupError("no preemption count")
