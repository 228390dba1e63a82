"""``kwhy spin``: why does this thread burn a processor?"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kwhy.cli import answer as ending
from kwhy.cli.connect import connect
from kwhy.cli.target import add_target_arguments, places, positive_seconds, teller
from kwhy.errors import FeatureError, NothingToExplain, UsageError

if TYPE_CHECKING:
    from kwhy.case.evidence import JSON
    from kwhy.case.live import LiveEvidence
    from kwhy.diagnose.spin_watch import Run, Take
    from kwhy.emulate.call import Caller
    from kwhy.kernel.model import Kernel
    from kwhy.link import Link
    from kwhy.record.samples import Sample
    from kwhy.verdict.call import CallVerdict
    from kwhy.verdict.spin import Spin

HELP = "Watch a thread that burns a processor: which loop it is in, and why it stays there."

SECONDS = 3.0
READINGS = 4  # of the memory, to find the thread in it
CHOOSE = 0.4  # s of looking at a process to find its hottest thread
ANSWERED = frozenset({"endless", "slow", "lock"})
"""The states of a thread that explain why it burns time in the kernel."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("tid", metavar="PID|TID", type=int, help="the thread, or its process")
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=positive_seconds,
        default=SECONDS,
        help=f"how long to watch it, about ({SECONDS:g})",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="run the callees that keep the loop going offline, and tell why they answer so",
    )
    add_target_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Watch, explain, report; the result is the exit status."""
    if args.core is not None:
        raise UsageError("a dump stands still: kwhy spin needs a live target")
    if args.case is not None:
        raise UsageError("kwhy explain CASE tells of a saved thread again")
    if args.tid < 1:
        raise UsageError(f"no thread has the number {args.tid}")
    with connect(args, probe=False) as link:
        answer, evidence = watch(link, args)
        return give(answer, evidence, args)


def watch(link: "Link", args: argparse.Namespace) -> "tuple[Spin, LiveEvidence]":
    """Ask the live target. Raises NothingToExplain when there is no such thread."""
    from kwhy.case.live import LiveEvidence
    from kwhy.diagnose import spin
    from kwhy.diagnose.spin_watch import Live
    from kwhy.kernel.model import open_kernel

    say = teller(args)
    evidence = LiveEvidence(link)
    tid, chosen = _choose(link, args.tid)
    evidence.facts.question = {
        "verb": "spin", "tid": tid, "seconds": args.seconds, "chosen": chosen,
    }  # fmt: skip
    kernel = open_kernel(evidence, *places(args))

    def peek(address: int, size: int) -> bytes | None:
        return link.read_memory([(address, size)])[0]

    offline = _Offline(link, evidence, kernel, tid)
    run = _runner(evidence, args, tid) if args.deep else None
    live = Live(_taker(link, tid, say), peek, offline.resume, offline.decide, offline.rounds, run)
    return spin.explain(evidence, kernel, live), evidence


def _runner(evidence: "LiveEvidence", args: argparse.Namespace, tid: int) -> "Run":
    """Runs calls offline as that thread, each on a fresh reading of the memory."""

    def run(text: str) -> "tuple[CallVerdict, dict[str, list[int]]]":
        from kwhy.cli.connect import read_again
        from kwhy.diagnose.call import Question, explain
        from kwhy.emulate.call import Caller
        from kwhy.kernel.model import open_kernel

        kernel = open_kernel(read_again(evidence), *places(args))
        verdict = explain(kernel, Question(text, task=tid, why=True), lambda: None)
        return verdict, Caller(kernel, task=tid).entered(text)

    return run


class _Offline:
    """That thread's code, executed offline, each time on a fresh reading of the memory."""

    def __init__(
        self, link: "Link", evidence: "LiveEvidence", kernel: "Kernel", tid: int
    ) -> None:
        from kwhy import arch
        from kwhy.flow.cfg import Code

        self.link, self.evidence, self.kernel, self.tid = link, evidence, kernel, tid
        self.code = Code(kernel, arch.of(kernel.arch))
        self.callers: dict[int, Caller] = {}

    def _caller(self, cpu: int) -> "Caller":
        from kwhy.cli.connect import read_again

        if cpu not in self.callers:
            self.callers[cpu] = self._found(cpu)
        return self.callers[cpu].on(read_again(self.evidence))

    def _found(self, cpu: int) -> "Caller":
        """The thread, looked up in memory that may be torn: while it lives that is tried again."""
        from kwhy.cli.connect import read_again
        from kwhy.emulate.call import Caller

        for _ in range(READINGS):
            try:
                return Caller(self.kernel, cpu, self.tid, memory=read_again(self.evidence))
            except UsageError:
                try:
                    self.link.call("threads", pid=self.tid, seconds=0.1)
                except FeatureError as error:
                    raise _ended(error, self.tid) from None
        raise NothingToExplain(
            f"thread {self.tid} was not found in the target's memory, which changes fast; try again"
        )

    def resume(self, start: "Sample", addresses: Sequence[int]) -> "JSON":
        """Go on from a sample."""
        from kwhy.emulate.resume import resume

        found = resume(self._caller(start.cpu), start.registers, addresses)
        return {
            "end": found.end.kind,
            "why": found.end.reason,
            "counts": {str(address): count for address, count in found.counts.items()},
            "passed": {str(at): [{**each} for each in some] for at, some in found.passed.items()},
        }

    def decide(self, call: "Sample", site: int) -> "JSON":
        """Make the call that a sample is at."""
        from kwhy.emulate.resume import answer

        found = answer(self._caller(call.cpu), self.code, call.registers, site)
        return {
            "end": found.end.kind,
            "why": found.end.reason,
            "result": found.result,
            "reads": {str(at): [*each] for at, each in found.reads.items()},
            "inputs": [*sorted(found.inputs)],
            "clock": found.clock,
        }


    def rounds(self, start: "Sample", head: int) -> "JSON":
        """Go round from a sample at a loop's head."""
        from kwhy.emulate.rounds import rounds

        found = rounds(self._caller(start.cpu), self.code, start.registers, head)
        return {
            "why": found.why,
            "memory": {str(at): [size, [*values]] for at, (size, values) in found.memory.items()},
            "registers": [*sorted(found.registers)],
            "clock": found.clock,
        }


def _choose(link: "Link", number: int) -> tuple[int, str | None]:
    """The thread that is meant: of a process, the one that burns most; and why it was taken."""
    try:
        threads = link.call("threads", pid=number, seconds=CHOOSE)[0]["threads"]
    except FeatureError as error:
        raise _gone(error) from None
    if len(threads) < 2 or all(each["pid"] != number for each in threads):
        return number, None
    hottest = max(threads, key=lambda t: t["spent_system_ticks"] + t["spent_user_ticks"])
    return int(hottest["tid"]), f"the busiest of {len(threads)} threads of process {number}"


def _gone(error: FeatureError) -> Exception:
    return NothingToExplain(str(error)) if error.feature == "absent" else error


def _ended(error: FeatureError, tid: int) -> Exception:
    if error.feature != "absent":
        return error
    return NothingToExplain(f"thread {tid} ended while it was watched")


def _taker(link: "Link", tid: int, say: Callable[[str], None]) -> "Take":
    """Watches through the agent."""

    seen: list[bool] = []

    def take(events: list[Any], seconds: float) -> tuple[dict[str, Any], dict[int, bytes]]:
        first = events[0]["kind"] == "clock"
        say(f"watching {'where it is' if first else 'what it passes'} for {seconds:.1f} s …")
        data: dict[int, list[bytes]] = {}
        try:
            with link.stream(
                "sample", timeout=seconds + 60, tid=tid, events=events, seconds=seconds,
                others=first or None,
            ) as stream:  # fmt: skip
                for message in stream:
                    if message.kind == "samples":
                        data.setdefault(message.header["event"], []).append(message.data)
                    elif message.kind == "end":
                        seen.append(True)
                        return message.header, {n: b"".join(each) for n, each in data.items()}
        except FeatureError as error:
            raise (_ended(error, tid) if seen else _gone(error)) from None
        raise NothingToExplain("the target ended the watch without a result; try again")

    return take


def explain_saved(case: Any, args: argparse.Namespace) -> int:
    """The answer of a saved case again."""
    from kwhy.diagnose import spin
    from kwhy.kernel.model import open_kernel

    return give(spin.explain(case, open_kernel(case, *places(args))), case, args)


def give(answer: "Spin", evidence: Any, args: argparse.Namespace) -> int:
    """Save, print, and the exit status: 0 when it is known why the thread burns time."""
    from kwhy.report import spin

    draw = functools.partial(spin.render, answer)
    ending.finish(args, evidence, draw, answer.to_json(), answer.summary)
    known = answer.state in ANSWERED and answer.confidence in ("observed", "deduced")
    return 0 if known else 1
