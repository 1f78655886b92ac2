"""What is wrong with a request, in one line that says what to send instead."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serving.queries import QueryError

Part = TypeVar("Part", bound=BaseModel)


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
    return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"


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
