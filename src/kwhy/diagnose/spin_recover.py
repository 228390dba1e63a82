"""What is known to end a loop without harm to the machine. It is told, never done."""

import re
from collections.abc import Sequence

from kwhy.verdict.spin import Branch

#: By a function that never returned, what ends its loop; only what was tried on real kernels.
KNOWN = {
    "tracing_read_pipe": (
        "truncating the trace file beside the trace_pipe that it reads (echo > trace) resets the "
        "buffer and ends the loop; what was recorded there is lost"
    ),
}
#: Conditions that ask for a signal, and the signals that they see (include/linux/sched/signal.h).
SIGNALS = {
    "fatal_signal_pending(current)": "it looks for SIGKILL: kill -9 ends it",
    "signal_pending(current)": "it looks for signals: kill ends it",
}


def recoveries(stack: Sequence[str], branches: Sequence[Branch]) -> tuple[str, ...]:
    """Ways to end the loop; ``stack`` are the functions that it is in, innermost first."""
    found = [KNOWN[name] for name in stack if name in KNOWN]
    for branch in branches:
        asked = re.sub(r"^(?:un)?likely\((.*)\)$", r"\1", branch.expr)
        if branch.leaves and branch.wanted and asked in SIGNALS:
            found.append(SIGNALS[asked])
    return tuple(dict.fromkeys(found))
