"""The reference implementation's config files, read as data: literals alone, nothing is executed."""

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
"""Keys under which users have written other keys."""

SECTION_SPELLINGS = {"transformer": "deformation", "transoformer": "deformation"}


class Entry(NamedTuple):
    """One value of a file."""

    value: Any
    repairs: tuple[str, ...]
    """What had to be mended to read it."""


def read_ini(path: Path) -> dict[str, Entry]:
    """Reads a config file.

    Args:
      path: the file; UTF-8, or else Latin-1.

    Returns:
      Entries by `section.key`, keys in lower case, spelling variants under their right name.

    Raises:
      ConfigError: if the file is missing, or has a line that is neither a section nor a key with a value.
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
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line[0] in ";#":
            continue
        heading = re.fullmatch(r"\[([^\]]+)\]\s*(?:[;#].*)?", line)
        if heading:
            section = SECTION_SPELLINGS.get(heading[1].strip(), heading[1].strip())
            continue
        pair = re.fullmatch(r"([^=:]+?)\s*[=:]\s*(.*)", line)
        if not pair or not section:
            raise ConfigError(f"{path}: line {number} is neither a section nor key = value: {line[:80]!r}")
        name = f"{section}.{pair[1].lower()}"
        value, repairs = _value(pair[2])
        if name in SPELLINGS:
            repairs = [f"spelt {name}", *repairs]
            name = SPELLINGS[name]
        if name in entries:
            repairs = [f"given twice; the last one counts, {entries[name].value!r} does not", *repairs]
        entries[name] = Entry(value, tuple(repairs))
    if not entries:
        raise ConfigError(f"{path}: holds no keys")
    return entries


def _value(text: str) -> tuple[Any, list[str]]:
    """Reads a literal, with the repairs that users' files need; what cannot be read stays text."""
    bare, comment = _without_comment(text)
    repairs = ["comment behind the value left out"] if comment else []
    if not bare:
        return None, repairs
    try:
        return ast.literal_eval(bare), repairs
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    # `[90. 180, 270,]`: a number with its point, and no comma.
    mended = re.sub(r"(?<=[\d.])\s+(?=[-\d])", ", ", bare)
    try:
        return ast.literal_eval(mended), [*repairs, f"commas put in: {bare}"]
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return bare.strip("\"'"), repairs


def _without_comment(text: str) -> tuple[str, bool]:
    """Cuts a comment that begins with ; or # outside quotes, after a space."""
    quote = ""
    for index, mark in enumerate(text):
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "\"'":
            quote = mark
        elif mark in ";#" and (index == 0 or text[index - 1].isspace()):
            return text[:index].strip(), True
    return text.strip(), False
