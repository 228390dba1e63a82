"""Tasks that wait for each other in known ways, in a guest; and the truth about them.

``kwhy_hang.c`` is a module that takes locks in the context of whoever asks, ``hang_tasks.c`` the
program that makes the processes. A :class:`Scenario` is a group of processes with what a right
answer has to say of them; all of them can hang in one guest at the same time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kwhy.errors import KwhyError
from kwhy.lab.build import build_module, build_program
from kwhy.lab.kernels import by_release
from kwhy.link import Link

HERE = Path(__file__).parent
MODULE = HERE / "kwhy_hang.c"
PROGRAM = HERE / "hang_tasks.c"

#: The file of the report, whose two locks are taken in opposite order.
FILE = "/opt/myapp/js/fire.js"


@dataclass(frozen=True, slots=True)
class Edge:
    """A process waits for a thing of that kind; ``owners`` hold it, none if nobody can tell.

    ``any_of`` are those who can end it, None: too many to list.
    """

    waiter: str
    kind: str
    owners: tuple[str, ...] = ()
    object: str | None = None
    any_of: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """``tasks`` are arguments of hang_tasks; ``cycles`` and ``possible`` name their members.

    ``gone``: waits for a lock whose owner ended; ``lost``: for one that is free, and was not woken,
    which only a live target can tell. ``ends`` must stand in a finding's text, ``files``
    must exist before.
    """

    name: str
    tasks: tuple[str, ...]
    edges: tuple[Edge, ...]
    cycles: tuple[frozenset[str], ...] = ()
    possible: tuple[frozenset[str], ...] = ()
    gone: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    ends: str = ""
    files: tuple[str, ...] = field(default=())


def _ring(name: str, *kinds: str, number: int) -> Scenario:
    """A cycle: each process takes one lock and then wants the next one's."""
    members = [f"{name}{letter}" for letter in "ABCDE"[: len(kinds)]]
    tasks, edges = [], []
    for index, member in enumerate(members):
        following = (index + 1) % len(members)
        tasks.append(f"{member}:{kinds[index]}={number},meet=0,{kinds[following]}={number}")
        kind = {"write": "rwsem-write", "rtmutex": "rt_mutex"}.get(
            kinds[following], kinds[following]
        )
        edges.append(Edge(member, kind, (members[following],)))
    return Scenario(name, tuple(tasks), tuple(edges), cycles=(frozenset(members),))


REPORT = Scenario(
    "report",
    (
        f"ruby:truncate={FILE}",
        f"ruby2:splice={FILE}",
        f"rm:after=ruby,after=ruby2,rm={FILE}",
    ),
    (
        Edge("ruby", "rwsem-write", ("ruby2",)),
        Edge("ruby2", "rwsem-write", ("ruby",), FILE),
        Edge("rm", "rwsem-write", ("ruby",), FILE),
    ),
    cycles=(frozenset({"ruby", "ruby2"}),),
    files=(FILE,),
)
"""A writer takes the inode's lock and then the file system's own; a splicer the other way round;
an ``rm`` of the file waits behind them."""

SCENARIOS: tuple[Scenario, ...] = (
    REPORT,
    _ring("two", "mutex", "write", number=0),
    _ring("rt", "rtmutex", "mutex", number=1),
    _ring("three", "mutex", "rtmutex", "write", number=2),
    Scenario(
        "five",
        (
            "fiveA:mutex=10,meet=0,write=10",
            "fiveB:write=10,meet=0,rtmutex=10",
            "fiveC:rtmutex=10,meet=0,mutex=11",
            "fiveD:mutex=11,meet=0,write=11",
            "fiveE:write=11,meet=0,mutex=10",
            "fiveV:after=fiveA,after=fiveE,write=11",
        ),
        (
            Edge("fiveA", "rwsem-write", ("fiveB",)),
            Edge("fiveB", "rt_mutex", ("fiveC",)),
            Edge("fiveC", "mutex", ("fiveD",)),
            Edge("fiveD", "rwsem-write", ("fiveE",)),
            Edge("fiveE", "mutex", ("fiveA",)),
            Edge("fiveV", "rwsem-write", ("fiveE",)),
        ),
        cycles=(frozenset({"fiveA", "fiveB", "fiveC", "fiveD", "fiveE"}),),
    ),
    Scenario(
        "busy",
        ("busy:mutex=3,busy=0", *(f"queue{i}:after=twoA,mutex=3" for i in range(3))),
        tuple(Edge(f"queue{i}", "mutex", ("busy",)) for i in range(3)),
    ),
    Scenario(
        "sleeper",
        ("sleeper:write=3,sleep=0", "waker:after=sleeper,write=3", "wreader:after=sleeper,read=3"),
        (Edge("waker", "rwsem-write", ("sleeper",)), Edge("wreader", "rwsem-read", ("sleeper",))),
    ),
    Scenario(
        "leaked",
        (
            "leaker:mutex=4,exit=0",
            "loser:after=twoA,mutex=4",
            "leaker2:write=4,exit=0",
            "loser2:after=twoA,read=4",
        ),
        (Edge("loser", "mutex"), Edge("loser2", "rwsem-read")),
        gone=("loser", "loser2"),
    ),
    Scenario(
        "forgotten",
        (
            "forgetful:mutex=14,meet=0,after=forgot,forget=14",
            "forgot:meet=0,mutex=14",
        ),
        (Edge("forgot", "mutex"),),
        lost=("forgot",),
    ),
    Scenario(
        "reader",
        (
            "reader:read=5,meet=0,mutex=5",
            "writer:mutex=5,meet=0,write=5",
            "reader2:after=writer,read=5",
        ),
        (
            Edge("reader", "mutex", ("writer",)),
            Edge("writer", "rwsem-write"),
            Edge("reader2", "rwsem-read"),
        ),
        possible=(frozenset({"reader", "writer"}),),
    ),
    Scenario(
        "semaphore",
        ("semA:semaphore=6,sleep=0", "semB:after=semA,semaphore=6"),
        (Edge("semB", "semaphore"),),
    ),
    Scenario("completion", ("comp:completion=6",), (Edge("comp", "completion"),)),
    Scenario(
        "percpu",
        ("pcw:percpu-write=7,sleep=0", "pcr:after=pcw,percpu-read=7"),
        (Edge("pcr", "percpu-rwsem-read"),),
    ),
    Scenario(
        "drain",
        ("drr:percpu-read=8,sleep=0", "drw:after=drr,percpu-write=8"),
        (Edge("drw", "percpu-rwsem-write"),),
    ),
    Scenario(
        "futex",
        ("futA:futex=0,meet=0,futex=1", "futB:futex=1,meet=0,futex=0"),
        (Edge("futA", "futex", ("futB",)), Edge("futB", "futex", ("futA",))),
        cycles=(frozenset({"futA", "futB"}),),
    ),
    Scenario(
        "futex with priority inheritance",
        ("piA:pi=0,meet=0,mutex=15", "piB:mutex=15,meet=0,pi=0", "piC:after=piB,pi=0"),
        (
            Edge("piA", "mutex", ("piB",)),
            Edge("piB", "futex", ("piA",)),
            Edge("piC", "futex", ("piA",)),
        ),
        cycles=(frozenset({"piA", "piB"}),),
    ),
    Scenario(
        "flock",
        ("flA:flock=/tmp/a,meet=0,flock=/tmp/b", "flB:flock=/tmp/b,meet=0,flock=/tmp/a"),
        (Edge("flA", "flock", ("flB",), "/tmp/b"), Edge("flB", "flock", ("flA",), "/tmp/a")),
        cycles=(frozenset({"flA", "flB"}),),
    ),
    Scenario(
        "flock queue",
        (
            "fqA:flock=/tmp/d,meet=0,after=fqC,flock=/tmp/e",
            "fqB:meet=0,flock=/tmp/d",
            "fqC:flock=/tmp/e,meet=0,after=fqB,flock=/tmp/d",
        ),
        (
            Edge("fqA", "flock", ("fqC",), "/tmp/e"),
            Edge("fqB", "flock", ("fqA",), "/tmp/d"),
            Edge("fqC", "flock", ("fqA",), "/tmp/d"),
        ),
        cycles=(frozenset({"fqA", "fqC"}),),
    ),
    Scenario(
        "flock shared",
        (
            "shA:share=/tmp/f,sleep=0",
            "shB:after=shA,share=/tmp/f,meet=0,after=shC,flock=/tmp/g",
            "shC:flock=/tmp/g,meet=0,flock=/tmp/f",
        ),
        (
            Edge("shB", "flock", ("shC",), "/tmp/g"),
            Edge("shC", "flock", ("shA", "shB"), "/tmp/f"),
        ),
        cycles=(frozenset({"shB", "shC"}),),
    ),
    Scenario(
        "posix",
        (
            "poA:posix=/tmp/c,sleep=0",
            "poB:after=poA,posix=/tmp/c",
            "poC:after=poB,posix=/tmp/c",
            "poD:after=poC,posix=/tmp/c",
        ),
        tuple(Edge(f"po{letter}", "posix-lock", ("poA",), "/tmp/c") for letter in "BCD"),
    ),
    Scenario("vfork", ("vf:vfork=0",), (Edge("vf", "vfork", ("vf",)),)),
    Scenario(
        "pipe",
        ("pr:pipe=0", "pf:fill=1"),
        (Edge("pr", "pipe-read", any_of=None), Edge("pf", "pipe-write", any_of=None)),
    ),
    Scenario(
        "flush",
        ("flush:mutex=12,flush=12",),
        (Edge("flush", "workqueue", ("kworker",)), Edge("kworker", "mutex", ("flush",))),
        cycles=(frozenset({"flush", "kworker"}),),
    ),
    Scenario(
        "workqueue",
        ("drainA:mutex=13,sleep=0", "drainB:after=drainA,drain=13"),
        (
            Edge("drainB", "workqueue", ("kworker",), "workqueue kwhy_hang13"),
            Edge("kworker", "mutex", ("drainA",)),
        ),
    ),
)

GRACE = Scenario(
    "grace",
    (
        "rcureader:reader=0",
        "rcuwaiter:runs=rcureader,grace=0",
        "rcuwriter:after=rcuwaiter,percpu-write=9",
        "rcuwriter2:after=rcuwriter,percpu-write=9",
    ),
    (
        Edge("rcuwaiter", "rcu", ("rcureader",)),
        Edge("rcuwriter", "rcu", ("rcureader",)),
        Edge("rcuwriter2", "percpu-rwsem-write"),
    ),
)
"""A reader that was preempted holds up a grace period, on kernels with preemptible RCU.

Nothing else must run beside it, because much in a kernel waits for grace periods.
"""

LIMIT = 300.0
"""Seconds in which all processes have to be in their waits; emulated, on a busy machine."""


def start(link: Link, release: str, tasks: Iterable[str], files: Iterable[str] = ()) -> str:
    """Put processes into their waits in the guest behind ``link``; what hang_tasks printed.

    Raises KwhyError when a command in the guest fails.
    """
    kernel = by_release(release)
    if kernel is None:
        raise KwhyError(f"the lab has no kernel {release} to build a module for")
    link.put(build_module(kernel, MODULE), "kwhy_hang.ko")
    link.put(build_program(PROGRAM), "hang_tasks")
    run(link, "insmod", "kwhy_hang.ko")
    for file in files:
        run(link, "mkdir", "-p", str(Path(file).parent))
        run(link, "touch", file)
    return run(link, "./hang_tasks", *tasks)


def run(link: Link, *argv: str) -> str:
    """What a command printed in the guest; raises KwhyError when it fails."""
    out, errors = b"", b""
    with link.stream("spawn", argv=list(argv), timeout=LIMIT) as messages:
        for message in messages:
            if message.kind == "out":
                out += message.data
            elif message.kind == "err":
                errors += message.data
            elif message.kind == "end" and message.header["status"]["code"] != 0:
                why = errors.decode("utf-8", "replace").strip() or str(message.header["status"])
                raise KwhyError(f"{argv[0]} failed in the guest: {why}")
    return out.decode("utf-8", "replace")
