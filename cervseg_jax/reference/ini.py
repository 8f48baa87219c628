"""Reader for config files of the reference implementation. Evaluates literals only; never executes code."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.errors import ConfigError

SPELLINGS: Mapping[str, str] = {
    "augmentor.alpah": "deformation.alpha",
    "augmentor.sigmoid": "deformation.sigmoid",
    "deformation.alpah": "deformation.alpha",
    "image.contrast_alpah": "image.contrast_alpha",
    "image.contrast_best": "image.contrast_beta",
    "model.diation": "model.dilation",
    "model.self.activation": "model.activation",
    "train.create_backups": "train.create_backup",
    "train.epoch_changeinfer": "train.epoch_change_tiledinfer",
    "train.epoch_changeinfer_dir": "train.epoch_change_tiledinfer_dir",
    "train.save_model_file": "train.best_model_file",
}
"""Misspelled keys that occur in real configs, with the intended key."""

SECTION_SPELLINGS = {"transformer": "deformation", "transoformer": "deformation"}


class Entry(NamedTuple):
    """A value and the repairs it needed."""

    value: Any
    repairs: tuple[str, ...]
    """Descriptions of the corrections made while reading."""


def read_ini(path: Path) -> dict[str, Entry]:
    """Reads a config file.

    Args:
      path: the file, in UTF-8 or else Latin-1.

    Returns:
      Entries by `section.key`, with keys in lower case and known misspellings corrected.

    Raises:
      ConfigError: if the file cannot be read, is empty, or has a line that is neither a section nor `key = value`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    entries: dict[str, Entry] = {}
    section = ""
    for line_number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line[0] in ";#":
            continue
        heading = re.fullmatch(r"\[([^\]]+)\]\s*(?:[;#].*)?", line)
        if heading:
            section = SECTION_SPELLINGS.get(heading[1].strip(), heading[1].strip())
            continue
        pair = re.fullmatch(r"([^=:]+?)\s*[=:]\s*(.*)", line)
        if not pair or not section:
            raise ConfigError(f"{path}: line {line_number} is neither a section nor key = value: {line[:80]!r}")
        name = f"{section}.{pair[1].lower()}"
        value, repairs = _value(pair[2])
        if name in SPELLINGS:
            repairs = [f"misspelled as {name}", *repairs]
            name = SPELLINGS[name]
        if name in entries:
            repairs = [f"set more than once; the last value is used, not {entries[name].value!r}", *repairs]
        entries[name] = Entry(value, tuple(repairs))
    if not entries:
        raise ConfigError(f"{path}: contains no keys")
    return entries


def _value(text: str) -> tuple[Any, list[str]]:
    """Parses a literal and lists the repairs it needed; text that is not a literal is returned as a string."""
    bare, comment = _without_comment(text)
    repairs = ["trailing comment removed"] if comment else []
    if not bare:
        return None, repairs
    try:
        return ast.literal_eval(bare), repairs
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    # Missing commas between numbers, as in `[90. 180, 270,]`.
    repaired = re.sub(r"(?<=[\d.])\s+(?=[-\d])", ", ", bare)
    try:
        return ast.literal_eval(repaired), [*repairs, f"missing commas inserted in {bare}"]
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return bare.strip("\"'"), repairs


def _without_comment(text: str) -> tuple[str, bool]:
    """Removes a trailing comment: `;` or `#` outside quotes, at the start or after whitespace."""
    quote = ""
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in ";#" and (index == 0 or text[index - 1].isspace()):
            return text[:index].strip(), True
    return text.strip(), False
