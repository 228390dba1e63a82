"""What is measured; each function returns numbers, nothing is printed here."""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.guest import PLACE, Bench
from kwhy.case.capture import record_round
from kwhy.case.live import LiveEvidence

RUNS = 3
LOOPS = 5000
DECODE_LOOPS = 8000


def verdict(bench: Bench) -> dict[str, Any]:
    """Seconds from the command line to the verdict, beside trace-cmd's listing of the same command.

    kwhy is measured as a user runs it, its own start and the agent's included; trace-cmd inside
    the guest, where it only has to record and list. trace-cmd does not answer the question.
    """
    command = [
        sys.executable, "-m", "kwhy", "fail", "--lab", bench.name, "--json", "--", f"{PLACE}/eio",
    ]  # fmt: skip
    ours, answer = [], {}
    for _ in range(RUNS + 1):
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, check=False)
        ours.append(time.monotonic() - begin)
        if done.returncode not in (0, 1):
            why = done.stderr[-500:].decode("utf-8", "replace")
            raise SystemExit(f"bench: kwhy fail ended with {done.returncode}: {why}")
        answer = json.loads(done.stdout)
    record = f"cd /tmp && trace-cmd record -q -p function_graph -F -c -o t.dat {PLACE}/eio"
    theirs = []
    for _ in range(RUNS):
        theirs.append(bench.timed(record) + bench.timed("cd /tmp && trace-cmd report t.dat"))
    return {
        "first_seconds": ours[0],  # debug information opened and indexed for the first time
        "seconds": statistics.median(ours[1:]),
        "trace_cmd_seconds": statistics.median(theirs),
        "ratio": statistics.median(ours[1:]) / statistics.median(theirs),
        "origin": answer.get("origin", {}).get("function"),
        "confidence": answer.get("confidence"),
    }


def slowdown(bench: Bench) -> dict[str, Any]:
    """How much longer one failing and one good call take while recorded, and under strace -f."""
    out: dict[str, Any] = {}
    for kind in ("bad", "good"):
        plain = [float(bench.run(f"{PLACE}/loop", kind, str(LOOPS))) for _ in range(RUNS)]
        traced = [
            float(bench.run("strace", "-f", "-o", "/dev/null", f"{PLACE}/loop", kind, str(LOOPS)))
            for _ in range(RUNS)
        ]
        ours = []
        lost = 0
        for _ in range(RUNS):
            round_ = record_round(
                LiveEvidence(bench.link), bench.link,
                command=[f"{PLACE}/loop", kind, str(LOOPS)],
            )  # fmt: skip
            ours.append(float(round_.tails["out"]))
            lost += sum(round_.lost.values())
        base = min(plain)
        out[kind] = {
            "plain_ns": base,
            "kwhy_ns": min(ours),
            "strace_ns": min(traced),
            "kwhy_times": min(ours) / base,
            "strace_times": min(traced) / base,
            "of_strace": (min(ours) - base) / max(min(traced) - base, 1e-9),
            "lost": lost,
        }
    return out


def decoding(bench: Bench) -> dict[str, Any]:
    """Events per second of kwhy's decoder and of trace-cmd report, both inside the guest."""
    bench.run(
        "sh", "-c",
        "cd /tmp && trace-cmd record -q -b 60000 -p function -e raw_syscalls --file-version 6 -F "
        f"-o d.dat {PLACE}/loop bad {DECODE_LOOPS}",
    )  # fmt: skip
    # Unpacked, not installed: nobody has set Debian's alternatives for numpy's libraries.
    libraries = "/usr/lib/x86_64-linux-gnu"
    facts = json.loads(
        bench.run(
            "env", f"LD_LIBRARY_PATH={libraries}/blas:{libraries}/lapack",
            "python3", f"{PLACE}/bench_guest.py", f"{PLACE}/kwhy.zip", "/tmp/d.dat",
        )
    )  # fmt: skip
    theirs = min(bench.timed("trace-cmd report /tmp/d.dat") for _ in range(2))
    ours = min(facts["seconds"])
    return {
        "events": facts["events"],
        "kwhy_seconds": ours,
        "trace_cmd_seconds": theirs,
        "kwhy_per_second": facts["events"] / ours,
        "trace_cmd_per_second": facts["events"] / theirs,
        "times": theirs / ours,
        "damaged": facts["damaged"],
    }
