"""``kwhy demo``: field reports, live, in a lab guest."""

import argparse
import sys
from dataclasses import dataclass

from kwhy.cli.target import add_color_argument
from kwhy.link import Link

HELP = "Boot a real kernel, reproduce three field reports and explain them."


@dataclass(frozen=True, slots=True)
class Scene:
    """A program of the lab's incidents, and the story that it replays."""

    program: str
    title: str
    story: str


SCENES = (
    Scene(
        "tcsetattr_orphan",
        "A background process calls tcsetattr() and gets EIO",
        "Its process group is orphaned, so there is nobody to stop it for. The field report\n"
        "took an expert, branch records of the CPU and an evening.",
    ),
    Scene(
        "iouring_memlock",
        "io_uring_register() refuses buffers with ENOMEM, with plenty of memory free",
        "RLIMIT_MEMLOCK is small and CAP_IPC_LOCK is gone. The field report compared function\n"
        "graphs by hand.",
    ),
)

HANG = Scene(
    "hang_tasks",
    "rm cannot be killed",
    "A writer and a splicer take two locks of one inode in opposite order. The field report took\n"
    "a day with a crash debugger and a disassembler.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "story", nargs="?", choices=("spin",), help="the fourth report: a bug that spins, found"
    )
    parser.add_argument(
        "--lab", metavar="VERSION", default="6.12", help="the kernel to show it on (default 6.12)"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say what is being done")
    add_color_argument(parser)


def run(args: argparse.Namespace) -> int:
    """All scenes in one guest; 0 when all were explained."""
    if args.story == "spin":
        from kwhy.cli import demo_spin

        return demo_spin.run(args, _title)
    from kwhy import lab
    from kwhy.lab.build import build_program
    from kwhy.lab.incidents import PROGRAMS

    worst = 0
    with lab.connect(args.lab, parts=("debug", "source")) as connection:
        for number, scene in enumerate(SCENES, 1):
            _title(f"{number}. {scene.title}", scene.story)
            program = build_program(PROGRAMS / f"{scene.program}.c")
            worst = max(worst, _explain(connection.link, args, program, scene))
        _title(f"{len(SCENES) + 1}. {HANG.title}", HANG.story)
        return max(worst, _hang(connection.link, args, connection.guest.release))


def _title(title: str, story: str) -> None:
    print(f"\n{'─' * 78}\n{title}\n\n{story}\n", flush=True)


def _explain(link: object, args: argparse.Namespace, program: object, scene: Scene) -> int:
    from kwhy.cli import answer, fail

    parser = argparse.ArgumentParser()
    fail.add_arguments(parser)
    words = ["--color", args.color, "--put", f"{program}:{scene.program}"]
    print(f"$ kwhy fail --lab {args.lab} --put {scene.program} -- ./{scene.program}", flush=True)
    given = parser.parse_args([*words, "--", f"./{scene.program}"])
    given.verbose = args.verbose
    verdict, evidence = fail.explain_live(link, given, [f"./{scene.program}"])
    sys.stderr.flush()
    return answer.give(verdict, evidence, given)


def _hang(link: Link, args: argparse.Namespace, release: str) -> int:
    from kwhy.case.live import LiveEvidence
    from kwhy.cli import hang
    from kwhy.lab import hangs

    hangs.start(link, release, hangs.REPORT.tasks, hangs.REPORT.files)
    print(f"$ kwhy hang --lab {args.lab}", flush=True)
    parser = argparse.ArgumentParser()
    hang.add_arguments(parser)
    given = parser.parse_args(["--color", args.color])
    return hang.give(LiveEvidence(link), given)
