"""The guest of the benchmark: one for everything, with the peers' programs in it."""

import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwhy import lab
from kwhy.lab.build import build_program
from kwhy.lab.incidents import INCIDENTS
from kwhy.lab.packages import guest_packages

HERE = Path(__file__).parent
TOOLS = ("trace-cmd", "strace", "python3-numpy")
PLACE = "/root/bench"


@dataclass
class Bench:
    """A running guest with the programs of the benchmark under PLACE."""

    name: str
    link: Any

    def run(self, *argv: str, check: bool = True) -> str:
        """Standard output of a command in the guest."""
        text, errors = b"", b""
        status: dict[str, Any] = {}
        with self.link.stream("spawn", timeout=900, argv=list(argv)) as stream:
            for message in stream:
                if message.kind == "out":
                    text += message.data
                elif message.kind == "err":
                    errors += message.data
                elif message.kind == "end":
                    status = message.header.get("status") or {}
        if check and (status.get("code") or status.get("signal")):
            raise SystemExit(
                f"bench: {' '.join(argv)} ended with {status}: {errors.decode()[-500:]}"
            )
        return text.decode("utf-8", "replace")

    def timed(self, script: str) -> float:
        """Seconds that a shell script takes inside the guest, by the guest's own clock."""
        code = (
            "import subprocess, sys, time; b = time.monotonic();"
            "subprocess.call(['sh', '-c', sys.argv[1]], stdout=subprocess.DEVNULL,"
            " stderr=subprocess.DEVNULL); print(time.monotonic() - b)"
        )
        return float(self.run("python3", "-c", code, script))


@contextmanager
def bench_guest(series: str) -> Iterator[Bench]:
    """Boot it, put everything in, end it."""
    name = f"bench-{int(time.time()) % 100000}"
    files = {"/": guest_packages(TOOLS)}
    guest = lab.start(series, name, lab.Settings(memory=2560, files=files, keep=False))
    try:
        with lab.open_link(guest) as link:
            bench = Bench(name, link)
            bench.run("mkdir", "-p", PLACE)
            link.put(build_program(HERE / "loop.c"), f"{PLACE}/loop")
            link.put(build_program(INCIDENTS["tcsetattr_orphan"].source), f"{PLACE}/eio")
            link.put(HERE / "bench_guest.py", f"{PLACE}/bench_guest.py")
            link.put(_packed(), f"{PLACE}/kwhy.zip")
            yield bench
    finally:
        guest.stop()


def _packed() -> Path:
    """kwhy's own modules as a zip that Python imports from."""
    import kwhy
    from kwhy.lab.paths import cache_dir

    root = Path(kwhy.__file__).parent
    out = cache_dir() / "bench-kwhy.zip"
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(root.rglob("*.py")):
            archive.write(path, Path("kwhy") / path.relative_to(root))
    return out
