"""A lab guest as a target: by name or by kernel version, with a link to its agent."""

import contextlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kwhy.errors import FeatureError
from kwhy.lab import boot, fetch, guest, kernels, packages
from kwhy.lab.apt import Unreachable
from kwhy.lab.boot import Settings
from kwhy.lab.guest import Guest
from kwhy.lab.progress import Progress
from kwhy.link import Link, agent_zipapp
from kwhy.link.reach import over_socket


@dataclass
class Connection:
    """A guest and the link to an agent of our own in it. Closing ends a disposable guest."""

    guest: Guest
    link: Link
    disposable: bool

    def close(self) -> None:
        """Hang up, and end the guest if it was started for us."""
        try:
            if self.disposable:
                self.guest.stop()  # nothing in it needs tidying up
        finally:
            self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(
    target: str,
    *,
    parts: Iterable[str] = (),
    settings: Settings | None = None,
    progress: Progress | None = None,
    timeout: float = 120.0,
    probe: bool = True,
) -> Connection:
    """Reach a named guest, or boot the kernel that ``target`` means in a disposable one.

    ``parts`` ("debug", "source") of that kernel are fetched as well if they are not cached; what
    the mirror no longer has is done without. ``settings`` are for a guest that is started here.
    ``probe`` false leaves the guest's features untried.
    Raises UsageError, FeatureError, LinkError.
    """
    shown = progress or Progress()
    with ExitStack() as undo:
        running = guest.find(target)
        if running is None:
            kernel = kernels.resolve(target, shown)
            _fetch_parts(kernel, parts, shown)
            running = undo.enter_context(start(target, settings=settings, progress=shown))
            disposable = True
        else:
            known = kernels.by_release(running.release)
            if known:
                _fetch_parts(known, parts, shown)
            disposable = False
        link = open_link(running, timeout, probe=probe)
        undo.pop_all()
    return Connection(running, link, disposable)


def start(
    target: str,
    name: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Guest:
    """Boot the kernel that ``target`` means, with the agent inside. See :func:`boot.start`."""
    shown = progress or Progress()
    kernel = kernels.resolve(target, shown)
    return boot.start(kernel, agent_zipapp().read_bytes(), name, settings, shown)


def open_link(running: Guest, timeout: float = 120.0, *, probe: bool = True) -> Link:
    """A link to a fresh agent in a guest. Raises LinkError."""
    return over_socket(
        running.open_agent(timeout),
        name=f"the guest {running.name}",
        timeout=timeout,
        probe=probe,
    )


def _fetch_parts(kernel: kernels.KernelVersion, parts: Iterable[str], progress: Progress) -> None:
    wanted = list(parts)
    if wanted:  # somebody will explain something: the manual's words on it come from here
        with contextlib.suppress(FeatureError):
            packages.manual_dir(fetch=True, progress=progress)
    for part in wanted:
        try:
            fetch.get(kernel, [part], progress)
        except Unreachable as error:
            progress.write(f"going on without the {part} of {kernel.release}: {error}", final=True)
