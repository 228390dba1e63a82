"""The judge of verdicts is strict where it must be and knows the compilers' ways."""

import pytest
from tests.lab.judge import JSON, fold, function_name, judge

from kwhy.lab.incidents import INCIDENTS


def condition(function: str, text: str, taken: bool = True, **more: object) -> JSON:
    return {"function": function, "text": text, "taken": taken, **more}


def verdict(function: str, *conditions: JSON, confidence: str = "deduced") -> JSON:
    return {
        "call": {"syscall": "ioctl", "errno": "EIO"},
        "confidence": confidence,
        "summary": "",
        "origin": {"function": function},
        "conditions": list(conditions),
        "candidates": [],
        "root": None,
    }


EIO = INCIDENTS["tcsetattr_orphan"]
TRUE = condition("__tty_check_change", "is_current_pgrp_orphaned()")


@pytest.mark.parametrize("name", ["__tty_check_change", "__tty_check_change.part.0"])
def test_the_truth_is_right(name: str) -> None:
    """Also when the compiler split the function."""
    assert judge(verdict(name, TRUE), EIO, "6.12", lines=True).word == "right"


@pytest.mark.parametrize(
    "claim",
    [
        verdict("tty_ioctl", TRUE),
        verdict("__tty_check_change", TRUE | {"taken": False}),
        verdict("__tty_check_change", TRUE, condition("__tty_check_change", "sig == SIGTTIN")),
        verdict("__tty_check_change"),
        verdict("__tty_check_change", TRUE) | {"call": {"syscall": "ioctl", "errno": "ENOTTY"}},
    ],
    ids=["origin", "outcome", "not innermost", "nothing", "another call"],
)
def test_anything_else_is_wrong(claim: JSON) -> None:
    """Another function, outcome, condition or call, or no condition at all."""
    assert judge(claim, EIO, "6.12", lines=True).word == "wrong"


def test_ambiguity_must_hold_the_truth() -> None:
    """Candidates without the truth are a wrong answer; with it an honest one."""
    claim = verdict("", confidence="ambiguous")
    other = verdict("__tty_check_change", condition("__tty_check_change", "sig == SIGTTIN"))
    with_truth = claim | {"candidates": [other, verdict("__tty_check_change", TRUE)]}
    without = claim | {"candidates": [other]}
    assert judge(with_truth, EIO, "6.12", lines=True).word == "ambiguous"
    assert judge(without, EIO, "6.12", lines=True).word == "wrong"


def test_without_debug_information_the_function_counts() -> None:
    """No text can be given then; an inlined function is known by the one that it is in."""
    claim = verdict("pick_link") | {"call": {"syscall": "openat", "errno": "ELOOP"}}
    assert judge(claim, INCIDENTS["open_loop"], "7.2", lines=False).word == "right"


def test_the_half_that_decides_must_be_the_right_one() -> None:
    """A compound condition may be given whole or as its half, but not as the other half."""
    incident = INCIDENTS["sockopt_dom"]
    (truth,) = incident.truths_in("6.12")
    for text, more, word in (
        (truth.text, {}, "right"),
        (truth.text, {"atom": truth.atom}, "right"),
        ("tv.tv_usec >= USEC_PER_SEC", {}, "right"),
        (truth.text, {"atom": "tv.tv_usec < 0"}, "wrong"),
        ("tv.tv_usec < 0", {}, "wrong"),
    ):
        claim = verdict("sock_set_timeout", condition("sock_set_timeout", text, **more))
        claim["call"] = {"syscall": "setsockopt", "errno": "EDOM"}
        assert judge(claim, incident, "6.12", lines=True).word == word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("likely(!p ||\n\t   error)", "!p || error"),
        ("unlikely((a))", "a"),
        ("((a) && (b))", "(a) && (b)"),
        ("(a) && (b)", "(a) && (b)"),
        ("likely(a) && likely(b)", "likely(a) && likely(b)"),
        ("likely(data_race(!sk->sk_err))", "!sk->sk_err"),
    ],
)
def test_hints_and_outer_parentheses_do_not_matter(text: str, expected: str) -> None:
    """Only what the condition asks counts, not how it is wrapped."""
    assert expected == fold(text)


def test_one_name_per_system_call() -> None:
    """The three functions that SYSCALL_DEFINE makes are one in the source."""
    assert function_name("__x64_sys_getcwd") == function_name("__do_sys_getcwd.cold")
