"""What is wrong with a request, in one line that says what to send instead, in the words of JSON."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serving.queries import QueryError

Part = TypeVar("Part", bound=BaseModel)

_KINDS = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "an array",
    "tuple": "an array",
    "dict": "an object",
    "mapping": "an object",
    "model": "an object",
    "model_attributes": "an object",
}
"""What JSON calls what a field must be, by the first part of pydantic's name for the error."""

_RULES = {
    "extra_forbidden": "unknown field; leave it out",
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "missing": "is missing; send it",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "is too long; at most {max_length} characters are allowed",
    "string_too_short": "is too short; at least {min_length} characters are needed",
    "too_long": "has too many elements; at most {max_length} are allowed",
    "too_short": "has too few elements; at least {min_length} are needed",
}


def mistake(first: Mapping[str, Any], model: type[BaseModel] | None = None) -> str:
    """Describe one error of pydantic about a request.

    Args:
        first: The error; its `loc` begins with the part of the request, such as `body`.
        model: What the body should have been.
    """
    place = printable(".".join(str(part)[:60] for part in first["loc"][1:]))
    if first["type"] == "json_invalid":
        return f"the body is not JSON; send an object{_such_as(model)}"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 2 and model is not None:
        return f"{place}: unknown field; allowed: {', '.join(model.model_fields)}"
    if not place:
        return f"the body is no JSON object; send one{_such_as(model)} with 'content-type: application/json'"
    return f"{place}: {_broken_rule(first)}"


def _broken_rule(error: Mapping[str, Any]) -> str:
    kind: str = error["type"]
    context: Mapping[str, Any] = error.get("ctx", {})
    wanted, _, how = kind.rpartition("_")
    if kind == "literal_error":
        return "must be " + str(context["expected"]).replace("'", '"')
    if kind in _RULES:
        return _RULES[kind].format(**context)
    if how in ("type", "parsing") and wanted in _KINDS:
        given = error["input"]
        shown = repr(given) if wanted == "int" and isinstance(given, float) else json_kind(given)
        return f"must be {_KINDS[wanted]}" + (f", not {shown}" if how == "type" else "")
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def json_kind(value: Any) -> str:
    """Return what JSON calls a value: `null`, `a string`, `an object` and so on."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    named = ((str, "a string"), (int | float, "a number"), (list | tuple, "an array"), (Mapping, "an object"))
    return next((name for kind, name in named if isinstance(value, kind)), "this")


def checked_part(model: type[Part], value: Any) -> Part:
    """Return one part of a request that is allowed to be wrong alone.

    Raises:
        QueryError: If it is no `model`.
    """
    if not isinstance(value, Mapping):
        raise QueryError("invalid_request", f"this is no JSON object; send one{_such_as(model)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        text = mistake({**first, "loc": ("part", *first["loc"])}, model)
        raise QueryError("invalid_request", text) from None


def printable(text: str) -> str:
    """Return a text that can be sent: half a character becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _such_as(model: type[BaseModel] | None) -> str:
    extra = model.model_config.get("json_schema_extra") if model is not None else None
    examples = extra.get("examples") if isinstance(extra, dict) else None
    return f" such as {json.dumps(examples[0])}" if isinstance(examples, list) and examples else ""
