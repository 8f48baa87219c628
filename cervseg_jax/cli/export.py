"""`cervseg-jax export`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import Quiet, RunArgument

EXAMPLE = "cervseg-jax export runs/quickstart"


def export(
    run: RunArgument,
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="stablehlo, keras (Keras' own layers), onnx or bioimageio. All run without this package."
        ),
    ] = "stablehlo",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the files. Default: RUN/export/FORMAT.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Export a trained network.

    The exported file is loaded again and its predictions are compared with the run's.
    """
    from cervseg_jax.console import Reporter
    from cervseg_jax.pretrained_weights import results_folder
    from cervseg_jax.runs.bucket import local_copy
    from cervseg_jax.runs.folder import load_run_config
    from cervseg_jax.runs.weights import load_network
    from cervseg_jax.segmentation.export import export_network
    from cervseg_jax.segmentation.postprocess import resolve_postprocessing

    with local_copy(run) as local_run:
        best = local_run.folder / "best"
        network = load_network(best)
        postprocessing = resolve_postprocessing(load_run_config(local_run.folder).infer, best)
        folder = (out or results_folder(local_run.folder) / "export" / format_name).absolute()
        metadata = export_network(network, folder, format_name, postprocessing=postprocessing)
    height, width = network.contract.image_size
    sizes = (
        f"{height}x{width}" if metadata["divisor"] is None else f"height and width multiples of {metadata['divisor']}"
    )
    Reporter(quiet=quiet).info(
        f"{local_run.display_path(folder / metadata['file'])}: {metadata['bytes'] / 2**20:.1f} MiB, "
        f"for images of {sizes}; loaded again, largest difference in probability {metadata['max_difference']:.1g}; "
        "contract.json and example.py beside it"
    )
