"""Reads and formats tables of comma-separated values."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.errors import CervsegError, DataError


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns comma-separated values; text with a comma, quote or line break is quoted.

    Args:
      header: column names; empty for none.
      rows: values.

    Example:
      >>> print(csv_text(["a", "b"], [[1, "x, y"]]), end="")
      a,b
      1,"x, y"
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def parse_csv_row(text: str) -> list[str]:
    """Returns the first row of a table without a header, as `csv_text` formats it; empty for an empty text.

    Example:
      >>> parse_csv_row('1,"x, y"')
      ['1', 'x, y']

    Raises:
      ValueError: if the text is not CSV.
    """
    try:
        return next(csv.reader(io.StringIO(text, newline="")), [])
    except csv.Error as problem:
        raise ValueError(str(problem)) from None


def read_csv(
    path: Path,
    *,
    columns: Mapping[str, Sequence[str]] | Sequence[str] = (),
    error: type[CervsegError] = DataError,
) -> list[dict[str, str]]:
    """Reads a table with a header line, written by this program or exported from a spreadsheet.

    Accepts commas, semicolons and tabs between values, a byte order mark, UTF-16, Excel's `sep=` line and blank rows.
    Bytes that are not UTF-8 are kept, as `write_text` writes them. Values missing at the end of a row are empty.

    Args:
      path: the file.
      columns: names that must be there, in every row with a value. As a mapping: other accepted spellings by name.
        Names match without regard to case and surrounding blanks, "Patient ID" as patient_id, and are returned as given
        here.
      error: class of the exceptions.

    Returns:
      One dictionary per row, by column name.

    Raises:
      CervsegError: of class `error`, with file and row, if the file cannot be read, lacks a column or a required
        value, or has a row longer than the header.
    """
    accepted = {name: columns[name] if isinstance(columns, Mapping) else () for name in columns}
    try:
        text = _decode_table(path.read_bytes())
        if "\0" in text:
            raise error(f"{path}: is not text; a spreadsheet is to be saved as CSV in UTF-8")
        separator = _separator(text, accepted)
        reader = csv.reader(io.StringIO(text.removeprefix(f"sep={separator}")), delimiter=separator)
        lines = [(reader.line_num, row) for row in reader if any(value.strip() for value in row)]
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as problem:
        raise error(f"{path}: cannot be read as CSV: {problem}") from None
    header = _header(lines[0][1] if lines else [], accepted)
    missing = [name for name in accepted if name not in header]
    if missing:
        has = ", ".join(filter(None, header)) or "nothing"
        raise error(f"{path}: lacks the columns {', '.join(missing)}; it has {has}")
    rows = []
    for number, row in lines[1:]:
        if any(value.strip() for value in row[len(header) :]):
            raise error(
                f"{path}: row {number} has {len(row)} values for {len(header)} columns; quote values that hold "
                f"{separator!r}"
            )
        values = dict(zip(header, [*row, *[""] * (len(header) - len(row))], strict=False))
        values.pop("", None)
        empty = next((name for name in accepted if not values[name].strip()), None)
        if empty is not None:
            raise error(f"{path}: row {number} has no {empty}")
        rows.append(values)
    return rows


def _decode_table(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig", "surrogateescape")


def _separator(text: str, accepted: Mapping[str, Sequence[str]]) -> str:
    """Returns the separator that yields most of the expected columns, then most columns."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if re.fullmatch("sep=.", first):
        return first[-1]

    def rank(separator: str) -> tuple[int, int]:
        header = _header(next(csv.reader([first], delimiter=separator), []), accepted)
        return len(set(header) & set(accepted)), len(header)

    return max(",;\t", key=rank)


def _header(names: Sequence[str], accepted: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns column names without blanks, the accepted ones under their expected name."""
    header = [name.strip() for name in names]
    lowered = [name.lower().replace(" ", "_").replace("-", "_") for name in header]
    for name, others in accepted.items():
        spelling = next((other for other in (name, *others) if other.lower() in lowered), None)
        if spelling is not None:
            header[lowered.index(spelling.lower())] = name
    return header
