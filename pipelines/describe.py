"""The reference of the configuration, written from the descriptions that stand beside each field."""

import types
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from features.config import Config

_INTRODUCTION = """# Configuration

Every key of a configuration, as `twotower config --describe` prints it. `twotower config CONFIG` validates
a file and prints it with every default filled in; `--set a.b=value` changes a single value,
`--set train.stages.1.batch_size=64` one of a list. Unknown keys are refused. Paths are relative to the
working directory.
"""


def describe(model: type[BaseModel]) -> str:
    """Return a Markdown page: a table of keys for the model and for each model that it is composed of."""
    lines = [_INTRODUCTION]
    for item in models_of(model):
        lines.append(f"## {_heading(item)}\n\n{(item.__doc__ or '').strip().splitlines()[0]}\n")
        lines.append("| key | type | default | |\n|---|---|---|---|")
        lines += [_row(name, field) for name, field in item.model_fields.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def models_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the model and those below it, each once, in the order in which they are met."""
    met: dict[type[BaseModel], None] = {}
    waiting = [model]
    while waiting:
        current = waiting.pop(0)
        if current in met:
            continue
        met[current] = None
        for field in current.model_fields.values():
            waiting += _models_in(field.annotation)
    return list(met)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]


def _heading(model: type[BaseModel]) -> str:
    return model.__name__.removesuffix("Config")


def _row(name: str, field: FieldInfo) -> str:
    cells = [f"`{name}`", _type_of(field.annotation), _default_of(field), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _type_of(annotation: Any) -> str:
    """Return a type as a reader of YAML would say it; a model as a link to its section."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_of(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_of(item) for item in arguments)
    if origin in (list, tuple, set, frozenset):
        inner = [item for item in arguments if item is not Ellipsis]
        return f"list of {_type_of(inner[0])}" if inner else "list"
    if origin is dict:
        return f"mapping to {_type_of(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return f"[{_heading(annotation)}](#{_heading(annotation).lower()})"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    plain = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
        "Path": "path",
        "ByteSize": "size",
    }
    name = getattr(annotation, "__name__", str(annotation))
    return plain.get(name, name)


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    if isinstance(default, tuple | list | dict):
        holds_models = any(isinstance(item, BaseModel) for item in default)
        return "" if holds_models else f"`{list(default) if isinstance(default, tuple) else default}`"
    if isinstance(default, Enum):
        default = default.value
    if default is None or isinstance(default, bool):
        return f"`{str(default).lower().replace('none', 'null')}`"
    return f"`{default}`"
