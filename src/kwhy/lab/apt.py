"""Debian packages by apt's own client, out of a private tree and without installing anything.

The mirrors come from this machine's own apt configuration; proxies and credentials set there work
here too, because only the directories and the sources are ours.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kwhy.errors import FeatureError
from kwhy.lab.paths import cache_dir, locked
from kwhy.lab.progress import Progress

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: Debian releases and the suites to read for each: (suite, from the security repository?).
SUITES: dict[str, list[tuple[str, bool]]] = {
    "bullseye": [("bullseye", False), ("bullseye-security", True)],
    "bookworm": [("bookworm", False), ("bookworm-security", True)],
    "trixie": [("trixie", False), ("trixie-backports", False)],
}

#: Package lists are looked at again after this many seconds.
LISTS_FRESH = 24 * 3600


class Unreachable(FeatureError):
    """The mirror does not answer (or apt refuses what it says)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "debian-mirror")


class Vanished(Unreachable):
    """The mirror answers, but no longer has this file."""


@dataclass(frozen=True)
class Mirrors:
    """Where this machine gets Debian and its security updates from."""

    debian: str
    security: str


@dataclass(frozen=True)
class Package:
    """One version of a package that can be downloaded."""

    name: str
    version: str


def machine_mirrors() -> Mirrors:
    """The two repositories in this machine's apt configuration.

    Raises Unreachable where there is no apt or no such repository.
    """
    try:
        output = subprocess.run(
            ["apt-get", "indextargets", "Created-By: Packages", "Component: main"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        raise Unreachable("kernels are fetched with apt-get, and it does not work here") from None
    return parse_mirrors(output)


def parse_mirrors(targets: str) -> Mirrors:
    """Read the output of ``apt-get indextargets`` (stanzas of ``Key: value``)."""
    debian = security = None
    for stanza in re.split(r"\n\s*\n", targets.strip()):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        uri = fields.get("Repo-URI") or fields.get("Site")
        release = fields.get("Release", "")
        # Origin is known only after an update; sources without one are judged by their suite.
        if not uri or fields.get("Origin", "Debian") != "Debian":
            continue
        if release.endswith(("-security", "/updates")):
            security = security or uri
        elif release.split("-")[0] in ("bookworm", "trixie", "stable", "oldstable", "sid"):
            debian = debian or uri
    if debian is None:
        raise Unreachable("this machine's apt sources have no Debian repository to fetch from")
    return Mirrors(debian, security or debian.rstrip("/") + "-security/")


class Apt:
    """apt for one Debian release (``bullseye``, ``bookworm``, ``trixie``) in a private tree."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.tree = cache_dir() / "apt" / release

    def refresh(self, progress: Progress) -> None:
        """Fetch the package lists unless that was done within a day. Raises Unreachable."""
        stamp = self.tree / "updated"
        with locked(self.tree / "lock", "waiting for another kwhy that reads the package lists"):
            if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_FRESH:
                return
            self._write_configuration()
            with progress.step(f"reading Debian's package lists ({self.release})"):
                self._run("apt-get", "-q", "update", "--error-on=any")
            stamp.touch()

    @property
    def has_lists(self) -> bool:
        """Whether lists were fetched once, however old."""
        return (self.tree / "updated").exists()

    def lists_time(self) -> float:
        """When the lists were fetched, in seconds since 1970."""
        return (self.tree / "updated").stat().st_mtime

    def versions(self, names: Iterable[str]) -> list[Package]:
        """All versions on offer of the named packages, by ``apt-cache madison``."""
        wanted = list(names)
        return parse_madison(self._run("apt-cache", "madison", *wanted)) if wanted else []

    def package_names(self, prefix: str) -> list[str]:
        """The names of all packages that start with ``prefix``."""
        return sorted(set(self._run("apt-cache", "pkgnames", prefix).split()))

    def dependencies(self, package: Package) -> list[str]:
        """The raw alternatives of its Depends field, such as ``libc6 (>= 2.38)``."""
        text = self._run("apt-cache", "show", f"{package.name}={package.version}")
        match = re.search(r"^Depends: (.*)$", text, re.M)
        return match[1].split(", ") if match else []

    def closure(self, names: Iterable[str]) -> list[str]:
        """The packages and everything they depend on, as apt would install them on nothing."""
        text = self._run("apt-get", "install", "--simulate", "--no-install-recommends", *names)
        return re.findall(r"^Inst (\S+)", text, re.M)

    def download(self, packages: list[Package], into: Path, progress: Progress) -> list[Path]:
        """Download packages to a directory and return the .deb files in the same order.

        An interrupted download goes on where it stopped, and apt checks the hash of the whole.
        Raises Unreachable, and its kind Vanished when the mirror answers but has no such file.
        """
        into.mkdir(parents=True, exist_ok=True)
        result = []
        for package in packages:
            found = _find_deb(into, package)
            if found is None:
                with progress.step(f"downloading {package.name} {package.version}") as step:
                    self._fetch(package, into, step.percent)
                found = _find_deb(into, package)
            if found is None:
                raise Unreachable(f"apt-get did not deliver {package.name} {package.version}")
            result.append(found)
        return result

    def available(self, package: Package, into: Path) -> bool:
        """Whether the mirror really has a package that its lists name: see if a download starts.

        Security suites list more versions than their pool keeps. What did arrive stays in ``into``
        for :meth:`download` to go on with. Raises Unreachable when the mirror does not answer.
        """
        into.mkdir(parents=True, exist_ok=True)
        if _find_deb(into, package):
            return True
        try:
            self._fetch(package, into, None)
        except Vanished:
            return False
        return True

    def _fetch(
        self, package: Package, into: Path, percent: Callable[[float], object] | None
    ) -> None:
        """Download one package; with no one to tell the percentage, stop when data arrives.

        What is whole leaves ``incoming``; what is not stays there.
        """
        # apt-get writes under the final name from the first byte, and goes on with what it finds
        # there; so it works in a directory of its own and only whole files leave it.
        incoming = into / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        with locked(into / "lock", f"waiting for another kwhy that downloads {package.name}"):
            if _find_deb(into, package) is None:
                complete = self._fetch_locked(package, incoming, percent)
                whole = _find_deb(incoming, package)
                if complete and whole:
                    whole.rename(into / whole.name)

    def _fetch_locked(
        self, package: Package, incoming: Path, percent: Callable[[float], object] | None
    ) -> bool:
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [
                "apt-get",
                "-qq",
                "-o",
                f"APT::Status-Fd={writer}",
                "download",
                f"{package.name}={package.version}",
            ],
            cwd=incoming,
            env=self._environment(),
            pass_fds=[writer],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(writer)
        try:
            with os.fdopen(reader, encoding="utf-8", errors="replace") as status:
                for line in status:
                    fields = line.split(":")
                    if fields[0] != "dlstatus":
                        continue
                    if percent:
                        percent(float(fields[2]))
                    elif float(fields[2]) > 0:
                        return False
            output = process.communicate()[0].decode(errors="replace")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            what = f"cannot download {package.name} {package.version}"
            raise _failure(output, what, Vanished if "404 " in output else Unreachable)
        return True

    def _write_configuration(self) -> None:
        """The private tree: our sources and state, the machine's own proxies and credentials."""
        mirrors = machine_mirrors()
        for name in ("state/lists/partial", "cache/archives/partial", "etc/none.d"):
            (self.tree / name).mkdir(parents=True, exist_ok=True)
        signed = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
        stanzas = [
            f"Types: deb\nURIs: {mirrors.security if security else mirrors.debian}\n"
            f"Suites: {suite}\nComponents: main\nArchitectures: amd64\n{signed}"
            for suite, security in SUITES[self.release]
        ]
        (self.tree / "etc" / "lab.sources").write_text("\n".join(stanzas))
        (self.tree / "status").touch()
        (self.tree / "apt.conf").write_text(
            f'Dir::State "{self.tree}/state";\n'
            f'Dir::State::status "{self.tree}/status";\n'
            f'Dir::Cache "{self.tree}/cache";\n'
            'Dir::Cache::pkgcache "pkgcache.bin";\n'
            'Dir::Cache::srcpkgcache "srcpkgcache.bin";\n'
            f'Dir::Etc::sourcelist "{self.tree}/etc/none.list";\n'
            f'Dir::Etc::sourceparts "{self.tree}/etc";\n'
            f'Dir::Etc::preferences "{self.tree}/etc/none";\n'
            f'Dir::Etc::preferencesparts "{self.tree}/etc/none.d";\n'
            'APT::Architecture "amd64";\n'
            'APT::Architectures { "amd64"; };\n'
            'APT::Sandbox::User "root";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "2";\n'
            'Acquire::http::Timeout "30";\n'
        )

    def _environment(self) -> dict[str, str]:
        return os.environ | {"APT_CONFIG": str(self.tree / "apt.conf"), "LC_ALL": "C"}

    def _run(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command, env=self._environment(), capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise Unreachable(f"kernels are fetched with {command[0]}, not found here") from None
        if done.returncode:
            raise _failure(done.stdout + done.stderr, f"{command[0]} {command[1]} failed")
        return done.stdout


def _failure(output: str, what: str, kind: type[Unreachable] = Unreachable) -> Unreachable:
    lines = [line for line in output.splitlines() if line.startswith(("E: ", "W: "))]
    errors = [line[3:] for line in sorted(lines)]  # errors before warnings
    return kind(f"{what}: {errors[0] if errors else 'no reason given'}")


def parse_madison(output: str) -> list[Package]:
    """Read ``apt-cache madison``: ``name | version | repository`` per line, sources left out."""
    packages = []
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3 and not fields[2].endswith("Sources"):
            packages.append(Package(fields[0], fields[1]))
    return packages


def _find_deb(directory: Path, package: Package) -> Path | None:
    # apt writes the colon of an epoch as %3a in file names.
    version = package.version.replace(":", "%3a")
    for path in directory.iterdir():
        if path.name.startswith(f"{package.name}_{version}_") and path.suffix == ".deb":
            return path
    return None
