"""The command: ``python -m bench [--series 6.12] [--only verdict,decoding] [--out FILE]``."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import measures
from bench.calls import calls
from bench.explore import explore
from bench.guest import bench_guest

MEASURES = {
    "verdict": measures.verdict,
    "slowdown": measures.slowdown,
    "decoding": measures.decoding,
    "calls": calls,
    "explore": explore,
}


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--series", default="6.12", help="the lab kernel to measure on")
    parser.add_argument("--only", default=",".join(MEASURES), help="which measures, with commas")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name]
    if unknown := [name for name in wanted if name not in MEASURES]:
        parser.error(f"no such measure: {', '.join(unknown)}")
    results: dict[str, Any] = {"series": args.series}
    with bench_guest(args.series) as guest:
        results["release"] = guest.run("uname", "-r").strip()
        for name in wanted:
            results[name] = MEASURES[name](guest)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    show(results)


def show(results: dict[str, Any]) -> None:
    """One table: ours, the peer's, the ratio, the aim."""
    table = Table(title=f"kwhy on {results['release']}, all in one guest")
    for column in ("measure", "kwhy", "peer", "ratio", "aim"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    if found := results.get("verdict"):
        table.add_row(
            "EIO: command to verdict | trace-cmd record + report",
            f"{found['seconds']:.1f} s", f"{found['trace_cmd_seconds']:.1f} s",
            f"{found['ratio']:.2f}", "< 2",
        )  # fmt: skip
    for kind, found in results.get("slowdown", {}).items():
        table.add_row(
            f"{kind} call while armed ({found['plain_ns']:.0f} ns plain) | strace -f",
            f"{found['kwhy_times']:.1f} times", f"{found['strace_times']:.1f} times",
            f"{found['of_strace']:.3f}", "< 0.1",
        )  # fmt: skip
    if found := results.get("decoding"):
        table.add_row(
            f"decoding {found['events']:,} events | trace-cmd report",
            f"{found['kwhy_per_second']:,.0f}/s", f"{found['trace_cmd_per_second']:,.0f}/s",
            f"{found['times']:.1f}", "> 5",
        )  # fmt: skip
    if found := results.get("calls"):
        _calls(table, found)
    if found := results.get("explore"):
        _explore(table, found)
    Console().print(table)


def _calls(table: Table, found: dict[str, Any]) -> None:
    for kind in ("loop", "ordinary"):
        speeds = found[kind]
        for what, said, aim in (
            ("plain", "plain", "> 0.7"),
            ("logged", "all tracked", "> 0.3"),
            ("hooked", "empty memory hooks", ""),
            ("why", "called, tracked, sliced", ""),
        ):
            of_bare = speeds[f"{what}_per_second"] / speeds["bare_per_second"]
            table.add_row(
                f"{kind} code offline, {said} | bare unicorn",
                f"{speeds[f'{what}_per_second'] / 1e6:,.1f} M/s",
                f"{speeds['bare_per_second'] / 1e6:,.0f} M/s", f"{of_bare:.3f}", aim,
            )  # fmt: skip
        table.add_row(
            f"slicing per instruction, {kind}", f"{speeds['slicing_us_per_instruction']:.2f} µs",
            "", "", "< 2 µs",
        )  # fmt: skip
    for pages, microseconds in found["rollback"].items():
        table.add_row(f"undoing {pages} written pages", f"{microseconds:.1f} µs", "", "", "")
    table.add_row("first call on a dump", f"{found['first_call_seconds']:.1f} s", "", "", "< 1.5 s")
    table.add_row(
        "  its processor time", f"{found['first_call_processor_seconds']:.1f} s", "", "", ""
    )


def _explore(table: Table, found: dict[str, Any]) -> None:
    for which, cores in (("one", 1), ("all", found["cores"])):
        aim = "> 40,000/s" if which == "all" else ""
        table.add_row(
            f"explore, processes: {cores}", f"{found[which]['per_second']:,.0f}/s", "", "", aim
        )
        table.add_row(
            "  per second of processor time",
            f"{found[which]['transitions'] / found[which]['processor_seconds']:,.0f}/s",
            "", "", "",
        )  # fmt: skip
    for depth in (5, 10, 15):
        at = found["one"]["by_depth"].get(depth)
        if at:
            states, transitions = int(at["states"]), int(at["transitions"])
            table.add_row(
                f"  to depth {depth}: {states:,} states, {transitions:,} steps",
                f"{at['seconds']:.2f} s", "", "", "",
            )  # fmt: skip
    proof = "proven shortest" if found["shortest"] else "perhaps not the shortest"
    table.add_row(
        f"explore: dump to the bug, {found['bug_steps']} steps, {proof}",
        f"{found['bug_seconds']:.1f} s", "", "", "< 60 s",
    )  # fmt: skip
    table.add_row(
        "explore: dump to 'none', all states seen" if found["exhausted"] else "explore: none found",
        f"{found['exhausting_seconds']:.1f} s", "", "", "",
    )  # fmt: skip


if __name__ == "__main__":
    main()
