"""The documents that gwq-bench writes: their JSON schema, and a check against it."""

import functools
import json
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[1] / "data" / "edge.schema.json"
NAME, VERSION = "gwq-bench/edge", 1  # of a document
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


@functools.cache
def schema() -> dict[str, Any]:
    """The schema, of JSON Schema's draft 2020-12."""
    return json.loads(SCHEMA.read_text())


def mistake(value: Any, rule: dict[str, Any] | None = None, where: str = "") -> str | None:
    """What the document breaks first, "rows[0].n_gen is missing"; None: nothing.

    Knows of JSON Schema what edge.schema.json uses. rule: None for the whole of it.
    """
    rule = schema() if rule is None else rule
    if "$ref" in rule:
        return mistake(value, schema()["$defs"][rule["$ref"].rpartition("/")[2]], where)
    here = where or "the document"
    if "const" in rule and value != rule["const"]:
        return f"{here} is not {rule['const']!r}"
    if "enum" in rule and value not in rule["enum"]:
        return f"{here} is none of {', '.join(map(str, rule['enum']))}"
    wanted = rule.get("type", [])
    kinds = [wanted] if isinstance(wanted, str) else wanted
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{here} is no {' or '.join(kinds)}"
    if "minimum" in rule and _is(value, "number") and value < rule["minimum"]:
        return f"{here} is below {rule['minimum']}"
    if isinstance(value, dict):
        return _in_object(value, rule, where)
    if isinstance(value, list):
        for i, item in enumerate(value):
            if found := mistake(item, rule.get("items", {}), f"{where}[{i}]"):
                return found
    return None


def _in_object(value: dict[str, Any], rule: dict[str, Any], where: str) -> str | None:
    prefix = f"{where}." if where else ""
    for name in rule.get("required", ()):
        if name not in value:
            return f"{prefix}{name} is missing"
    properties = rule.get("properties", {})
    others = rule.get("additionalProperties", {})
    for name, item in value.items():
        if name not in properties and others is False:
            return f"{prefix}{name} is not known"
        if found := mistake(item, properties.get(name, others or {}), f"{prefix}{name}"):
            return found
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # which Python counts among the integers
        return kind == "boolean"
    return isinstance(value, TYPES[kind])
