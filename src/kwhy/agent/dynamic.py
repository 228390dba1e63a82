"""Our own kprobe, kretprobe and fprobe events, all under one group."""

import os
import re
from typing import Any, Dict, List

from . import tracefs
from .errors import AgentError

DEFINITION = re.compile(r"^([prfte])(\d*)(?::(\S*))?\s+(\S.*)$")
NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
MAX_PROBES = 4096


def parse(definition: str, index: int, group: str) -> Dict[str, Any]:
    """A kprobe_events line, its group replaced by ours, its name "pN" unless it has one.

    Raises AgentError(usage) for what is no definition.
    """
    match = DEFINITION.match(definition.strip())
    if match is None or "\n" in definition.strip():
        raise AgentError("usage", "not a probe definition: %r" % definition[:200])
    kind, limit, name, rest = match.groups()
    name = (name or "").rpartition("/")[2] or "p%d" % index
    if not NAME.match(name):
        raise AgentError("usage", "not a probe name: %r" % name[:100])
    line = "%s%s:%s/%s %s" % (kind, limit, group, name, rest)
    return {"index": index, "name": name, "definition": line, "ok": False}


def parse_all(definitions: List[str], group: str) -> List[Dict[str, Any]]:
    """Parse a list; names must differ."""
    if len(definitions) > MAX_PROBES:
        raise AgentError("usage", "too many probes: %d" % len(definitions))
    probes = [parse(str(text), i, group) for i, text in enumerate(definitions)]
    if len({probe["name"] for probe in probes}) != len(probes):
        raise AgentError("usage", "two probes have the same name")
    return probes


def define(base: str, path: str, group: str, probes: List[Dict[str, Any]]) -> None:
    """Create the events. Sets ``ok``, ``id``, ``format`` or ``error`` of each probe."""
    for probe in probes:
        try:
            tracefs.write(path, probe["definition"] + "\n")
        except OSError as error:
            probe["error"] = _reason(base, os.strerror(error.errno or 0))
            continue
        where = "%s/events/%s/%s" % (base, group, probe["name"])
        text = tracefs.read_or(where + "/format")
        probe["ok"] = True
        probe["format"] = text
        found = re.search(r"^ID:\s*(\d+)", text, re.MULTILINE)
        probe["id"] = int(found.group(1)) if found else None


def _reason(base: str, fallback: str) -> str:
    """What the kernel's own error log says of the last refusal."""
    blocks = tracefs.read_or(base + "/error_log").split("\n[")
    for line in blocks[-1].splitlines():
        if "error:" in line:
            return "%s (%s)" % (line.split("error:", 1)[1].strip(), fallback)
    return fallback
