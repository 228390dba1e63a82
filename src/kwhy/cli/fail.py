"""``kwhy fail``: why did this system call fail?"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kwhy.cli.target import add_target_arguments, check_put_files, places, teller
from kwhy.errors import FeatureError, InputError, NothingToExplain, UsageError

HELP = "Run a command (or follow a process) and explain the system call that failed."

DEFAULT_TIMEOUT = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_target_arguments(parser)
    parser.add_argument("--syscall", metavar="NAME", help="explain a failure of this call")
    parser.add_argument("--errno", metavar="NAME", help="explain a failure with this error")
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=int,
        default=1,
        help="run the command up to N times, with probes that settle what one run leaves open",
    )
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-p", "--pid", metavar="PID", type=int, help="follow a running process")
    parser.add_argument(
        "command", metavar="-- CMD ...", nargs=argparse.REMAINDER, help="what to run"
    )


def run(args: argparse.Namespace) -> int:
    """Record, explain, report; the result is the exit status."""
    command = list(args.command)
    if command[:1] == ["--"]:
        command = command[1:]
    _check(args, command)
    from kwhy.cli import answer as ending

    if args.case is not None:
        from kwhy.case.casefile import CaseFile
        from kwhy.diagnose.rounds import answer, open_session

        evidence: Any = CaseFile(args.case)
        evidence.facts.question.update(
            {k: v for k, v in (("syscall", args.syscall), ("errno", args.errno)) if v}
        )
        return ending.give(answer(open_session(evidence, *places(args))).verdict, evidence, args)
    from kwhy.cli.connect import connect

    with connect(args) as link:
        verdict, evidence = explain_live(link, args, command)
        return ending.give(verdict, evidence, args)


def _check(args: argparse.Namespace, command: list[str]) -> None:
    from kwhy.record.errno import errno_number

    if args.compare:
        raise UsageError("--compare is not built yet; use --syscall/--errno to choose a failure")
    if args.core is not None:
        raise UsageError("a dump cannot run anything: kwhy fail needs a live target or --case")
    if args.repeat < 1:
        raise UsageError("--repeat takes a number of 1 or more")
    if args.errno and errno_number(args.errno) is None:
        raise UsageError(f"--errno: no error is called {args.errno!r}; give a name such as EIO")
    if args.case is None and (args.pid is None) == (not command):
        raise UsageError("give either a command after -- or a process with -p PID")
    if args.case is not None and (command or args.pid is not None):
        raise UsageError("a saved case runs no command: leave -p and the command out")
    check_put_files(args.put)


def explain_live(link: Any, args: argparse.Namespace, command: list[str]) -> tuple[Any, Any]:
    """Record round after round until the verdict is sure or the rounds are used up."""
    from kwhy.case.live import LiveEvidence
    from kwhy.diagnose.rounds import answer, open_session

    for put in args.put:
        link.put(put.local, put.remote)
    evidence = LiveEvidence(link)
    evidence.facts.target = link.name
    evidence.facts.question = {
        "verb": "fail",
        "command": list(command),
        "pid": args.pid,
        "syscall": args.syscall,
        "errno": args.errno.upper() if args.errno else None,
    }
    say = teller(args)
    session = open_session(evidence, *places(args))
    rounds = args.repeat if args.pid is None else max(args.repeat, 2)
    found = None
    for number in range(rounds):
        say(f"recording{'' if rounds == 1 else f' (round {number + 1} of at most {rounds})'} …")
        try:
            with _recorded(link, evidence, session, args, command, found):
                say("explaining …")
                found = answer(session)
        except FeatureError:
            if found is None:
                raise
            break
        except NothingToExplain:
            if number + 1 >= rounds and found is None:
                raise
            if number and args.pid is not None:
                break
            continue
        if found.verdict.confidence == "observed" or not found.probes:
            break
    if found is None:
        raise NothingToExplain("no system call failed; nothing to explain")
    return found.verdict, evidence


@contextlib.contextmanager
def _recorded(
    link: Any,
    evidence: Any,
    session: Any,
    args: argparse.Namespace,
    command: list[str],
    found: Any,
) -> Iterator[None]:
    """One more round in the evidence, after that with the answer ``found`` (None: the first).

    The command is kept at its exit for as long as it can be.
    """
    from kwhy.case.capture import record_round
    from kwhy.diagnose.leaving import Keeper

    keeper = Keeper(session, found.verdict.call if found is not None else None)
    recording = record_round(
        evidence,
        link,
        command=command,
        pid=args.pid,
        probes=found.probes if found is not None else (),
        timeout=args.timeout or DEFAULT_TIMEOUT,
        output=_forward if not args.json else _forward_quietly,
        enough=_enough(session, args) if args.pid is not None else None,
        leaving=keeper.look,
        wanted=keeper.wanted,
    )
    with recording as round_:
        problem = round_.extra.get("exec_errno")
        if problem:
            evidence.rounds.pop()
            raise NotStarted(command, os.strerror(int(str(problem))))
        keeper.choose()
        yield


class NotStarted(UsageError):
    """The command could not be started on the target."""

    def __init__(self, command: list[str], why: str) -> None:
        super().__init__(
            f"cannot run {command[0]!r} on the target: {why}; --put copies a program there"
        )


def _enough(session: Any, args: argparse.Namespace) -> Callable[[bytes], bool]:
    """Whether a followed process has failed as asked, batch of pages by batch."""
    from kwhy.case.evidence import Round
    from kwhy.record.rank import rank
    from kwhy.record.recording import read_recording

    kept: list[bytes] = []

    def look(pages: bytes) -> bool:
        kept.append(pages)
        evidence = session.evidence
        names = [name for name in evidence.blobs if name.startswith("format/")]
        probe = Round(pages={0: b"".join(kept[-8:])}, formats=names)
        try:
            recording = read_recording(probe, evidence.blob, session.kernel.symbols)
            return bool(rank(recording, syscall=args.syscall, errno=args.errno))
        except InputError:
            return False

    return look


def _forward(kind: str, data: bytes) -> None:
    """The command's output goes where it would have gone."""
    stream = sys.stdout if kind == "out" else sys.stderr
    stream.buffer.write(data)
    stream.flush()


def _forward_quietly(_kind: str, data: bytes) -> None:
    """With ``--json`` standard output belongs to the verdict."""
    sys.stderr.buffer.write(data)
    sys.stderr.flush()
