"""One recording of a target, made into a round of the case."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kwhy.case import capture
from kwhy.case.capture import TAIL, Leaving, record_round
from kwhy.case.evidence import PAGE, Round
from kwhy.case.live import LiveEvidence
from kwhy.errors import LinkError


@dataclass
class Message:
    """What the agent sends."""

    kind: str
    header: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""


class Stream:
    """The messages of one recording; ``stop`` is remembered."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages, self.stopped = messages, False
        self.let_gone: list[int] = []

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Message]:
        for message in self.messages:
            if message.kind == "end":  # all has come, tracing is being put back
                yield Message("drained", message.header)
            yield message

    def stop(self) -> None:
        """End the recording early."""
        self.stopped = True

    def let_go(self, tid: int) -> None:
        """A task that was kept need not stay."""
        self.let_gone.append(tid)


class Target:
    """A link whose recordings give these messages."""

    def __init__(self, *messages: Message) -> None:
        kernel = {"release": "6.12", "build_id": "", "arch": "x86_64"}
        self.hello: dict[str, Any] = {"kernel": kernel}
        self.given = Stream(list(messages))
        self.asked: dict[str, Any] = {}

    def stream(self, op: str, *, timeout: float | None = None, **params: Any) -> Stream:
        """Start a recording."""
        self.asked = {"op": op, "timeout": timeout, **params}
        return self.given

    def blob(self, name: str) -> bytes | None:
        """Any blob has its name for content."""
        return name.encode()

    def read_memory(self, ranges: list[tuple[int, int]]) -> list[bytes | None]:
        """No memory."""
        return [None for _ in ranges]


END = Message("end", {"status": {"code": 0}})


def round_of(*messages: Message, **options: Any) -> tuple[Round, LiveEvidence, Target]:
    """The round that a recording with these messages gives."""
    target = Target(*messages)
    evidence = LiveEvidence(target)
    with record_round(evidence, target, **options) as round_:
        assert round_ is evidence.rounds[-1]
    return round_, evidence, target


def test_a_command_is_recorded_under_the_function_tracer() -> None:
    """The request names tracer, events, clock, command and probes; the rest only if given."""
    _, _, target = round_of(END, command=["./a", "b"])
    assert {
        "op": "record", "timeout": None, "tracer": "function", "events": list(capture.EVENTS),
        "clock": "mono", "notrace": list(capture.CLOCK_FUNCTIONS), "argv": ["./a", "b"],
        "hold": capture.HOLD,
    } == target.asked  # fmt: skip
    probes = [{"name": "k0", "definition": "p:k0 0x10"}]
    _, _, target = round_of(END, pid=7, probes=probes, timeout=2.5, buffer_kb=64)
    more = {key: target.asked[key] for key in ("pid", "probes", "seconds", "buffer_kb")}
    assert {"pid": 7, "probes": ["p:k0 0x10"], "seconds": 2.5, "buffer_kb": 64} == more
    assert "argv" not in target.asked


def test_pages_are_kept_by_cpu_in_order() -> None:
    """Batches of one CPU are joined; the round is part of the evidence."""
    round_, evidence, _ = round_of(
        Message("pages", {"cpu": 1}, b"a"), Message("pages", {"cpu": 0}, b"b"),
        Message("pages", {"cpu": 1}, b"c"), END, command=["x"],
    )  # fmt: skip
    assert {1: b"ac", 0: b"b"} == round_.pages
    assert [round_] == evidence.rounds
    assert ["x"] == round_.command


def test_the_oldest_pages_of_the_fullest_cpu_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the beginning goes, and how much is counted in pages."""
    monkeypatch.setattr(capture, "MAX_PAGES", 2 * PAGE)
    round_, _, _ = round_of(
        Message("pages", {"cpu": 0}, b"a" * PAGE), Message("pages", {"cpu": 0}, b"b" * PAGE),
        Message("pages", {"cpu": 1}, b"c" * PAGE), END,
    )  # fmt: skip
    assert {0: b"b" * PAGE, 1: b"c" * PAGE} == round_.pages
    assert 1 == round_.extra["dropped_pages"]


def test_output_is_forwarded_and_its_end_kept() -> None:
    """All of it goes to the caller, the last bytes into the case."""
    seen: list[tuple[str, bytes]] = []
    round_, _, _ = round_of(
        Message("out", {}, b"x" * TAIL), Message("out", {}, b"end"), Message("err", {}, b"\xff"),
        END, output=lambda kind, data: seen.append((kind, data)),
    )  # fmt: skip
    assert [("out", b"x" * TAIL), ("out", b"end"), ("err", b"\xff")] == seen
    assert TAIL == len(round_.tails["out"])
    assert round_.tails["out"].endswith("end")
    assert "\N{REPLACEMENT CHARACTER}" == round_.tails["err"]


def test_formats_become_blobs_and_those_of_probes_are_of_their_round() -> None:
    """A probe's event may differ from round to round under one name."""
    texts = {"raw_syscalls/sys_enter": "enter", "kwhy_7/k0": "probe"}
    header = {"group": "kwhy_7", "page_size": 8192, "pid": 7, "tracer": "function",
              "probes": [{"name": "k0", "ok": True}]}  # fmt: skip
    armed = Message("armed", header, json.dumps(texts).encode())
    target = Target(armed, END)
    evidence = LiveEvidence(target)
    for number in range(2):
        with record_round(evidence, target) as round_:
            pass
        blobs = ["format/raw_syscalls/sys_enter", f"format/round{number}/k0"]
        assert blobs == round_.formats
        assert [b"enter", b"probe"] == [evidence.blobs[name] for name in blobs]
    assert (8192, [{"name": "k0", "ok": True}]) == (round_.page_size, round_.probes)
    assert {"pid": 7, "tracer": "function"}.items() <= dict(round_.extra["armed"]).items()  # type: ignore[arg-type]


def test_the_page_headers_are_fetched_with_the_recording() -> None:
    """Without them the pages of the case could not be read later."""
    _, evidence, _ = round_of(END)
    assert {"header_page", "header_event"} <= set(evidence.blobs)


@pytest.mark.parametrize(
    ("status", "expected"),
    [({"code": 3}, 3), ({"signal": 11}, -11), ({}, None), (None, None)],
)
def test_how_the_command_ended(status: dict[str, int] | None, expected: int | None) -> None:
    """An exit status, the negative number of a signal, or nothing known."""
    round_, _, _ = round_of(Message("end", {"status": status}))
    assert expected == round_.status


def test_what_the_agent_says_at_the_end_is_kept() -> None:
    """Lost events by CPU, tasks, kernel messages, the error of a command that did not start."""
    header = {"status": {"exec_errno": 2}, "lost": {"1": 5}, "tasks": [{"tid": 1}],
              "kmsg": ["line"], "timed_out": True}  # fmt: skip
    round_, _, _ = round_of(Message("end", header), Message("pages", {"cpu": 0}, b"late"))
    assert ({1: 5}, [{"tid": 1}]) == (round_.lost, round_.tasks)
    assert (2, ["line"], True) == tuple(
        round_.extra[key] for key in ("exec_errno", "kmsg", "timed_out")
    )
    assert {} == round_.pages


def test_a_recording_can_be_ended_as_soon_as_it_holds_enough() -> None:
    """The stream is stopped once, and read to its end all the same."""
    looked: list[bytes] = []

    def enough(data: bytes) -> bool:
        looked.append(data)
        return data == b"b"

    pages = [Message("pages", {"cpu": 0}, data) for data in (b"a", b"b", b"c")]
    round_, _, target = round_of(*pages, END, pid=1, enough=enough)
    assert target.given.stopped
    assert [b"a", b"b"] == looked
    assert {0: b"abc"} == round_.pages


def test_a_command_that_is_kept_at_its_exit_is_let_go_after_the_context() -> None:
    """Its number tells that memory read within the context is as the command left it."""
    armed = Message("armed", {"pid": 7})
    target = Target(armed, Message("end", {"status": {"code": 1}, "held": [7, 9]}))
    with record_round(LiveEvidence(target), target) as round_:
        assert 7 == round_.extra["held"]
        assert [7, 9] == round_.extra["held_tasks"]
        assert 1 == round_.status
        assert not target.given.stopped
    assert target.given.stopped


def page(time: int) -> bytes:
    """A page of the trace that begins then."""
    return time.to_bytes(8, "little") + bytes(PAGE - 8)


def test_who_leaves_meanwhile_is_looked_at_and_let_go() -> None:
    """With what was recorded since its process was born; and when looking fails, too."""
    seen: list[Leaving] = []

    def look(leaving: Leaving) -> None:
        seen.append(leaving)
        if len(seen) == 2:
            raise ValueError

    armed = Message("armed", {"pid": 7, "page_size": PAGE})
    pages = [Message("pages", {"cpu": 0}, page(time)) for time in (100, 200, 300, 400)]
    head = {"pid": 8, "tids": [8, 9], "ends": True, "born": 350}
    one, two = Message("leaving", head), Message("leaving", {**head, "tids": [11], "ends": False})
    target = Target(armed, *pages, one, two, END)
    context = record_round(LiveEvidence(target), target, leaving=look, wanted=(16, -5))
    with pytest.raises(ValueError), context:
        pass
    assert {"seconds": capture.HOLD_OTHERS, "nr": 16, "ret": -5} == target.asked["others"]
    assert [(8, (8, 9), True), (8, (11,), False)] == [(x.pid, x.tids, x.ends) for x in seen]
    assert {0: page(200) + page(300) + page(400)} == seen[0].so_far.pages
    assert [8, 11] == target.given.let_gone


def test_user_pages_of_other_threads_are_forgotten() -> None:
    """Those that stay are numbered anew."""
    pages = b"".join(bytes([n]) * PAGE for n in range(3))
    first = Message("user", {}, pages)
    rows = [[1, 7, [[0x1000, 0]]], [2, 8, [[0x1000, 2], [0x2000, 1], [0x3000, 2]]]]
    round_, evidence, _ = round_of(first, Message("user", {"snapshots": rows}), END)
    assert rows == round_.extra["user"]
    capture.keep_user(evidence, 0, 8)
    assert [[2, 8, [[0x1000, 0], [0x2000, 1], [0x3000, 0]]]] == round_.extra["user"]
    assert pages[2 * PAGE :] + pages[PAGE : 2 * PAGE] == evidence.blobs[capture.user_blob(0)]


def test_a_recording_without_an_end_is_lost_contact() -> None:
    """No round is kept of it."""
    target = Target(Message("pages", {"cpu": 0}, b"a"))
    evidence = LiveEvidence(target)
    with pytest.raises(LinkError), record_round(evidence, target):
        pytest.fail("there is no round")
    assert [] == evidence.rounds
