"""``kwhy doctor TARGET``: what this target can and cannot do, and what to do about it."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from kwhy.cli.target import add_target_arguments, use_color
from kwhy.errors import UsageError

HELP = "what this target can and cannot do, and what to do about it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The target and the common options."""
    add_target_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the check-up; 0 when ``kwhy fail`` can work there, 3 when something is missing."""
    from kwhy.link.checkup import report

    target, hello = greeting(args)
    result = report(target, hello)
    desk = desk_facts(hello, args.debuginfo)
    if args.json:
        print(json.dumps({**result, "desk": desk}, indent=1, sort_keys=True))
    else:
        print("\n".join(lines(result, desk, use_color(args.color))))
    return 0 if result["able"] else 3


def greeting(args: argparse.Namespace) -> tuple[str, Mapping[str, Any]]:
    """What the target says of itself, live or from a saved case."""
    if args.case is not None:
        from kwhy.case.casefile import CaseFile

        return str(args.case), CaseFile(args.case).facts.hello
    if args.core is not None:
        raise UsageError("kwhy doctor --core is not built yet; a dump needs no doctor to be read")
    timeout = args.timeout or 120.0
    if args.lab is not None:
        from kwhy.lab.target import connect

        with connect(args.lab, timeout=timeout) as connection:
            return f"--lab {args.lab}", connection.link.hello
    from kwhy.link import local, ssh

    with ssh(args.host, timeout=timeout) if args.host else local(require_root=False) as link:
        return args.host or "this host", link.hello


def desk_facts(hello: Mapping[str, Any], debuginfo: str) -> dict[str, Any]:
    """What is at hand here for that kernel: its debug symbols."""
    kernel = hello.get("kernel")
    if debuginfo == "none" or not isinstance(kernel, Mapping):
        return {"debuginfo": None}
    from pathlib import Path

    from kwhy.kernel.debuginfo import find_debug

    where = "auto" if debuginfo == "auto" else Path(debuginfo)
    release, build_id = str(kernel.get("release") or ""), str(kernel.get("build_id") or "")
    found = find_debug(release, build_id, where)  # type: ignore[arg-type]
    return {"debuginfo": str(found) if found else None}


def lines(result: Mapping[str, Any], desk: Mapping[str, Any], color: bool) -> list[str]:
    """The check-up as text."""
    kernel = result["kernel"]
    text = [
        f"{result['target']}: Linux {kernel.get('release', '?')} {kernel.get('arch', '')}, "
        f"{result['agent'].get('cpus')} CPUs, Python {result['agent'].get('python')}",
        "",
    ]
    for check in result["checks"]:
        mark = _mark(check, color)
        text.append(f"  {mark} {check['name']:<24} {check['text']}")
        if check["todo"]:
            text.append(f"      {check['todo']}")
    symbols = desk.get("debuginfo")
    mark = _paint("yes", "32", color) if symbols else _paint("no ", "33", color)
    text.append(f"  {mark} {'debug symbols':<24} {symbols or 'source lines and exact conditions'}")
    if not symbols:
        text.append("      install the kernel's -dbg package here, or give --debuginfo PATH")
    text.extend(f"  note: {note}" for note in result["notes"])
    text.append("")
    if result["able"]:
        text.append("kwhy fail works here.")
    else:
        missing = [c["name"] for c in result["checks"] if c["level"] == "required" and not c["ok"]]
        text.append(f"kwhy fail cannot work here yet; missing: {', '.join(missing)}.")
    return text


def _mark(check: Mapping[str, Any], color: bool) -> str:
    if check["ok"]:
        return _paint("yes", "32", color)
    bad = check["level"] == "required"
    return _paint("NO ", "31", color) if bad else _paint("no ", "33", color)


def _paint(text: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color else text
