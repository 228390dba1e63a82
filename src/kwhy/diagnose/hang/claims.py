"""What a task waits for, as far as memory proves it."""

from dataclasses import dataclass
from typing import Literal

How = Literal["observed", "deduced", "unknown"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One task waits for one thing.

    ``address`` is the lock or whatever the wait hangs on, 0 if there is none to name; ``proof``
    says what memory showed. ``owners`` are task addresses; ``sure`` how those are known: read from
    the lock itself (observed), or the only tasks that fit (deduced). ``candidates`` may be owners.
    ``behind`` are waiters queued before this one that have to go first. ``any_of`` are tasks each
    of which can end the wait, as the threads with the other end of a pipe; ``complete``: nobody
    else can. ``timed``: a time limit ends it. ``note`` is a sentence, ``object`` what a person
    calls the thing.
    """

    task: int
    kind: str
    address: int
    proof: str
    function: str
    frame: int
    owners: tuple[int, ...] = ()
    sure: How = "unknown"
    candidates: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    note: str = ""
    extra: tuple[tuple[str, int], ...] = ()
    any_of: tuple[int, ...] = ()
    complete: bool = False
    timed: bool = False
    object: str = ""
