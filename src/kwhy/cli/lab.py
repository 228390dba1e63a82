"""``kwhy lab``: real Debian kernels in QEMU."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kwhy.cli.target import add_put_argument, check_put_files, positive_seconds
from kwhy.errors import KwhyError, UsageError

if TYPE_CHECKING:
    from kwhy.lab.boot import Settings
    from kwhy.link import Link

HELP = "Real Debian kernels in QEMU: fetch them, boot them, run commands in them."

_KERNEL = "a series (6.12), an exact version, or a release as `uname -r` says it"
_TARGET = f"a named guest, or {_KERNEL}, which boots a disposable guest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs of the lab."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    action = actions.add_parser("list", help="the kernels there are and the guests that run")
    action.add_argument("--offline", action="store_true", help="only what is in the cache")

    action = actions.add_parser("get", help="fetch kernels into the cache")
    action.add_argument("kernels", metavar="VERSION", nargs="+", help=_KERNEL)
    action.add_argument(
        "--parts",
        metavar="PART,...",
        default="image,debug,source",
        help="of image, debug, source, headers (default: all but headers)",
    )

    action = actions.add_parser("start", help="boot a guest that stays until `stop`")
    action.add_argument("kernel", metavar="VERSION", help=_KERNEL)
    action.add_argument("--name", default="box", help="what to call it (default: box)")
    _add_guest_arguments(action)

    action = actions.add_parser("run", help="run a command and exit with its status")
    action.add_argument("target", metavar="TARGET", help=_TARGET)
    _add_guest_arguments(action)
    add_put_argument(action)
    action.add_argument("--timeout", metavar="S", type=positive_seconds, help="end it after S s")
    action.add_argument("command", metavar="-- CMD", nargs="*", help="the command")

    action = actions.add_parser("shell", help="a root shell in a guest; Ctrl-] leaves it")
    action.add_argument("target", metavar="TARGET", help=_TARGET)
    _add_guest_arguments(action)

    action = actions.add_parser("stop", help="end guests")
    action.add_argument("names", metavar="NAME", nargs="*", help="named guests")
    action.add_argument("--all", action="store_true", help="every named guest")


def _add_guest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", metavar="MIB", type=int, help="of a new guest (1024)")
    parser.add_argument("--smp", metavar="N", type=int, help="processors of a new guest (1)")
    parser.add_argument("--append", metavar="WORDS", help="more kernel parameters")
    parser.add_argument("--kvm", action="store_true", help="use KVM instead of emulation")


def run(args: argparse.Namespace) -> int:
    """Do it; `run` gives the status of the guest's command."""
    actions = {
        "list": _list,
        "get": _get,
        "start": _start,
        "run": _run,
        "shell": _shell,
        "stop": _stop,
    }
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from kwhy.lab import fetch, guest, kernels
    from kwhy.lab.progress import Progress

    cached = kernels.cached_kernels()
    rows = []
    for series in kernels.SERIES:
        found = None
        if not args.offline:
            try:
                found = kernels.resolve(series, Progress())
            except KwhyError as error:
                print(f"kwhy lab: {error}", file=sys.stderr)
        if found and found not in cached:
            rows.append((found.series, found.version, found.release, "not fetched"))
    for kernel in cached:
        parts = " ".join(fetch.downloaded(kernel))
        rows.append((kernel.series, kernel.version, kernel.release, parts))
    _print_table(("series", "version", "release", "cached"), sorted(rows, key=_series_order))
    guests = [(each.name, each.release, str(each.pid)) for each in guest.running_guests()]
    if guests:
        print()
        _print_table(("guest", "kernel", "qemu"), guests)
    return 0


def _series_order(row: tuple[str, ...]) -> tuple[tuple[int, ...], str]:
    return tuple(int(number) for number in row[0].split(".") if number.isdigit()), row[1]


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = zip(row, widths, strict=True)
        print("  ".join(f"{cell:<{width}}" for cell, width in cells).rstrip())


def _get(args: argparse.Namespace) -> int:
    from kwhy.lab import fetch, kernels, rootfs
    from kwhy.lab.progress import Progress

    parts = args.parts.split(",")
    unknown = sorted(set(parts) - set(fetch.PARTS))
    if unknown:
        raise UsageError(f"no part {unknown[0]!r}: there are {', '.join(fetch.PARTS)}")
    progress = Progress()
    for wanted in args.kernels:
        kernel = kernels.resolve(wanted, progress)
        files = fetch.get(kernel, parts, progress)
        rootfs.image(files, progress)
        print(f"{kernel.release}  {kernel.version}  {kernel.directory}")
    return 0


def _start(args: argparse.Namespace) -> int:
    from kwhy import lab

    guest = lab.start(args.kernel, args.name, _settings(args))
    print(f"{guest.name}: {guest.release}; end it with: kwhy lab stop {guest.name}")
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    from kwhy.lab.boot import Settings

    for value, name in ((args.memory, "--memory"), (args.smp, "--smp")):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be above zero")
    return Settings(
        memory=args.memory or Settings.memory,
        cpus=args.smp or Settings.cpus,
        append=args.append or "",
        kvm=args.kvm,
    )


def _run(args: argparse.Namespace) -> int:
    from kwhy import lab

    if not args.command:
        raise UsageError("no command: kwhy lab run TARGET -- CMD")
    check_put_files(args.put)
    with lab.connect(args.target, settings=_settings(args), probe=False) as connection:
        for file in args.put:
            connection.link.put(file.local, file.remote)
        return spawn(connection.link, args.command, args.timeout)


def spawn(link: "Link", command: list[str], timeout: float | None) -> int:
    """Run a command on a target, its output on ours; the exit status as a shell would give it."""
    with link.stream("spawn", timeout=timeout, argv=command) as stream:
        for message in stream:
            if message.kind == "out":
                sys.stdout.buffer.write(message.data)
                sys.stdout.buffer.flush()
            elif message.kind == "err":
                sys.stderr.buffer.write(message.data)
                sys.stderr.buffer.flush()
            elif message.kind == "end":
                status = message.header["status"]
                if status.get("signal"):
                    return 128 + int(status["signal"])
                return int(status["code"] or 0)
    return 0


def _shell(args: argparse.Namespace) -> int:
    from kwhy import lab
    from kwhy.lab import guest, terminal

    running = guest.find(args.target)
    if running:
        return terminal.attach(running.shell_socket)
    with lab.start(args.target, settings=_settings(args)) as disposable:
        return terminal.attach(disposable.shell_socket)


def _stop(args: argparse.Namespace) -> int:
    from kwhy.lab import guest

    if bool(args.names) == args.all:
        raise UsageError("name the guests to stop, or say --all")
    guests = []
    for name in args.names:
        found = guest.find(name)
        if found is None:
            running = ", ".join(each.name for each in guest.running_guests())
            raise UsageError(f"no guest {name!r} runs; there are: {running or 'none'}")
        guests.append(found)
    for each in list(guest.running_guests()) if args.all else guests:
        each.stop()
    return 0
