"""Safe loading of YAML with the core schema of version 1.2.

PyYAML implements YAML 1.1, where `1e-3` is a string, `no` is false, `012` is ten and `12:30` is 750.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from cervseg_jax.errors import ConfigError

MAX_BYTES = 64 * 1024


class _Loader(yaml.SafeLoader):
    """Safe loader with the YAML 1.2 core schema, without aliases and duplicate keys."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"keys must be text, got {key!r}", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, *, source: str) -> Any:
    """Parses YAML 1.2 text.

    Args:
      text: the document.
      source: file name or option, for messages.

    Returns:
      Dicts, lists, text, numbers, booleans and None.

    Raises:
      ConfigError: if the text is not valid YAML, uses aliases, repeats a key or is too large.

    Example:
      >>> parse_yaml("{rate: 1e-3, answer: no, mode: 012}", source="example")
      {'rate': 0.001, 'answer': 'no', 'mode': 12}
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(f"{source}: configs must be at most {MAX_BYTES // 1024} KiB")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a subclass of SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: nesting is too deep") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping.

    Args:
      path: the file.

    Returns:
      The mapping; empty for an empty file.

    Raises:
      ConfigError: if the file is missing, unreadable or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; `cervseg-jax recipes` lists the packaged ones") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a config file (.yaml)") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    document = parse_yaml(text, source=str(path))
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: the top level must be a mapping of sections such as `model:`, got {type(document).__name__}"
        )
    return document
