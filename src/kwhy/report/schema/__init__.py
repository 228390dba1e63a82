"""The JSON Schema of what ``--json`` prints, packaged with the program."""

import json
from importlib import resources
from typing import Any


def load(number: int = 1) -> dict[str, Any]:
    """The schema ``kwhy.verdict/<number>`` (JSON Schema, draft 2020-12)."""
    text = resources.files(__name__).joinpath(f"verdict-{number}.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate(verdict: Any) -> None:
    """Check parsed JSON against the schema.

    Needs the package ``jsonschema`` (a test dependency). Raises its ``ValidationError``, which
    names the key at fault.
    """
    import jsonschema

    jsonschema.Draft202012Validator(load()).validate(verdict)
