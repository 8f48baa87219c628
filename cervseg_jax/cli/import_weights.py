"""`cervseg-jax import-weights`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import Overrides, Quiet, complete_config

EXAMPLE = "cervseg-jax import-weights best_model.h5 --config mine.yaml --out runs/mine"


def import_weights(
    file: Annotated[Path, typer.Argument(help="HDF5 weights or model of the reference implementation (Keras 2).")],
    config: Annotated[
        Path,
        typer.Option(help="The matching config, for example from import-config.", autocompletion=complete_config),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new run folder.")],
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Convert weights of the reference.

    The result is a run for eval, infer and train.init_from.
    """
    from cervseg_jax.config import load_config

    checked = load_config(config, overrides or ())
    import jax.numpy as jnp

    from cervseg_jax.console import Reporter
    from cervseg_jax.files import refuse_filled_folder
    from cervseg_jax.reference.weights import import_weights as convert
    from cervseg_jax.runs.folder import open_run_folder
    from cervseg_jax.runs.weights import save_weights

    folder = out.absolute()
    refuse_filled_folder(folder, shown=f"--out: {out}")
    reporter = Reporter(quiet=quiet)
    imported = convert(file, checked.model)
    values = {path: jnp.asarray(value) for path, value in imported.values.items()}
    open_run_folder(folder, checked, allow_changes=False)
    save_weights(folder / "best", checked, values, {}, epoch=0, step=0, val_loss=None)
    for match in imported.matches:
        reporter.info(f"{match.stored:<32} -> {match.layer:<32} {match.shapes}")
    num_values = sum(value.size for value in imported.values.values())
    reporter.info(f"{len(imported.matches)} layers, {num_values:,} weights; next: cervseg-jax eval {out}")
