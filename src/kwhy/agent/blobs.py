"""Named binary facts of the target, read-only; names are data, never paths."""

import json
import os
import re
import zlib
from typing import Any, Callable, Dict, List

from . import facts, kcore, tracefs
from .errors import AgentError
from .probe import Prober, build_id, read_bytes
from .server import Request

MAX_BLOB = 256 << 20
PACK_ABOVE = 64 << 10
WORD = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")

#: blobs that are one file of tracefs
TRACEFS_FILES = {
    "header_page": "events/header_page",
    "header_event": "events/header_event",
    "available_filter_functions": "available_filter_functions",
    "available_filter_functions_addrs": "available_filter_functions_addrs",
    "available_events": "available_events",
    "enabled_functions": "enabled_functions",
    "printk_formats": "printk_formats",
    "saved_cmdlines": "saved_cmdlines",
    "saved_tgids": "saved_tgids",
    "error_log": "error_log",
    "README": "README",
}

#: blobs that are one file elsewhere
FILES = {
    "kallsyms": "/proc/kallsyms",
    "notes": "/sys/kernel/notes",
    "cmdline": "/proc/cmdline",
    "version": "/proc/version",
    "iomem": "/proc/iomem",
    "cpuinfo": "/proc/cpuinfo",
    "meminfo": "/proc/meminfo",
    "mounts": "/proc/self/mountinfo",
    "filesystems": "/proc/filesystems",
    "kprobe_blacklist": "/sys/kernel/debug/kprobes/blacklist",
}


def blob(request: Request, params: Dict[str, Any], prober: Prober) -> Dict[str, Any]:
    """Stream the blob ``name``; result ``{"name", "size", "encoding": "raw"|"zlib"}``."""
    name = str(params.get("name") or "")
    data = read_blob(name, prober)
    packed = zlib.compress(data, 1) if len(data) > PACK_ABOVE else data
    useful = len(packed) < len(data) * 0.9
    request.send("data", {}, packed if useful else data)
    return {"name": name, "size": len(data), "encoding": "zlib" if useful else "raw"}


def read_blob(name: str, prober: Prober) -> bytes:
    """The bytes of a blob. Raises AgentError(absent) when this target has none of that name."""
    head, _, rest = name.partition("/")
    parts = rest.split("/") if rest else []
    if any(not WORD.match(part) for part in parts):
        raise AgentError("usage", "not a name of a blob: %r" % name[:200])
    if head == "btf" and len(parts) == 1:
        return _file("/sys/kernel/btf/" + parts[0], name)
    if head == "format" and len(parts) == 2:
        return _file("%s/events/%s/%s/format" % (prober.tracefs(), parts[0], parts[1]), name)
    if parts:
        raise AgentError("absent", "there is no blob %r" % name[:200])
    if name in TRACEFS_FILES:
        return _file(prober.tracefs() + "/" + TRACEFS_FILES[name], name)
    if name in FILES:
        return _file(FILES[name], name)
    made = MADE.get(name)
    if made is None:
        raise AgentError("absent", "there is no blob %r" % name[:200])
    return made()


def _file(path: str, name: str) -> bytes:
    pieces: List[bytes] = []
    total = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while True:
                piece = file.read(1 << 20)
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)
                total += len(piece)
                if total > MAX_BLOB:
                    raise AgentError("internal", "the blob %s is too large" % name)
    except OSError as error:
        raise AgentError("absent", "no blob %s: %s: %s" % (name, path, error.strerror))


def modules() -> bytes:
    """JSON ``[{"name", "size", "address", "taints", "state", "build_id", "sections": {..}}]``.

    Addresses are integers; sections come from /sys/module/NAME/sections.
    """
    found: List[Dict[str, Any]] = []
    for line in read_bytes("/proc/modules").decode("utf-8", "replace").splitlines():
        fields = line.split()
        if len(fields) < 6:
            continue
        root = "/sys/module/" + fields[0]
        sections = {}
        try:
            names = sorted(os.listdir(root + "/sections"))
        except OSError:
            names = []
        for name in names:
            text = tracefs.read_or("%s/sections/%s" % (root, name))
            if text.startswith("0x"):
                sections[name] = int(text, 16)
        found.append(
            {
                "name": fields[0],
                "size": int(fields[1]),
                "state": fields[4],
                "address": int(fields[5], 16),
                "taints": fields[6] if len(fields) > 6 else "",
                "build_id": build_id(read_bytes(root + "/notes/.note.gnu.build-id")),
                "srcversion": tracefs.read_or(root + "/srcversion"),
                "sections": sections,
            }
        )
    return json.dumps(found).encode("ascii")


def kmsg() -> bytes:
    """The kernel log's last MiB, in the record format of /dev/kmsg, one record after the other."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise AgentError("absent", "no kernel log: %s" % error.strerror)
    try:
        return b"".join(facts.read_records(fd))[-(1 << 20) :]
    finally:
        os.close(fd)


def vmcoreinfo() -> bytes:
    """The PT_NOTE segment of /proc/kcore (VMCOREINFO among others)."""
    core = kcore.Kcore()
    os.close(core.fd)
    return core.note


def config() -> bytes:
    """The kernel's build configuration as text."""
    packed = read_bytes("/proc/config.gz")
    if packed:
        return zlib.decompress(packed, 31)  # with gzip header
    release = os.uname().release
    for path in ("/boot/config-" + release, "/lib/modules/%s/config" % release):
        data = read_bytes(path)
        if data:
            return data
    raise AgentError("absent", "no kernel configuration in /proc/config.gz or /boot")


def kcore_segments() -> bytes:
    """JSON ``[[address, size, file offset], ...]`` of /proc/kcore's PT_LOAD segments."""
    core = kcore.Kcore()
    os.close(core.fd)
    return json.dumps(core.segments).encode("ascii")


def btf_names() -> bytes:
    """JSON list of the names that ``btf/NAME`` knows."""
    try:
        return json.dumps(sorted(os.listdir("/sys/kernel/btf"))).encode("utf-8")
    except OSError as error:
        raise AgentError("absent", "no BTF: %s" % error.strerror)


MADE: Dict[str, Callable[[], bytes]] = {
    "modules": modules,
    "kmsg": kmsg,
    "vmcoreinfo": vmcoreinfo,
    "config": config,
    "kcore_segments": kcore_segments,
    "btf": btf_names,
}
