"""What the feature probe means for the user."""

from typing import Any

from kwhy.link.checkup import ABILITIES, able, examine, report

ALL: dict[str, Any] = {name: True for name, _, _, _ in ABILITIES}


def test_a_target_that_can_do_all() -> None:
    """Nothing missing, nothing to do."""
    checks = examine({"features": {**ALL, "lockdown": "none", "busy": ""}})
    assert able(checks)
    assert [] == [check.name for check in checks if check.todo]


def test_the_targets_own_words_win() -> None:
    """What the probe found out is better advice than the general remedy."""
    why = {"kcore": "lockdown it is"}
    checks = {c.name: c for c in examine({"features": {**ALL, "kcore": False}, "why": why})}
    assert "lockdown it is" == checks["kcore"].todo
    assert not able(list(checks.values()))


def test_an_extra_is_no_need() -> None:
    """A missing extra is listed with a remedy and stops nobody."""
    checks = examine({"features": {**ALL, "func_args": False}})
    assert able(checks)
    assert ["func_args"] == [check.name for check in checks if not check.ok]


def test_lockdown_and_a_busy_tracer_are_told() -> None:
    """Lockdown for confidentiality rules everything out; another user of the tracer does not."""
    features = {**ALL, "lockdown": "confidentiality", "busy": "current_tracer is function"}
    checks = {check.name: check for check in examine({"features": features})}
    assert not checks["lockdown"].ok
    assert "current_tracer is function" in checks["free"].todo


def test_a_greeting_without_a_probe() -> None:
    """Nothing known is nothing able, without a crash."""
    assert not report("x", {})["able"]
