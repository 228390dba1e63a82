"""``kwhy VERB ...``: finds the verb's module, runs it, maps errors to the contract's exit codes.

Only the module of the verb that was asked for is imported, so that ``kwhy --help`` stays instant.
A verb's module offers ``HELP: str``, ``add_arguments(parser)`` and ``run(args) -> int``.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

from kwhy import __version__
from kwhy.errors import KwhyError

#: The verbs in the order of the help, each with one line that says what question it answers.
VERBS: dict[str, str] = {
    "fail": "why did this system call fail?",
    "hang": "who waits for what, who holds it, and is it a deadlock?",
    "call": "what does this kernel function return, and why? run offline",
    "spin": "why does this thread burn a processor?",
    "watch": "what of a data structure does this command change?",
    "explore": "how could a data structure get into that state? shortest sequence, offline",
    "explain": "a saved case again, offline",
    "case": "show or check a saved case",
    "doctor": "what this target can and cannot do, and what to do about it",
    "lab": "real kernels in QEMU: list, get, start, run, shell, stop",
    "demo": "field reports, live, in a lab guest",
    "completion": "a completion script for bash or zsh",
}

EXIT_INTERRUPTED = 130
EXIT_USAGE = 2


class Verb(Protocol):
    """What a module in this package offers."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the result is the exit status."""


def available_verbs() -> dict[str, str]:
    """The verbs whose module exists, without importing any."""
    return {verb: text for verb, text in VERBS.items() if find_spec(f"kwhy.cli.{verb}")}


def _usage(verbs: dict[str, str]) -> str:
    width = max(map(len, verbs), default=0)
    lines = [f"  {verb:<{width}}  {text}" for verb, text in verbs.items()]
    return "\n".join(
        [
            "usage: kwhy VERB ...",
            "",
            "Asks the Linux kernel why: the statement, the condition and the values of an error.",
            "",
            *lines,
            "",
            "kwhy VERB --help tells more.  kwhy --version prints the version.",
            "exit: 0 a verdict, 1 nothing to explain or ambiguous, 2 usage, 3 the target lacks a",
            "privilege or a feature, 4 a bad input file, 5 lost contact with the target,",
            "130 interrupted",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbs = available_verbs()
    try:
        if not words:
            print(_usage(verbs), file=sys.stderr)
            return EXIT_USAGE
        if words[0] in ("-h", "--help", "help"):
            print(_usage(verbs))
            return 0
        if words[0] in ("-V", "--version"):
            print(f"kwhy {__version__}")
            return 0
        if words[0] not in verbs:
            kind = "option" if words[0].startswith("-") else "verb"
            print(
                f"kwhy: unknown {kind} {words[0]!r}; there are: {', '.join(verbs)}", file=sys.stderr
            )
            return EXIT_USAGE
        return _run_verb(words[0], words[1:])
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        print("kwhy: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run_verb(name: str, words: list[str]) -> int:
    verb = cast(Verb, import_module(f"kwhy.cli.{name}"))
    parser = argparse.ArgumentParser(prog=f"kwhy {name}", description=verb.HELP, allow_abbrev=False)
    verb.add_arguments(parser)
    args = parser.parse_args(_before_command(words))
    if "--" in words:
        if "command" not in vars(args):
            parser.error("this verb takes no command: leave -- out")
        args.command = words[words.index("--") + 1 :]
    logging.getLogger("drgn").setLevel(logging.CRITICAL)  # our errors are told once, in our words
    # A plain `kill` unwinds like Ctrl-C: guests stop and tracing state is put back.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = verb.run(args)
        sys.stdout.flush()
        return status
    except KwhyError as error:
        print(f"kwhy {name}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, previous)


def _before_command(words: list[str]) -> list[str]:
    """The words up to ``--``; the command behind it is not argparse's to understand."""
    return words[: words.index("--")] if "--" in words else words


def _broken_pipe() -> int:
    """Our reader went away (``| head``): end like any program killed by SIGPIPE, without a word."""
    # Python flushes stdout once more at exit; point it elsewhere so that this stays silent.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
