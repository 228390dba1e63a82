"""A verdict as JSON: the contract's keys always, added ones when they say something."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kwhy.errors import InputError
from kwhy.report import json as report_json
from kwhy.report import schema
from kwhy.verdict import Evidence, FailedCall, KernelId, Origin, Verdict

SAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "golden" / "eio.json").read_text()
)


def minimal() -> Verdict:
    return Verdict(
        summary="close() failed",
        confidence="unknown",
        kernel=KernelId(release="6.12", build_id="ab"),
        evidence=Evidence(),
        call=FailedCall(pid=1, tid=1, comm="c", syscall="close", args=(), ret=-9, errno="EBADF"),
        origin=None,
    )


def test_keys_of_the_contract_are_always_there() -> None:
    """Also an empty verdict has every key of the contract, and none that was added."""
    common = ["schema", "kind", "summary", "confidence", "kernel", "evidence"]
    fail = ["call", "origin", "conditions", "chain", "root", "manual", "kmsg", "candidates"]
    assert sorted(common + fail) == sorted(minimal().to_json())


def test_minimal_verdict_is_valid() -> None:
    """What the dataclasses can hold at least is valid by the schema."""
    schema.validate(minimal().to_json())


def test_schema_itself_is_valid() -> None:
    """The published schema is a correct schema of its draft."""
    jsonschema.Draft202012Validator.check_schema(schema.load())


def test_added_keys_are_welcome() -> None:
    """A later kwhy may add keys anywhere: the schema and the reader let them pass."""
    data = copy.deepcopy(SAMPLE)
    data["later"] = 1
    data["origin"]["later"] = data["conditions"][0]["operands"][0]["later"] = "x"
    schema.validate(data)
    assert Verdict.from_json(SAMPLE) == Verdict.from_json(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], "kwhy.verdict/2"),
        (["confidence"], "certain"),
        (["kernel", "build_id"], 5),
        (["evidence", "lost"], True),
        (["call", "ret"], "-5"),
        (["call", "args"], "0x3"),
        (["origin"], "f"),
        (["conditions", 0, "taken"], 1),
        (["conditions", 0, "operands", 0, "value"], 1),
        (["chain", 0, "function"], None),
        (["source", 0, "marks", 0, "kind"], "blink"),
    ],
)
def test_mistyped_key_is_refused(path: list[Any], value: Any) -> None:
    """Both the schema and the reader refuse a wrong type; the reader says where it is."""
    data = copy.deepcopy(SAMPLE)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(data)
    with pytest.raises(InputError, match=str(path[-1])):
        Verdict.from_json(data)


@pytest.mark.parametrize("key", ["summary", "kernel", "call", "origin"])
def test_missing_key_is_refused(key: str) -> None:
    """A verdict that lacks a key is damaged."""
    data = {k: v for k, v in SAMPLE.items() if k != key}
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(data)
    with pytest.raises(InputError, match=key):
        Verdict.from_json(data)


def test_ambiguous_needs_two_candidates() -> None:
    """Ambiguity without the candidates would be no answer: the schema refuses it."""
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({**SAMPLE, "confidence": "ambiguous"})


def test_claim_needs_an_origin() -> None:
    """Only an unknown or ambiguous verdict may have no origin."""
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({**SAMPLE, "origin": None})


def test_json_output_is_one_ascii_object() -> None:
    """``--json`` prints one object; foreign control characters come out escaped."""
    text = report_json.dumps({**SAMPLE, "kmsg": ["\x1b[2J\x9b\u202e"]})
    assert text.isascii()
    assert "\x1b" not in text
    assert ["\x1b[2J\x9b\u202e"] == json.loads(text)["kmsg"]


def test_verdict_is_a_value() -> None:
    """Equal content is an equal verdict: that is how explain is compared with the live run."""
    assert minimal() == minimal()
    assert hash(Origin(function="f")) == hash(Origin(function="f"))
