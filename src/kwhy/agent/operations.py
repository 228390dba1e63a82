"""The operations by name, and the state that they share: journal, probe, working directory."""

import os
import threading
import time
from typing import Any, Dict, List, Optional

from . import blobs, facts, journal, kcore, probe, record, sampling
from .errors import AgentError
from .output import Output
from .process import start
from .server import Operation, Request


class Agent(object):
    """State of one agent process. ``workdir``: where commands start (default: a private one)."""

    def __init__(self, workdir: Optional[str] = None, repaired: Optional[List[str]] = None) -> None:
        self.journal = journal.Journal()
        self.prober = probe.Prober(self.journal)
        self.repaired = repaired or []
        self._lock = threading.Lock()
        self._workdir = workdir
        self._core: Optional[kcore.Kcore] = None

    def operations(self) -> Dict[str, Operation]:
        """What a desk may ask for; parameters and results are documented in ``kwhy.link``."""
        return {
            "probe": lambda request, params: self.prober.features(),
            "read_memory": self.read_memory,
            "blob": lambda request, params: blobs.blob(request, params, self.prober),
            "facts": self.facts,
            "workdir": self.set_workdir,
            "put_file": self.put_file,
            "spawn": self.spawn,
            "record": self.record,
            "threads": sampling.threads,
            "sample": sampling.sample,
            "restore": self.restore,
            "echo": self.echo,
        }

    def greeting(self) -> Dict[str, Any]:
        """The agent's part of HELLO."""
        return dict(probe.identity(), repaired=self.repaired, workdir=self._workdir)

    def close(self) -> List[str]:
        """Undo everything; returns what could not be undone."""
        return self.journal.close()

    # -- reading --------------------------------------------------------------------------------

    def core(self) -> kcore.Kcore:
        """The one open /proc/kcore."""
        with self._lock:
            if self._core is None:
                self._core = kcore.Kcore()
            return self._core

    def read_memory(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """``ranges`` [[address, size], ...]: sizes really read (null: nothing), then the bytes."""
        ranges = params.get("ranges") or []
        if sum(size for _, size in ranges) > kcore.MAX_CALL:
            raise AgentError("usage", "read_memory: over %d bytes in one call" % kcore.MAX_CALL)
        sizes, data = self.core().read(ranges)
        request.send("data", {}, bytes(data))
        return {"sizes": sizes}

    def facts(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """``pid``: that process; none: the system."""
        pid = params.get("pid")
        return facts.system() if pid is None else facts.process(int(pid))

    def echo(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """For tests: sends its input, then ``size`` zero bytes, then waits ``delay`` seconds."""
        data = request.input + bytes(int(params.get("size") or 0))
        request.send("data", {}, data)
        request.stop.wait(float(params.get("delay") or 0))
        request.check()
        return {"params": params}

    # -- files and commands ---------------------------------------------------------------------

    def directory(self) -> str:
        """The working directory, made on demand; a private one goes when the agent ends."""
        with self._lock:
            if self._workdir is None:
                path = "/tmp/kwhy-%d-%s" % (os.getpid(), bytearray(os.urandom(4)).hex())
                os.mkdir(path, 0o700)
                if os.geteuid() == 0:
                    self.journal.add("rmtree", path=path)
                os.chmod(path, 0o755)  # the command may run as another user
                self._workdir = path
            else:
                os.makedirs(self._workdir, exist_ok=True)
            return self._workdir

    def set_workdir(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """``path`` (or none: keep): the directory that commands and files use from now on."""
        path = params.get("path")
        if path:
            if not os.path.isabs(path):
                raise AgentError("usage", "the working directory must be an absolute path")
            with self._lock:
                self._workdir = path
        return {"path": self.directory()}

    def put_file(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """Write one piece of a file: ``path`` (relative: to the working directory), ``mode``,
        ``offset`` of the piece in the request's input, ``size`` of the whole.

        The file appears under its name only when it is complete.
        """
        path = os.path.join(self.directory(), str(params["path"]))
        offset, size = int(params.get("offset") or 0), int(params["size"])
        if os.path.isdir(path):
            raise AgentError("command", "%s is a directory on the target" % path)
        part = "%s.kwhy-part" % path
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if offset == 0 else 0)
            fd = os.open(part, flags, 0o600)
            try:
                os.lseek(fd, offset, os.SEEK_SET)
                view = memoryview(request.input)
                while len(view):
                    view = view[os.write(fd, view) :]
                if offset + len(request.input) >= size:
                    os.fchmod(fd, int(params.get("mode") or 0o755) & 0o7777)
                    os.rename(part, path)
            finally:
                os.close(fd)
        except OSError as error:
            raise AgentError("command", "cannot write %s: %s" % (path, error.strerror))
        return {"path": path, "written": offset + len(request.input)}

    def spawn(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """Run a command; messages started, out, err; the result has its status."""
        child = start(params, self.directory(), request.input)
        timed_out = False
        try:
            request.send("started", {"pid": child.pid})
            child.release()
            follower = Output(request, child)
            limit = params.get("seconds")
            deadline = time.monotonic() + float(limit) if limit else None
            exited: Optional[float] = None
            while True:
                request.check()
                follower.forward()
                now = time.monotonic()
                if child.poll() is not None:
                    exited = exited or now
                    if not follower.open or now > exited + 1.0:
                        break
                elif request.stop.is_set() or (deadline is not None and now > deadline):
                    timed_out = not request.stop.is_set()
                    break
                follower.rest()
            if child.status is None:
                child.end()
                follower.forward()
        finally:
            child.end()
            child.close()
        return {"status": child.status, "timed_out": timed_out}

    # -- tracing --------------------------------------------------------------------------------

    def record(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """See ``kwhy.link``."""
        return record.record(request, params, self.journal, self.prober, self.directory())

    def restore(self, request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
        """Undo what dead agents left behind on this target."""
        return {"repaired": journal.repair(skip=os.getpid())}
