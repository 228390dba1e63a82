"""One look at all tasks: who they are, where they stand, what they provably wait for."""

from dataclasses import dataclass, field

from kwhy.diagnose.hang.ages import newest_clock
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.ends import Ends
from kwhy.diagnose.hang.kinds import Recognisers
from kwhy.diagnose.hang.locks import Locks
from kwhy.diagnose.hang.look import Look
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.stacks import Stack, StackReader
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
    reader = StackReader(memory)
    # Idle workers say nothing; a user's thread sleeps so until the core of its process is dumped.
    everybody = tasks.by_address.values()
    sleeping = [task for task in everybody if task.asleep and not (task.idle and task.kthread)]
    reader.prefetch(sleeping)
    stacks = {task.address: reader.stack(task) for task in sleeping}
    user = UserMemory(memory)
    locks = Locks(memory, tasks, stacks)
    now = newest_clock(memory)
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
