"""How long a task has slept, and how long it has existed: who was there before whom."""

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.memory import MASK, Memory

_CPUS = 8192  # no kernel is built for more
_SLACK = 10**9  # ns: both clocks move on in ticks


class Ages:
    """Ages in ns by two of the kernel's clocks, each compared only with itself."""

    def __init__(self, memory: Memory) -> None:
        self._m = memory
        self._known: dict[tuple[int, int], bool] = {}

    def younger(self, task: int, sleeper: int) -> bool:
        """Whether ``task`` was certainly made after ``sleeper`` had fallen asleep."""
        if (task, sleeper) not in self._known:
            self._known[task, sleeper] = self._younger(task, sleeper)
        return self._known[task, sleeper]

    def _younger(self, task: int, sleeper: int) -> bool:
        try:
            age, slept = self._age(task), self._slept(sleeper)
        except (MissingMemory, LookupError, ValueError):
            return False
        # The clock of the run queues is not disciplined as the other one is: adjtimex(2).
        return 0 <= age and age + _SLACK + slept // 1000 < slept

    def _age(self, task: int) -> int:
        """Since copy_process(): CLOCK_MONOTONIC, which stands at the latest tick."""
        m = self._m
        return m.u64(m.symbol("tick_next_period")) - m.value(
            "struct task_struct", task, "start_time"
        )

    def _slept(self, task: int) -> int:
        """Since it gave up its CPU, not counting that CPU's interrupts nor its present idleness."""
        m, kind = self._m, "struct task_struct"
        cpu = m.value(kind, task, m.first(kind, "thread_info.cpu", "cpu"))
        since = m.value(kind, task, "se.exec_start")
        return m.value("struct rq", _queue(m, cpu), "clock_task") - since if since else 0


def newest_clock(m: Memory) -> int:
    """The newest clock of any CPU's run queue, in ns as ``Task.seen``; 0 if not known."""
    try:
        count = m.u64(m.symbol("nr_cpu_ids")) & 0xFFFFFFFF
        return max(
            m.value("struct rq", _queue(m, cpu), "clock") for cpu in range(min(count, _CPUS))
        )
    except (MissingMemory, LookupError, ValueError):
        return 0


def _queue(m: Memory, cpu: int) -> int:
    """The address of a CPU's run queue; raises LookupError, MissingMemory, ValueError."""
    symbols = m.kernel.symbols.percpu
    named = symbols.named("runqueues")
    base = symbols.symbol(named[0]).address if named else m.symbol("runqueues")
    return base + m.u64(m.symbol("__per_cpu_offset") + 8 * cpu) & MASK
