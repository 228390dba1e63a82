"""Kernel code executed offline, on memory that is only read.

``Caller(kernel)`` calls functions: ``call("find_vma(task(1)->mm, 0x400000)")`` gives an
:class:`Outcome` with the typed result, what was written and where it stopped; ``dry_run(caller,
'kill(1, 9)')`` does the same with a system call. ``outcome.history(code)`` is a detailed run again
with terms beside its values, and ``decided(history)`` the branches behind its result.
``replay(caller, record, code)`` executes a recorded system call again and compares.

Nothing ever reaches the target: what the code writes stays in copies.
"""

from kwhy.emulate.call import Caller, Outcome
from kwhy.emulate.replay import Replay, replay
from kwhy.emulate.slice import decided
from kwhy.emulate.syscall import dry_run

__all__ = ["Caller", "Outcome", "Replay", "decided", "dry_run", "replay"]
