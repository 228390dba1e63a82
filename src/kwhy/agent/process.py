"""Starting a command so that it can be traced from its very first instruction.

The child does everything it must (directory, user, descriptors, group) and then blocks on a gate;
when the gate opens the only thing left to do is ``execve``.
"""

import errno
import os
import pwd
import signal
import time
from typing import Any, Dict, List, Optional

from .errors import AgentError
from .watchdog import close_all

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SESSIONS = ("group", "new", "none")


class Child(object):
    """A started command, still waiting at its gate until :meth:`release`."""

    def __init__(self, pid: int, out: int, err: int, gate: int, report: int, group: bool) -> None:
        self.pid = pid
        self.out = out
        self.err = err
        self._gate = gate
        self._report = report
        self._group = group
        self._failed = b""
        self.status: Optional[Dict[str, Any]] = None

    def release(self) -> None:
        """Open the gate: the child calls execve now."""
        os.write(self._gate, b"g")
        os.close(self._gate)
        self._gate = -1

    def poll(self) -> Optional[Dict[str, Any]]:
        """How it ended, None while it runs."""
        if self.status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status = self.describe(status)
                self.status["cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 6)
        return self.status

    def describe(self, status: int) -> Dict[str, Any]:
        """``{"code", "signal", "core", "exec_errno"}``; exec_errno when execve itself failed."""
        try:
            self._failed += os.read(self._report, 64)
        except OSError:
            pass
        number = int(self._failed) if self._failed.isdigit() else None
        if os.WIFSIGNALED(status):
            code, sig, core = None, os.WTERMSIG(status), os.WCOREDUMP(status)
        else:
            code, sig, core = os.WEXITSTATUS(status), None, False
        return {"code": code, "signal": sig, "core": core, "exec_errno": number}

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal its process group (or it alone, when it shares the agent's)."""
        if self._gate >= 0:
            os.close(self._gate)  # never let it run
            self._gate = -1
        if self.status is not None and not self._group:
            return
        try:
            if self._group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except OSError:
            pass

    def end(self, patience: float = 0.5) -> None:
        """Make sure it is over: SIGTERM, then SIGKILL; reaps it."""
        if self.status is None:
            self.kill(signal.SIGTERM)
            deadline = time.monotonic() + patience
            while self.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            if self.status is None:
                self.kill()
                deadline = time.monotonic() + 5
                while self.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)

    def close(self) -> None:
        """Close the descriptors to it."""
        for fd in (self.out, self.err, self._gate, self._report):
            if fd >= 0:
                os.close(fd)
        self.out = self.err = self._gate = self._report = -1


def start(params: Dict[str, Any], directory: str, stdin: bytes = b"") -> Child:
    """Fork the command of ``params`` (argv, cwd, env, user, session) up to its gate.

    ``env`` values are added to the agent's environment, null removes one. ``session``: "group" (a
    process group of its own, the default), "new" (setsid) or "none". Raises AgentError(command).
    """
    argv = params.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(a, str) for a in argv):
        raise AgentError("usage", "a command is a list of strings")
    cwd = os.path.join(directory, str(params.get("cwd") or ""))
    env = environment(params.get("env"))
    session = params.get("session") or "group"
    if session not in SESSIONS:
        raise AgentError("usage", "session is one of %s" % ", ".join(SESSIONS))
    user = _user(params.get("user"))
    if user:
        env.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    path = resolve(argv[0], cwd, env.get("PATH", DEFAULT_PATH))
    return _fork(path, argv, env, cwd, user, session, stdin)


def environment(extra: Any) -> Dict[str, str]:
    """The agent's environment with ``extra`` applied; PATH is never empty."""
    env = dict(os.environ)
    env.setdefault("PATH", DEFAULT_PATH)
    if isinstance(extra, dict):
        for name, value in extra.items():
            if value is None:
                env.pop(str(name), None)
            else:
                env[str(name)] = str(value)
    return env


def resolve(name: str, cwd: str, path: str) -> str:
    """The file to execute. Raises AgentError(command) when there is none.

    Only existence is checked: if the kernel refuses to execute it, that is the user's question.
    """
    if not os.path.isdir(cwd):
        raise AgentError("command", "there is no directory %s on the target" % cwd)
    if "/" in name:
        found = os.path.join(cwd, name)
        if os.path.lexists(found):
            return found
        raise AgentError("command", "there is no file %s on the target; --put copies one" % name)
    fallback = None
    for directory in path.split(":"):
        found = os.path.join(cwd, directory, name)
        if os.path.isfile(found):
            if os.access(found, os.X_OK):
                return found
            fallback = fallback or found
    if fallback:
        return fallback
    hint = "; did you mean ./%s?" % name if os.path.exists(os.path.join(cwd, name)) else ""
    raise AgentError("command", "there is no command %s on the target%s" % (name, hint))


def _user(name: Any) -> Optional[pwd.struct_passwd]:
    if name is None:
        return None
    try:
        if isinstance(name, int) or str(name).isdigit():
            return pwd.getpwuid(int(name))
        return pwd.getpwnam(str(name))
    except KeyError:
        raise AgentError("command", "there is no user %s on the target" % name)


def _input_file(stdin: bytes) -> int:
    if not stdin:
        return os.open(os.devnull, os.O_RDONLY)
    path = "/tmp/.kwhy-input-%d-%s" % (os.getpid(), bytearray(os.urandom(8)).hex())
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    view = memoryview(stdin)
    while len(view):
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _fork(
    path: str,
    argv: List[str],
    env: Dict[str, str],
    cwd: str,
    user: Optional[pwd.struct_passwd],
    session: str,
    stdin: bytes,
) -> Child:
    source = _input_file(stdin)
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    gate_end, gate = os.pipe()
    report, report_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        streams = (source, out_end, err_end)
        _child(path, argv, env, cwd, user, session, streams, gate_end, report_end)
    for fd in (source, out_end, err_end, gate_end, report_end):
        os.close(fd)
    ready = os.read(report, 64)
    child = Child(pid, out, err, gate, report, session != "none")
    if ready != b"ready":
        child.end()
        child.close()
        problem = os.strerror(int(ready)) if ready.isdigit() else "it died"
        raise AgentError("command", "cannot start %s in %s: %s" % (path, cwd, problem))
    os.set_blocking(report, False)
    return child


def _child(
    path: str,
    argv: List[str],
    env: Dict[str, str],
    cwd: str,
    user: Optional[pwd.struct_passwd],
    session: str,
    streams: "tuple[int, int, int]",
    gate: int,
    report: int,
) -> None:
    """In the child; never returns. Nothing here may take a lock another thread might hold."""
    try:
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
        close_all({0, 1, 2, gate, report})
        if session == "new":
            os.setsid()
        elif session == "group":
            os.setpgid(0, 0)
        os.chdir(cwd)
        if user is not None:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        # Python ignores SIGPIPE; an ignored signal would stay ignored across execve.
        for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.write(report, b"ready")
        if os.read(gate, 1):
            os.execve(path, argv, env)
    except OSError as error:
        number = error.errno or errno.EIO
        os.write(report, b"%d" % number)
        os._exit(127 if number == errno.ENOENT else 126)
    finally:
        os._exit(125)
