"""`cervseg-jax synth`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.choices import SceneKind
from cervseg_jax.cli.options import MAX_SEED, MAX_SIDE_PX, Quiet

EXAMPLE = "cervseg-jax synth cells --images 20 --seed 1"


def synth(
    out: Annotated[Path, typer.Argument(help="A new folder; gets images, labelme and instances.")],
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of images.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed.")] = 0,
    size: Annotated[
        tuple[int, int], typer.Option(min=64, max=MAX_SIDE_PX, metavar="HEIGHT WIDTH", help="Image size in pixels.")
    ] = (512, 512),
    kind: Annotated[
        SceneKind,
        typer.Option(
            help="clusters: overlapping nuclei. smear: single cells of several kinds, with debris. groups: crowded, "
            "out of focus, with dark cytoplasm."
        ),
    ] = "clusters",
    quiet: Quiet = False,
) -> None:
    """Generate synthetic annotated images.

    They show clustered, overlapping nuclei, single cells among debris, or dark crowded groups, and come with exact
    annotations.
    """
    from cervseg_jax.console import Reporter, short_path
    from cervseg_jax.curation.dataset_folder import write_scenes

    reporter = Reporter(quiet=quiet)
    with reporter.progress("generating", images) as advance:
        write_scenes(out.absolute(), num_images=images, seed=seed, size=size, kind=kind, on_progress=advance)
    folder = short_path(out)
    reporter.info(f"{images} images written to {folder}; next: cervseg-jax prepare {folder} --out DATASET")
