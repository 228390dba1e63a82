"""The manifest of a case file: its schema, and strict reading of what may be hostile.

``manifest.json`` (schema ``kwhy.case/1``)::

    {"schema": "kwhy.case/1", "kwhy": "0.1.0",
     "facts":  {"release", "build_id", "arch", "target", "hello", "question", "extra"},
     "memory": {"pages": N},                          memory/index, memory/pages
     "blobs":  [{"name", "entry", "size"} | {"name"}] without entry: the target has none
     "rounds": [{"command", "lost", "page_size", "formats", "probes", "status", "tasks", "tails",
                 "extra", "pages": [{"cpu", "entry", "size"}]}]}

Sizes are those of the uncompressed bytes.  Every entry but the two JSON ones is a zstd frame.
"""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from kwhy.case.evidence import JSON, PAGE, Facts, Round
from kwhy.errors import InputError

SCHEMA = "kwhy.case/1"
ENTRY = re.compile(
    r"manifest\.json|answers\.json|memory/(?:index|pages)|blobs/\d{1,5}|rounds/\d{1,4}/cpu\d{1,4}"
)
"""The only names an entry may have: nothing of a case ever becomes a path."""

MAX_ENTRIES = 20_000
MAX_MANIFEST = 32 << 20
MAX_ANSWERS = 512 << 20
MAX_ENTRY = 2 << 30
MAX_TOTAL = 4 << 30
MAX_PAGES = MAX_ENTRY // PAGE
FREE_RATIO_SIZE = 64 << 20
MAX_RATIO = 2000
"""An entry above FREE_RATIO_SIZE must not unpack to more than MAX_RATIO times its stored size."""


@dataclass
class BlobEntry:
    """Where a blob is; ``entry`` None: the target did not have it."""

    name: str
    entry: str | None
    size: int = 0


@dataclass
class PagesEntry:
    """Where the raw trace pages of one CPU in one round are."""

    cpu: int
    entry: str
    size: int


@dataclass
class Manifest:
    """The manifest as values; rounds come without their pages, which ``round_pages`` places."""

    facts: Facts = field(default_factory=Facts)
    memory_pages: int = 0
    blobs: list[BlobEntry] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    round_pages: list[list[PagesEntry]] = field(default_factory=list)


class Damaged(ValueError):
    """The manifest is not what the schema says; the text names the key."""


def parse_json(data: bytes, what: str) -> Any:
    """JSON of finite numbers; raises Damaged (also for nesting and numbers made to hurt)."""

    def refuse(text: str) -> Any:
        raise Damaged(f"{what} holds {text}")

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text[:20])

    try:
        return json.loads(data, parse_constant=refuse, parse_float=number)
    except Damaged:
        raise
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what} is not valid JSON: {error}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Damaged(f"{where} is not an object")
    return value


def _list(value: Any, where: str, limit: int = MAX_ENTRIES) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise Damaged(f"{where} is not a list of at most {limit} items")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Damaged(f"{where} is not a string")
    return value


def _number(value: Any, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Damaged(f"{where} is not a whole number from {low} to {high}")
    return value


def _entry(value: Any, where: str) -> str:
    text = _text(value, where)
    if not ENTRY.fullmatch(text):
        raise Damaged(f"{where} names the impossible entry {text[:60]!r}")
    return text


def decode(data: bytes) -> Manifest:
    """The manifest behind its JSON; raises Damaged, or InputError for another schema."""
    top = _object(parse_json(data, "manifest.json"), "the manifest")
    schema = top.get("schema")
    if schema != SCHEMA:
        shown = schema if isinstance(schema, str) and len(schema) < 60 else type(schema).__name__
        raise InputError(
            f"not a case this kwhy can read: its schema is {shown!r}, expected {SCHEMA!r}"
        )
    memory = _object(top.get("memory"), "memory")
    out = Manifest(
        _facts(top.get("facts")), _number(memory.get("pages"), "memory.pages", 0, MAX_PAGES)
    )
    names = set()
    for i, item in enumerate(_list(top.get("blobs"), "blobs")):
        where = f"blobs[{i}]"
        row = _object(item, where)
        name = _text(row.get("name"), f"{where}.name")
        if name in names:
            raise Damaged(f"{where} repeats the name {name[:60]!r}")
        names.add(name)
        if row.get("entry") is None:
            out.blobs.append(BlobEntry(name, None))
        else:
            size = _number(row.get("size"), f"{where}.size", 0, MAX_ENTRY)
            out.blobs.append(BlobEntry(name, _entry(row["entry"], f"{where}.entry"), size))
    for i, item in enumerate(_list(top.get("rounds"), "rounds", 10_000)):
        where = f"rounds[{i}]"
        row = _object(item, where)
        out.rounds.append(_round(row, where))
        cpus: dict[int, PagesEntry] = {}
        for j, page in enumerate(_list(row.get("pages"), f"{where}.pages")):
            at = f"{where}.pages[{j}]"
            cell = _object(page, at)
            cpu = _number(cell.get("cpu"), f"{at}.cpu", 0, 9999)
            if cpu in cpus:
                raise Damaged(f"{at} repeats CPU {cpu}")
            size = _number(cell.get("size"), f"{at}.size", 0, MAX_ENTRY)
            cpus[cpu] = PagesEntry(cpu, _entry(cell.get("entry"), f"{at}.entry"), size)
        out.round_pages.append(list(cpus.values()))
    return out


def _facts(value: Any) -> Facts:
    row = _object(value, "facts")
    return Facts(
        release=_text(row.get("release"), "facts.release"),
        build_id=_text(row.get("build_id"), "facts.build_id"),
        arch=_text(row.get("arch"), "facts.arch"),
        target=_text(row.get("target"), "facts.target"),
        hello=_object(row.get("hello"), "facts.hello"),
        question=_object(row.get("question"), "facts.question"),
        extra=_object(row.get("extra"), "facts.extra"),
    )


def _round(row: dict[str, Any], where: str) -> Round:
    lost: dict[int, int] = {}
    for key, value in _object(row.get("lost"), f"{where}.lost").items():
        if not key.isdecimal() or len(key) > 4:
            raise Damaged(f"{where}.lost has the CPU {key[:20]!r}")
        lost[int(key)] = _number(value, f"{where}.lost", 0, 1 << 62)
    status = row.get("status")
    if status is not None:
        status = _number(status, f"{where}.status", -(1 << 31), 1 << 31)
    tails = _object(row.get("tails"), f"{where}.tails")
    return Round(
        command=[
            _text(x, f"{where}.command") for x in _list(row.get("command"), f"{where}.command")
        ],
        lost=lost,
        page_size=_number(row.get("page_size"), f"{where}.page_size", 512, 1 << 20),
        formats=[
            _text(x, f"{where}.formats") for x in _list(row.get("formats"), f"{where}.formats")
        ],
        probes=_list(row.get("probes"), f"{where}.probes"),
        status=status,
        tasks=_list(row.get("tasks"), f"{where}.tasks", 1_000_000),
        tails={key: _text(value, f"{where}.tails") for key, value in tails.items()},
        extra=_object(row.get("extra"), f"{where}.extra"),
    )


def encode(manifest: Manifest, version: str) -> bytes:
    """The reverse of ``decode``."""
    facts = manifest.facts
    blobs: list[JSON] = []
    for blob in manifest.blobs:
        if blob.entry is None:
            blobs.append({"name": blob.name})
        else:
            blobs.append({"name": blob.name, "entry": blob.entry, "size": blob.size})
    rounds: list[JSON] = []
    for one, places in zip(manifest.rounds, manifest.round_pages, strict=True):
        pages: list[JSON] = [{"cpu": p.cpu, "entry": p.entry, "size": p.size} for p in places]
        rounds.append(
            {
                "command": list(one.command),
                "lost": {str(cpu): count for cpu, count in one.lost.items()},
                "page_size": one.page_size,
                "formats": list(one.formats),
                "probes": one.probes,
                "status": one.status,
                "tasks": one.tasks,
                "tails": dict(one.tails),
                "extra": one.extra,
                "pages": pages,
            }
        )
    top = {
        "schema": SCHEMA,
        "kwhy": version,
        "facts": {
            "release": facts.release,
            "build_id": facts.build_id,
            "arch": facts.arch,
            "target": facts.target,
            "hello": facts.hello,
            "question": facts.question,
            "extra": facts.extra,
        },
        "memory": {"pages": manifest.memory_pages},
        "blobs": blobs,
        "rounds": rounds,
    }
    return json.dumps(top, indent=1).encode()
