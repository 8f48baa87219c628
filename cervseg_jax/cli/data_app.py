"""The commands about data, as Typer sees them. Heavy imports happen inside, so that `--help` is quick."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cervseg_jax.choices import MaskRule, OnBadFile
from cervseg_jax.cli.options import Quiet

Padding = Literal["none", "square", "square_reference"]
Outlines = Literal["drawn", "traced"]
Style = Literal["sound", "reference"]


def synth(
    out: Annotated[Path, typer.Argument(help="A new folder for images, labelme and instances.")],
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other images.")] = 0,
    size: Annotated[tuple[int, int], typer.Option(min=64, help="Height and width in pixels.")] = (512, 512),
    quiet: Quiet = False,
) -> None:
    """Draw clusters of stained nuclei with exact truth."""
    from cervseg_jax.cli.commands import run_synth

    run_synth(out, num_images=images, seed=seed, size=size, quiet=quiet)


def prepare(
    source: Annotated[Path, typer.Argument(help="LabelMe, COCO, GeoJSON, masks or instance labels; or CNSeg.")],
    out: Annotated[Path, typer.Option(help="A new folder for the dataset.")],
    padding: Annotated[Padding, typer.Option(help="Pad to a square first, or not.")] = "none",
    size: Annotated[tuple[int, int] | None, typer.Option(min=8, help="Resize to this height and width.")] = None,
    tile: Annotated[tuple[int, int] | None, typer.Option(min=8, help="Cut into pieces of height and width.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Keep this label only (repeatable).")] = None,
    outlines: Annotated[
        Outlines, typer.Option(help="traced: coordinates name border pixels, as cv2.findContours writes them.")
    ] = "drawn",
    mask_rule: Annotated[MaskRule, typer.Option(help="What is nucleus in a mask of many levels.")] = "half_range",
    valid: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the sources for validation.")] = 0.15,
    test: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share for testing, where none is given.")] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Another seed divides otherwise.")] = 0,
    group_pattern: Annotated[str | None, typer.Option(help="Regular expression; its group names the source.")] = None,
    groups: Annotated[Path | None, typer.Option(help="CSV with the columns stem and group (patient, slide).")] = None,
    folds: Annotated[int, typer.Option(min=0, help="Parts for cross-validation; 0 for none.")] = 0,
    fold: Annotated[int, typer.Option(min=0, help="The part that becomes valid.")] = 0,
    variants: Annotated[int, typer.Option(min=0, max=99, help="Augmented copies of each training image.")] = 0,
    on_bad_file: Annotated[OnBadFile, typer.Option(help="Stop at a bad file, or leave it out.")] = "fail",
    style: Annotated[
        Style, typer.Option(help="reference: the reference's 20 variants and its split, defects included.")
    ] = "sound",
    quiet: Quiet = False,
) -> None:
    """Turn annotated images into a dataset: divided by source, exact masks, instance labels."""
    from cervseg_jax.cli.data_commands import run_prepare, run_prepare_reference

    if style == "reference":
        run_prepare_reference(source, out, seed=seed, quiet=quiet)
        return
    from cervseg_jax.curation.geometry import Geometry
    from cervseg_jax.curation.recipe import Recipe

    recipe = Recipe(
        geometry=Geometry(padding, size, tile),
        labels=tuple(label or ()),
        outlines=outlines,
        mask_rule=mask_rule,
        valid=valid,
        test=test,
        seed=seed,
        group_pattern=group_pattern,
        groups_csv=groups,
        folds=folds,
        fold=fold,
        variants=variants,
        on_bad_file=on_bad_file,
    )
    run_prepare(source, out, recipe, quiet=quiet)


def audit(
    dataset: Annotated[Path, typer.Argument(help="train, valid, test with images and masks; or images and masks.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the findings; default: DATASET/audit.json.")] = None,
    quiet: Quiet = False,
) -> None:
    """Check whether a dataset can be trusted; exit 1 if not."""
    from cervseg_jax.cli.data_commands import run_audit

    run_audit(dataset, out, quiet=quiet)


def stats(
    dataset: Annotated[Path, typer.Argument(help="train, valid, test with images and masks; or images and masks.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: the dataset.")] = None,
    quiet: Quiet = False,
) -> None:
    """Count what a dataset holds, with pictures."""
    from cervseg_jax.cli.data_commands import run_stats

    run_stats(dataset, out, quiet=quiet)
