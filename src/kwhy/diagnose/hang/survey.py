"""One look at all tasks: who they are, where they stand, what they provably wait for."""

from dataclasses import dataclass, field

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.ends import Ends
from kwhy.diagnose.hang.kinds import Recognisers
from kwhy.diagnose.hang.locks import Locks
from kwhy.diagnose.hang.look import Look
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.stacks import Stack, Unwinder
from kwhy.diagnose.hang.tasks import Task, Tasks
from kwhy.diagnose.hang.user import UserMemory


@dataclass(slots=True)
class Survey:
    """What one look gave. ``claims`` by task address; ``now`` in ns of the scheduler's clock."""

    memory: Memory
    tasks: Tasks
    stacks: dict[int, Stack]
    claims: dict[int, Claim]
    user: UserMemory
    now: int
    look: Look
    notes: list[str] = field(default_factory=list)

    def task(self, address: int) -> Task:
        """The task at an address; raises KeyError."""
        return self.tasks.by_address[address]


def survey(memory: Memory) -> Survey:
    """Look at everything once. Raises MissingMemory, LookupError when not even tasks are found."""
    tasks = Tasks(memory)
    unwinder = Unwinder(memory)
    sleeping = [task for task in tasks.by_address.values() if task.asleep and task.state != "I"]
    unwinder.prefetch(sleeping)
    stacks = {task.address: unwinder.stack(task) for task in sleeping}
    user = UserMemory(memory)
    locks = Locks(memory, tasks, stacks)
    now = _now(memory)
    look = Look(memory, tasks, stacks, locks, user, Ends(memory, tasks), now)
    recognisers = Recognisers(look)
    claims = {}
    for address, stack in stacks.items():
        claim = recognisers.claim(stack)
        if claim is not None:
            claims[address] = claim
    found = Survey(memory, tasks, stacks, claims, user, now, look)
    if tasks.torn:
        found.notes.append(f"{tasks.torn} tasks changed while they were read and were left out")
    return found


def _now(memory: Memory) -> int:
    """The newest clock of any CPU's run queue, in the unit of ``Task.seen``."""
    kernel = memory.kernel
    try:
        offsets = memory.symbol("__per_cpu_offset")
        queues = kernel.symbols.percpu.named("runqueues")
        if queues:
            base = kernel.symbols.percpu.symbol(queues[0]).address
        else:
            base = memory.symbol("runqueues")
        clock = memory.offset("struct rq", "clock")
        count = memory.u64(memory.symbol("nr_cpu_ids")) & 0xFFFFFFFF
        return max(
            memory.u64((base + memory.u64(offsets + 8 * cpu) + clock) & (1 << 64) - 1)
            for cpu in range(min(count, 8192))
        )
    except (MissingMemory, LookupError, ValueError):
        return 0
