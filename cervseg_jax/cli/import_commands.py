"""What the commands for users of the reference implementation do."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cervseg_jax.config import load_config
from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import refuse_filled_folder, write_text


def run_import_config(file: Path, out: Path | None, *, overwrite: bool) -> None:
    """Converts a config; the account goes to standard error, so that the YAML can be piped."""
    from cervseg_jax.reference.config import import_config

    if out is not None and out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} is there already; choose another name, or --overwrite")
    text, notes = import_config(file)
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


def run_import_weights(file: Path, config_path: Path, out: Path, overrides: Sequence[str], *, quiet: bool) -> None:
    """Makes a run folder from foreign weights."""
    config = load_config(config_path, overrides)
    import jax.numpy as jnp

    from cervseg_jax.reference.weights import import_weights
    from cervseg_jax.runs.folder import open_run_folder
    from cervseg_jax.runs.weights import save_weights

    folder = out.absolute()
    refuse_filled_folder(folder, shown=f"--out: {out}")
    reporter = Reporter(quiet=quiet)
    imported = import_weights(file, config.model)
    values = {path: jnp.asarray(value) for path, value in imported.values.items()}
    open_run_folder(folder, config, allow_changes=False)
    save_weights(folder / "best", config, values, {}, epoch=0, step=0, val_loss=None)
    for match in imported.matches:
        reporter.info(f"{match.theirs:<32} -> {match.ours:<32} {match.shapes}")
    count = sum(value.size for value in imported.values.values())
    reporter.info(f"{len(imported.matches)} layers, {count:,} numbers; next: cervseg-jax eval {out}")
