"""What a search for a bad state found: the sequence, the states, and how to do it live."""

from collections.abc import Mapping, Sequence
from typing import Any

from kwhy.emulate.search import Outcome
from kwhy.report import words
from kwhy.report.page import Page

SCHEMA = "kwhy.explore/1"


def render(
    recipe: Mapping[str, str],
    found: Outcome,
    states: Sequence[Sequence[str]],
    release: str,
    width: int = 80,
) -> Page:
    """The report as a page."""
    page = Page(width=max(40, width))
    if found.path is None:
        page.write(("none: ", "bold green"), (_nothing(found), "bold"), hang=6)
    else:
        steps = words.count(len(found.path), "step")
        sure = "there may be a shorter one"
        if found.complete:
            sure = "no shorter sequence leads there"
            sure += " of steps that could be executed" if found.progress.stopped else ""
        page.write(("found: ", "bold red"), (f"{steps}, {sure}", "bold"), hang=7)
        page.write((f"       {found.why}", ""), hang=7)
        _sequence(page, found.path, states)
        if all(step in recipe for step in found.path):
            page.heading("live:", " the same from user space")
            for number, step in enumerate(found.path, 1):
                page.write((f"{number:>3}. {recipe[step]}", ""), indent=2, hang=7)
    progress = found.progress
    page.heading("searched: ", _figures(found))
    growth = ", ".join(str(count) for count in progress.levels)
    page.write((f"new states by depth: {growth}", ""), indent=2, hang=4)
    for reason, times in sorted(progress.stopped.items(), key=lambda item: -item[1])[:3]:
        page.write((f"could not go on {times:,} times: {reason}", ""), indent=2, hang=4)
    if not found.exhausted and found.path is None and _explodes(progress.levels):
        page.write(
            ("advice: the states grow with every step; let state() leave out what does not matter "
             "(counters, time stamps, addresses), or make the operations coarser", ""),
            indent=2, hang=4,
        )  # fmt: skip
    page.write((f"kernel: {release}; its code was executed offline on a snapshot", ""), indent=2)
    return page


def _nothing(found: Outcome) -> str:
    stopped = sum(found.progress.stopped.values())
    if found.progress.transitions and stopped == found.progress.transitions:
        return "not one of the operations could be executed, so nothing was searched"
    but = ""
    if stopped:
        but = f"; {words.count(stopped, 'step')} could not be executed, what is behind is not known"
    if found.exhausted:
        return (
            "every state that these operations can reach was seen, and no bad one is among them"
            + but
        )
    if found.complete:
        return f"no sequence of up to {found.depth} steps leads into a bad state{but}"
    return "no bad state was found; the search was cut short"


def _figures(found: Outcome) -> str:
    progress = found.progress
    return (
        f"{words.count(progress.states, 'state')}, {words.count(progress.transitions, 'step')} in "
        f"{progress.seconds:.2f} s ({progress.rate:,.0f} per second), depth {found.depth}"
    )


def _explodes(levels: Sequence[int]) -> bool:
    return len(levels) > 3 and levels[-1] > 2 * levels[-2] > 4 * levels[-3]


def _sequence(page: Page, path: Sequence[str], states: Sequence[Sequence[str]]) -> None:
    """Each step with what it changed."""
    page.heading("sequence:")
    before: Sequence[str] = ()
    for number, (step, state) in enumerate(zip(("start", *path), states, strict=True)):
        page.write((f"{number:>3}. {step}" if number else "     start", "bold"), indent=2)
        for line in state:
            changed = bool(before) and line not in before
            sign = "       * " if changed else "         "
            page.raw((sign, "cyan"), (line, "" if changed else "dim"))
        before = state


def as_json(
    model: str,
    recipe: Mapping[str, str],
    found: Outcome,
    states: Sequence[Sequence[str]],
    release: str,
) -> dict[str, Any]:
    """The answer for programs, schema ``kwhy.explore/1``."""
    progress = found.progress
    return {
        "schema": SCHEMA,
        "model": model,
        "kernel": release,
        "found": found.path is not None,
        "why": found.why,
        "path": list(found.path or ()),
        "states": [list(state) for state in states],
        "recipe": [recipe.get(step, "") for step in found.path or ()],
        "shortest": found.path is not None and found.complete,
        "exhausted": found.exhausted,
        "depth": found.depth,
        "searched": {
            "states": progress.states,
            "steps": progress.transitions,
            "seconds": round(progress.seconds, 3),
            "levels": progress.levels,
            "stopped": progress.stopped,
        },
    }
