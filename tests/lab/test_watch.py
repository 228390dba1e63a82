"""``kwhy watch`` on the tracer's ring buffer: the page states that a field report drew by hand."""

from pathlib import Path
from typing import Any

import pytest
from tests.lab.desk import kwhy, own_guest, run_in

from kwhy import lab
from kwhy.case.casefile import CaseFile
from kwhy.lab.spins import SETTINGS, ring

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FULL = 4064  # bytes of a page that one such event fills


def changed(step: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    return {each["path"]: (each["before"], each["after"]) for each in step["changes"]}


def test_page_states_of_the_ring_buffer(tmp_path: Path) -> None:
    """Filled, read, wrapped around and discarded: which page is head, commit, tail and reader, and
    the write, commit and read of each; from the live guest and again from the case."""
    program, case = tmp_path / "step.py", tmp_path / "it.kwhy"
    program.write_text(ring.STEP)
    names = ["write", "consume", "write", "write", "write", "consume", "discard"]
    words = " --- ".join(f"python3 step.py {name}" for name in names).split()
    with own_guest("6.12", "watch", cpus=SETTINGS.cpus, append=SETTINGS.append) as guest:
        with lab.open_link(guest) as link:
            ring.arm(link)
        answer = kwhy(
            "watch", "*global_trace.array_buffer.buffer->buffers[1]", "--lab", guest.name,
            "--pin", "1", "--put", f"{program}:step.py", "--json", "--save", str(case),
            "--", *words,
        )  # fmt: skip
    assert 0 == answer.status, answer.err
    again = kwhy("explain", str(case), "--json")
    assert answer.verdict == again.verdict
    steps = [changed(step) for step in answer.verdict["steps"]]
    fill, read, second, third, wrap, _, discard = steps

    (page,) = (path.split(".")[0] for path in fill if path.endswith(".write.a.counter"))
    (data,) = (path.split(".")[0] for path in fill if path.endswith(".commit.a.counter"))
    assert ("0", str(FULL)) == fill[f"{page}.write.a.counter"] == fill[f"{data}.commit.a.counter"]
    assert ("0", "1") == fill["entries.a.counter"]

    # The reader takes the page that was the head, and has read it up.
    assert page == read["reader_page"][1] == read["head_page"][0]
    assert ("0", str(FULL)) == read[f"{page}.read"]

    # The next event goes to the other page: tail and commit move there together.
    assert page == second["tail_page"][0] == second["commit_page"][0]
    assert second["tail_page"] == second["commit_page"]
    assert third["tail_page"][0] == second["tail_page"][1]

    # No page is left: the oldest event is lost, and the head goes on.
    assert ("0", "1") == wrap["overrun.a.counter"]
    assert ("0", "1") == wrap["pages_lost.a.counter"]

    # A discarded event leaves a page that is being written, empty, with an index of its last use.
    fresh = discard["commit_page"][1]
    assert fresh == discard["tail_page"][1] == page
    assert "entries.a.counter" not in discard
    pictures: Any = CaseFile(case).facts.extra["pictures"]
    last = pictures[-1]["picture"]
    behind = last[f"{fresh}.page"]
    assert "0" == last[f"{behind}.commit.a.counter"]
    assert int(last[f"{fresh}.read"]) >= FULL


def test_at_each_entry_of_a_function(tmp_path: Path) -> None:
    """The values at each hit are those that the command had written before it; a function that
    cannot be probed is refused before the command runs."""
    case = tmp_path / "it.kwhy"
    script = "for name in a bc bc d; do hostname $name; done"
    with own_guest("6.12", "at") as guest:
        words = ["init_uts_ns.name", "--lab", guest.name, "--json", "--at"]
        answer = kwhy(
            "watch", *words, "__x64_sys_sethostname", "--save", str(case), "--", "sh", "-c", script
        )
        refused = kwhy("watch", *words, "do_int3", "--", "hostname", "never")
        with lab.open_link(guest) as link:
            name = run_in(link, "hostname")[1].strip()
    assert 0 == answer.status, answer.err
    assert answer.verdict == kwhy("explain", str(case), "--json").verdict
    *hits, end = answer.verdict["steps"]
    assert ["__x64_sys_sethostname"] * 4 == [step["hit"]["function"] for step in hits]
    after = [changed(step).get("nodename", ("", ""))[1] for step in [*hits, end]]
    assert ["", '"a"', '"bc"', "", '"d"'] == after
    assert not end["notes"]
    assert (2, "d") == (refused.status, name)
    assert "no probe can be set on do_int3" in refused.err
