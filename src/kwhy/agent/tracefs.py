"""Finding tracefs, and reading and writing its files.

Most tracefs files act on ``write``, take one token per call and lose what they had when opened
with O_TRUNC, so every write here says which it means (Documentation/trace/ftrace.rst).
"""

import os
import threading
from typing import List, Optional

from .errors import AgentError

RUN_DIR = "/run/kwhy"
#: Stands for tracefs in a journal, which another process may have to find elsewhere.
ANCHOR = "@tracefs"

_lock = threading.Lock()
_base: Optional[str] = None
_detached = False


def is_tracefs(path: str) -> bool:
    """Whether tracefs is mounted at ``path``, and not hidden from us."""
    return os.path.exists(path + "/current_tracer") or os.path.exists(path + "/set_event")


def find() -> Optional[str]:
    """Where tracefs is mounted; None when it is not.

    Only what is listed as mounted: a mere look at /sys/kernel/debug/tracing would mount it there.
    """
    for line in read_or("/proc/mounts").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "tracefs" and is_tracefs(fields[1]):
            return fields[1]
    return None


def locate() -> str:
    """The path of tracefs; where nobody mounted it, of a mount that only this process sees.

    Raises AgentError(feature root or tracefs).
    """
    global _base, _detached
    with _lock:
        if _base is None or not is_tracefs(_base):
            if os.geteuid() != 0:
                raise AgentError("feature", "tracing takes root: run kwhy as root", "root")
            found = find()
            _detached = found is None
            _base = found or _mount_detached()
        return _base


def detached() -> bool:
    """Whether tracefs had to be mounted, for this process alone."""
    return _detached


def anchored(path: str) -> str:
    """A path as it is written into a journal."""
    if _base is not None and path.startswith(_base + "/"):
        return ANCHOR + path[len(_base) :]
    return path


def resolve(path: str) -> str:
    """The other way round, for whoever undoes."""
    return locate() + path[len(ANCHOR) :] if path.startswith(ANCHOR + "/") else path


def _mount_detached() -> str:
    """Mount tracefs, hold on to it, and take it out of the mount table at once.

    It ends with the last descriptor, however this process dies.
    """
    place = "%s/tracing-%d" % (run_dir(), os.getpid())
    os.makedirs(place, mode=0o700, exist_ok=True)
    text = _run(["mount", "-t", "tracefs", "-o", "nosuid,nodev,noexec", "tracefs", place])
    try:
        if not text and is_tracefs(place):
            fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return "/proc/self/fd/%d" % fd
    finally:
        unmount(place)
    raise AgentError(
        "feature",
        "tracefs is not mounted and cannot be mounted (%s): "
        "run as root on a kernel with CONFIG_FTRACE" % (text or "unknown reason"),
        "tracefs",
    )


def unmount(path: str) -> None:
    """Take a mount out of the table, and its directory away."""
    _run(["umount", "-l", path])
    try:
        os.rmdir(path)
    except OSError:
        pass


def _run(command: List[str]) -> str:
    """What a command complained of, "" when it went well."""
    import subprocess  # costly, and rarely needed

    try:
        done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = done.communicate()[0].decode("utf-8", "replace").strip()
        return "" if done.returncode == 0 else text or "status %d" % done.returncode
    except OSError as error:
        return str(error)


def run_dir() -> str:
    """The directory for journals and locks, made on demand with mode 0700."""
    try:
        os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
    except OSError as error:
        raise AgentError(
            "feature", "cannot make %s: %s; run as root" % (RUN_DIR, error.strerror), "root"
        )
    return RUN_DIR


# -- files -----------------------------------------------------------------------------------------


def read(path: str) -> str:
    """The text of a small file, whole; raises OSError."""
    with open(path, "rb") as file:
        return file.read().decode("utf-8", "replace")


def read_or(path: str, default: str = "") -> str:
    """The stripped text of a small file, ``default`` when it cannot be read."""
    try:
        return read(path).strip()
    except OSError:
        return default


def write(path: str, text: str) -> None:
    """One write without O_TRUNC: sets a value, or adds to a list without clearing it."""
    _write(path, os.O_WRONLY | os.O_APPEND, text)


def clear(path: str) -> None:
    """Empty a list-like file (set_ftrace_pid, set_ftrace_filter, trace): open with O_TRUNC."""
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def _write(path: str, flags: int, text: str) -> None:
    fd = os.open(path, flags)
    try:
        os.write(fd, text.encode("utf-8"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path)  # so that every refusal names its file
    finally:
        os.close(fd)


def selected(text: str) -> str:
    """The chosen one of a list in which it stands in brackets (trace_clock), else the text."""
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end else text.strip()
