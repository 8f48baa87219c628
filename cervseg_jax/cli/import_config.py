"""`cervseg-jax import-config`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.errors import ConfigError

EXAMPLE = "cervseg-jax import-config train_eval_infer.config -o mine.yaml"


def import_config(
    file: Annotated[Path, typer.Argument(help="A config of the reference implementation (INI).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The YAML file. Default: standard output.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Convert a config of the reference.

    Reports on standard error how each key was converted.
    """
    import sys
    from collections import Counter

    from cervseg_jax.config import load_config
    from cervseg_jax.files import write_text
    from cervseg_jax.reference.config import import_config as convert

    if out is not None and out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} already exists; choose another name, or add --overwrite")
    text, notes = convert(file)
    if out is None:
        print(text, end="")
    else:
        try:
            write_text(out, text)
        except OSError as error:
            raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from None
        load_config(out)
    width = max(len(note.key) for note in notes)
    for note in notes:
        print(f"{note.status:<9}{note.key:<{width}}  {note.message}", file=sys.stderr)
    counts = Counter(note.status for note in notes)
    print(", ".join(f"{count} {status}" for status, count in counts.items()), file=sys.stderr)
