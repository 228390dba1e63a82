"""Answers about a thread that is in no loop of the kernel's."""

from collections import Counter
from collections.abc import Sequence

from kwhy.diagnose import spin_words
from kwhy.diagnose.spin_case import Case, who
from kwhy.diagnose.spin_fault import Faults
from kwhy.diagnose.spin_frames import Place
from kwhy.diagnose.spin_watch import Look
from kwhy.kernel.model import Kernel
from kwhy.record.samples import Sample
from kwhy.verdict.spin import Spin

MAX_NAMED = 4


def unseen(case: Case, look: Look) -> Spin:
    """No sample came."""
    assert look.after is not None
    state = str(look.after["state"])
    if look.deaf:
        return case.answer(
            summary=f"{who(case)} keeps interrupts off all the time: processor "
            f"{look.before['cpu']} takes none, so nothing can be seen of it",
            confidence="observed",
            state="unknown",
            advice=(
                "what needs that processor's answer hangs too; a crash dump, or the hardlockup "
                "detector's report in the kernel log, tells where it is",
            ),
        )
    if state == "R":
        return case.answer(
            summary=f"{who(case)} is running, yet no sample of it came: it waits for a processor, "
            "or runs with interrupts off all the time",
            state="unknown",
            advice=("samples need interrupts: look at the kernel log for lockup reports",),
        )
    return asleep(case, look, "does not run at all")


def asleep(case: Case, look: Look, runs: str) -> Spin:
    """It sleeps; ``runs``: how little it runs."""
    assert look.after is not None
    where = str(look.after.get("wchan") or "0")
    waits = f" in {where}()" if where != "0" else ""
    return case.answer(
        summary=f"{who(case)} {runs}: it sleeps (state {look.after['state']}){waits}",
        confidence="observed",
        state="asleep",
        advice=(f"kwhy hang {look.before['tid']} tells what a sleeping thread waits for",),
    )


def user(case: Case, look: Look, samples: Sequence[Sample]) -> Spin:
    """Nearly all samples are outside of the kernel."""
    outside = [sample.address for sample in samples if sample.user]
    return case.answer(
        summary=f"{who(case)} burns its time in user space, not in the kernel"
        f"{_mapping(look.maps, outside)}",
        confidence="observed",
        state="user",
        advice=("a debugger or perf top -p tells more of a program's own loop",),
    )


def _mapping(maps: Sequence[str], addresses: Sequence[int]) -> str:
    """`` (mostly in FILE)``."""
    found: dict[str, int] = {}
    for line in maps:
        fields = line.split(None, 5)
        start, _, end = fields[0].partition("-")
        name = fields[5] if len(fields) > 5 else "memory without a file"
        hits = sum(int(start, 16) <= address < int(end, 16) for address in addresses)
        found[name] = found.get(name, 0) + hits
    best = max(found, key=lambda name: found[name], default="")
    return f" ({found[best]} of {len(addresses)} samples in {best})" if found.get(best) else ""


def interrupts(case: Case, samples: Sequence[Sample]) -> Spin:
    """Nearly all samples are in interrupts on top of it."""
    leaf: dict[str, int] = {}
    for sample in samples:
        name = spin_words.offset(case.kernel, sample.address).split("+")[0]
        leaf[name] = leaf.get(name, 0) + 1
    top = max(leaf, key=lambda name: leaf[name])
    return case.answer(
        summary=f"{who(case)} is not to blame: interrupts take its time, mostly in {top}()",
        confidence="observed",
        state="interrupts",
        advice=("/proc/interrupts and /proc/softirqs tell which ones",),
    )


def busy(case: Case, place: Place, samples: Sequence[Sample]) -> Spin:
    """It leaves the kernel and comes back; ``place``: the frame where the samples part."""
    into = len(place.above) < 2  # the way into the kernel: it tells nothing
    inner = leaves(case.kernel, samples) if into else f"{place.name}()"
    return case.answer(
        summary=f"{who(case)} is in no endless loop: it enters the kernel and leaves it again and "
        f"again, mostly in {inner}",
        confidence="observed",
        state="busy",
        advice=("what keeps it going is the loop of the program that makes these calls",),
    )


def faulting(case: Case, taken: Faults, look: Look, samples: Sequence[Sample]) -> Spin:
    """It takes page faults, on one page or on many."""
    outside = {sample.address for sample in look.seen[0].samples if sample.user}
    said = f"{who(case)} is in no endless loop of the kernel: it takes page faults"
    if len(taken.pages) > 1:
        return case.answer(
            summary=f"{said}, one after another, on {len(taken.pages)} or more pages",
            confidence="observed",
            state="busy",
            advice=("perf trace -F all, or a program's own memory statistics, tells of what",),
        )
    (page,) = taken.pages
    at = f" by its instruction at {outside.pop():#x}" if len(outside) == 1 else ""
    return case.answer(
        summary=f"{said} on the same page at {page:#x} again and again"
        f" ({taken.count:,} times in {look.seconds:.1f} s){at}: each is said to be "
        "handled, yet the page is not there afterwards",
        confidence="observed",
        state="busy",
        advice=(
            "what handles the fault is in "
            + leaves(case.kernel, samples)
            + f"; what is mapped at {page:#x}, and whose fault handler that is, is in /proc/"
            f"{case.base.thread.pid}/maps",
        ),
    )


def leaves(kernel: Kernel, samples: Sequence[Sample]) -> str:
    """The functions that the samples are in, those with most of them first."""
    names = Counter(spin_words.offset(kernel, sample.address).split("+")[0] for sample in samples)
    return ", ".join(f"{name}()" for name, _ in names.most_common(MAX_NAMED))
