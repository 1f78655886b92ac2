"""YAML that remembers where each value was written, so that an error can name the line."""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from features.errors import ConfigError

_MOST_VALUES = 100_000  # aliases of aliases can write billions of values in a few lines

Key = tuple[str | int, ...]
"""Where a value stands in the document: mapping keys and list indices from the root down."""


@dataclass
class Located:
    """A parsed document and the place (`file:line` or the `--set` option) of each of its values."""

    name: str
    data: Any
    places: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Return the place of a value, or of the nearest enclosing value that was written."""
        while key not in self.places and key:
            key = key[:-1]
        return self.places.get(key, self.name)


class _Loader(yaml.SafeLoader):
    """The safe loader, reading `1e-3` as the number it is."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_located_yaml(path: Path) -> Located:
    """Read a YAML file with the line of every value.

    Raises:
        ConfigError: If the file is absent, unreadable, not YAML, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the path of a YAML configuration") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the path of a YAML configuration") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; give the path of a YAML configuration") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return parse_located_yaml(text, str(path))


def parse_located_yaml(text: str, name: str) -> Located:
    """Parse YAML text; `name` stands for the file in the places."""
    located = Located(name, {})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            located.data = _build(loader, node, (), located, frozenset())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        advice = "; indent with spaces, not with tabs" if r"'\t'" in problem else ""
        raise ConfigError(f"{where}: not valid YAML: {problem}{advice}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply for a configuration") from None
    return located


def _build(loader: _Loader, node: yaml.Node, key: Key, located: Located, above: frozenset[int]) -> Any:
    if id(node) in above:
        raise ConfigError(f"{located.place(key)}: an alias contains itself")
    if len(located.places) > _MOST_VALUES:
        raise ConfigError(
            f"{located.name}: more than {_MOST_VALUES:,} values, its aliases written out; "
            "a configuration is smaller: remove the aliases"
        )
    inside = above | {id(node)}
    located.places.setdefault(key, f"{located.name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(loader, node, located)
        loader.flatten_mapping(node)
        mapping: dict[str | int, Any] = {}
        for key_node, value_node in node.value:
            name = loader.construct_object(key_node, deep=True)
            located.places[(*key, name)] = f"{located.name}:{key_node.start_mark.line + 1}"
            mapping[name] = _build(loader, value_node, (*key, name), located, inside)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*key, i), located, inside) for i, item in enumerate(node.value)]
    return loader.construct_object(node)


def _refuse_repeated_keys(loader: _Loader, node: yaml.MappingNode, located: Located) -> None:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{located.name}:{line}: a key must be a plain name")
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        name = loader.construct_object(key_node)
        if name in seen:
            raise ConfigError(f"{located.name}:{line}: key {name!r} was already given on line {seen[name]}")
        seen[name] = line


def no_default(_key: Key) -> None:
    """Say that a list that is not in a document has no elements to change."""


def override(
    located: Located, assignment: str, default_list: Callable[[Key], list[Any] | None] = no_default
) -> None:
    """Change one value in place, as `--set a.b=value` asks; the value is read as YAML.

    A number addresses a list element (`train.stages.0.batch_size=64`), and the first number past the end
    appends one; mappings on the way that are absent are created.

    Args:
        located: The document to change.
        assignment: `key=value`.
        default_list: Gives the elements of a list that the document leaves to its default, if it has any.

    Raises:
        ConfigError: If the assignment is not `key=value`, or the key goes through something that is
            neither a mapping nor an existing list element.
    """
    place = f"--set {assignment}"
    name, equals, text = assignment.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{place}: expected key=value, such as --set seed=1")
    value = parse_located_yaml(text, place).data if text.strip() else None
    here: Any = located.data
    key: Key = ()
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        step = _step(here, part, place, may_append=last)
        key = (*key, step)
        if isinstance(here, list) and step == len(here):
            here.append(value)
        elif last:
            here[step] = value
        else:
            if isinstance(here, dict) and here.get(step) is None:
                elements = default_list(key) if parts[position + 1].isdigit() else None
                here[step] = {} if elements is None else elements
            here = here[step]
    for old in [other for other in located.places if other[: len(key)] == key]:
        del located.places[old]
    located.places[key] = place


def _step(here: Any, part: str, place: str, *, may_append: bool) -> str | int:
    if isinstance(here, dict):
        return part
    if isinstance(here, list):
        if part.isdigit() and int(part) < len(here) + may_append:
            return int(part)
        raise ConfigError(f"{place}: {part!r} is not an index of a list with {len(here)} elements (from 0)")
    raise ConfigError(f"{place}: {part!r} is below a single value ({here!r}), not below a mapping")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return a sentence part that suggests a near word and lists the allowed ones."""
    names = list(allowed)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}allowed: {', '.join(names)}"
