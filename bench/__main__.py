"""The command: ``python -m bench [--series 6.12] [--only verdict,decoding] [--out FILE]``."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import measures
from bench.calls import calls
from bench.guest import bench_guest

MEASURES = {
    "verdict": measures.verdict,
    "slowdown": measures.slowdown,
    "decoding": measures.decoding,
    "calls": calls,
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
        for what, aim in (("plain", 0.7), ("logged", 0.3)):
            table.add_row(
                f"kernel code offline, {what} | bare unicorn",
                f"{found[f'{what}_per_second'] / 1e6:,.0f} M/s",
                f"{found['bare_per_second'] / 1e6:,.0f} M/s",
                f"{found[f'{what}_of_bare']:.2f}", f"> {aim}",
            )  # fmt: skip
        table.add_row(
            "slicing per instruction", f"{found['slicing_us_per_instruction']:.1f} µs", "", "",
            "< 2 µs",
        )  # fmt: skip
        table.add_row("undoing per page", f"{found['rollback_us_per_page']:.1f} µs", "", "", "")
        table.add_row(
            "first call on a dump", f"{found['first_call_seconds']:.1f} s", "", "", "< 1.5 s"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
