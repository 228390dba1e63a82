"""Where the lab keeps things: a cache that may be deleted, and the state of running guests."""

import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kwhy.errors import UsageError


def cache_dir() -> Path:
    """``$KWHY_CACHE``, else ``$XDG_CACHE_HOME/kwhy``, else ``~/.cache/kwhy``; created if absent."""
    named = os.environ.get("KWHY_CACHE")
    if named:
        path = Path(named)
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kwhy"
    return _private_dir(path.absolute())


def state_dir() -> Path:
    """Sockets and facts of running guests; gone after a reboot.

    ``$KWHY_STATE``, else ``$XDG_RUNTIME_DIR/kwhy``, else ``/tmp/kwhy-UID``. Short, because the path
    of a unix socket has at most 107 bytes (unix(7)).
    """
    named = os.environ.get("KWHY_STATE")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if named:
        path = Path(named)
    elif runtime and Path(runtime).is_dir():
        path = Path(runtime) / "kwhy"
    else:
        path = Path(tempfile.gettempdir()) / f"kwhy-{os.getuid()}"
    path = _private_dir(path.absolute())
    if len(os.fsencode(path)) > 60:
        raise UsageError(f"the path {str(path)!r} is too long for sockets: set KWHY_STATE")
    return path


def _private_dir(path: Path) -> Path:
    """Make sure that ``path`` is a directory that only we can write to."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
    except OSError as error:
        raise UsageError(f"cannot use the directory {str(path)!r}: {error.strerror}") from None
    # In /tmp anybody could have made it before us: then it is a link or not ours.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        if path.is_dir() and path.parent != Path(tempfile.gettempdir()):
            return path  # the user's own link to another disk
        raise UsageError(f"{str(path)!r} is not a directory of ours: remove it")
    return path


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; say ``busy`` on stderr when it must be awaited.

    The kernel drops the lock when we die, however we die (flock(2)).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(busy, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_once(path: Path, busy: str, make: Callable[[Path], None]) -> Path:
    """``path``, made by ``make(temporary)`` if it is not there yet, whole or not at all.

    ``make`` writes a directory or a file at the temporary path it is given; it is renamed into
    place when done. Two processes do not make the same thing twice.
    """
    if path.exists():
        return path
    with locked(path.with_name(f".{path.name}.lock"), busy):
        if path.exists():
            return path
        temporary = path.with_name(f".{path.name}.new")
        remove(temporary)  # what an interrupted run left behind
        make(temporary)
        temporary.rename(path)
    return path


def remove(path: Path) -> None:
    """Delete a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
