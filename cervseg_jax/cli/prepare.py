"""`cervseg-jax prepare`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cervseg_jax.choices import RENAMED_OUTLINES, AnnotationKind, Crowd, MaskRule, NearDuplicates, OnBadFile, Padding
from cervseg_jax.cli.options import MAX_SEED, MAX_SIDE_PX, DecisionsOption, Quiet, fraction, share_or_all
from cervseg_jax.errors import ConfigError

if TYPE_CHECKING:
    from cervseg_jax.choices import Outlines
    from cervseg_jax.console import Reporter
    from cervseg_jax.curation.recipe import Recipe

EXAMPLE = "cervseg-jax prepare CNSeg --out data/clustered --padding square --size 512 512"

OutlinesName = Literal["auto", "exact", "pixel_centers", "drawn", "traced"]
Bits = Literal["auto", "8", "10", "12", "14", "16"]
Style = Literal["sound", "reference"]


SourceArgument = Annotated[
    Path,
    typer.Argument(
        help="A folder of images with LabelMe, COCO or GeoJSON files, masks or instance labels; or CNSeg.",
    ),
]
OutOption = Annotated[Path | None, typer.Option(metavar="DATASET", help="A new folder for the dataset.")]
AddToOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DATASET",
        help="Add the images to the training split of this dataset instead, with its size and classes. Images whose "
        "source or near-duplicate is in valid or test are refused.",
    ),
]
AcceptUnchanged = Annotated[
    bool, typer.Option("--accept-unchanged", help="Also take annotations of `suggest` that nobody has looked at.")
]
PaddingOption = Annotated[Padding, typer.Option(help="Pad images to a square before resizing.")]
SizeOption = Annotated[
    tuple[int, int] | None,
    typer.Option(min=8, max=MAX_SIDE_PX, metavar="HEIGHT WIDTH", help="Resize images to this size in pixels."),
]
TileOption = Annotated[
    tuple[int, int] | None,
    typer.Option(min=8, max=MAX_SIDE_PX, metavar="HEIGHT WIDTH", help="Cut images into tiles of this size."),
]
AnnotationsOption = Annotated[
    AnnotationKind | None, typer.Option(help="Which annotations to use if SOURCE has several kinds of them.")
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Use only nuclei of this class and of classes derived from it (repeatable)."),
]
CrowdOption = Annotated[Crowd, typer.Option(help="COCO crowds: leave them out, or keep each as one nucleus.")]
OutlinesOption = Annotated[
    OutlinesName,
    typer.Option(
        help="exact: coordinates are points of an outline. pixel_centers: coordinates are border pixels, as written by "
        "cv2.findContours. auto: what the outlines of a file look like."
    ),
]
MaskRuleOption = Annotated[
    MaskRule,
    typer.Option(
        help="Which values of a mask with more than two levels are nucleus: the upper half, all but 0, or 1 only."
    ),
]
BitDepthOption = Annotated[
    Bits, typer.Option(help="Bits of the values in 16-bit images; auto: the most that any image of SOURCE uses.")
]
ValidShare = Annotated[
    float, typer.Option(min=0.0, max=0.9, callback=fraction, help="Share of the sources for validation.")
]
TestShare = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        callback=share_or_all,
        help="Share of the sources for testing, if SOURCE has no test set; 1 keeps all of them to score weights on.",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed of the split.")]
GroupPattern = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Regular expression on file stems; its first group names the source."),
]
GroupsFile = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="CSV file with the columns stem and group, such as the patient or slide."),
]
NearDuplicatesOption = Annotated[
    NearDuplicates, typer.Option(help="Whether images that look alike count as one source in the split.")
]
NumFolds = Annotated[int, typer.Option(min=0, max=1000, help="Number of folds for cross-validation; 0: no folds.")]
FoldIndex = Annotated[int, typer.Option(min=0, max=999, help="Index of the fold used for validation.")]
NumVariants = Annotated[int, typer.Option(min=0, max=99, help="Number of augmented copies of each training image.")]
OnBadFileOption = Annotated[OnBadFile, typer.Option(help="On an unreadable file or annotation: fail, or skip it.")]
StyleOption = Annotated[
    Style,
    typer.Option(
        help="reference: the dataset of the reference implementation, with 20 variants per image, split "
        "afterwards, so that the splits share sources."
    ),
]


def prepare(
    source: SourceArgument,
    out: OutOption = None,
    add_to: AddToOption = None,
    padding: PaddingOption = "none",
    size: SizeOption = None,
    tile: TileOption = None,
    annotations: AnnotationsOption = None,
    label: LabelOption = None,
    crowd: CrowdOption = "drop",
    outlines: OutlinesOption = "auto",
    mask_rule: MaskRuleOption = "half_range",
    bit_depth: BitDepthOption = "auto",
    valid: ValidShare = 0.15,
    test: TestShare = 0.15,
    seed: SeedOption = 0,
    group_pattern: GroupPattern = None,
    groups: GroupsFile = None,
    near_duplicates: NearDuplicatesOption = "together",
    folds: NumFolds = 0,
    fold: FoldIndex = 0,
    variants: NumVariants = 0,
    accept_unchanged: AcceptUnchanged = False,
    decisions: DecisionsOption = None,
    on_bad_file: OnBadFileOption = "fail",
    style: StyleOption = "sound",
    quiet: Quiet = False,
) -> None:
    """Turn annotated images into a dataset.

    The dataset is split by source and has masks and, if the annotations allow it, instance labels.
    """
    _check_folds(folds, fold)
    _check_targets(out, add_to, style, is_reviewed=accept_unchanged or decisions is not None)
    from cervseg_jax.console import Reporter

    reporter = Reporter(quiet=quiet)
    if style == "reference" and out is not None:
        _prepare_reference(source, out, seed=seed, reporter=reporter)
        return
    from cervseg_jax.curation.geometry import Geometry
    from cervseg_jax.curation.recipe import Recipe

    recipe = Recipe(
        geometry=Geometry(padding, size, tile),
        annotations=annotations,
        labels=tuple(label or ()),
        crowd=crowd,
        outlines=_current_outlines(outlines),
        mask_rule=mask_rule,
        bit_depth="auto" if bit_depth == "auto" else int(bit_depth),  # pyright: ignore[reportArgumentType]
        valid=valid,
        test=test,
        seed=seed,
        group_pattern=group_pattern,
        groups_csv=groups,
        keep_near_duplicates_together=near_duplicates == "together",
        folds=folds,
        fold=fold,
        variants=variants,
        on_bad_file=on_bad_file,
    )
    _prepare(source, out, add_to, recipe, accept_unchanged=accept_unchanged, decisions=decisions, reporter=reporter)


def _prepare(
    source: Path,
    out: Path | None,
    add_to: Path | None,
    recipe: "Recipe",
    *,
    accept_unchanged: bool,
    decisions: Path | None,
    reporter: "Reporter",
) -> None:
    """Makes a dataset, or adds to one."""
    from cervseg_jax.annotations.decisions import read_decisions
    from cervseg_jax.console import short_path
    from cervseg_jax.curation.dataset import extend_dataset, make_dataset
    from cervseg_jax.curation.reviewed import Review
    from cervseg_jax.curation.stored import refuse_settings_of_dataset

    review = Review(accept_unchanged, None if decisions is None else read_decisions(decisions))
    if out is not None:
        make_dataset(source, out, recipe, review, reporter=reporter)
        command = "eval pap" if recipe.test == 1.0 else "train"
        reporter.info(f"next: cervseg-jax {command} --data {short_path(out)}")
    elif add_to is not None:
        refuse_settings_of_dataset(recipe)
        extend_dataset(source, add_to, recipe, review, reporter=reporter)


def _check_targets(out: Path | None, add_to: Path | None, style: Style, *, is_reviewed: bool) -> None:
    if (out is None) == (add_to is None):
        raise ConfigError("prepare: needs either --out, for a new dataset, or --add-to, for one that is there")
    if style == "reference" and (out is None or is_reviewed):
        raise ConfigError("--style: reference makes a new dataset, without --add-to, --decisions or --accept-unchanged")


def _check_folds(folds: int, fold: int) -> None:
    if folds == 1 or (folds and fold >= folds):
        raise ConfigError(f"--fold: needs at least 2 --folds, and must be less than --folds, got {fold} of {folds}")
    if not folds and fold:
        raise ConfigError(f"--fold: needs --folds, got {fold}")


def _current_outlines(name: OutlinesName) -> "Outlines":
    """Returns the current name of a value of `--outlines`, with a notice where it had another one."""
    if name in ("auto", "exact", "pixel_centers"):
        return name
    logging.getLogger("cervseg_jax").warning("--outlines %s is now called %s", name, RENAMED_OUTLINES[name])
    return RENAMED_OUTLINES[name]


def _prepare_reference(source: Path, out: Path, *, seed: int, reporter: "Reporter") -> None:
    """Makes the dataset of the reference implementation."""
    from cervseg_jax.curation.collect import collect
    from cervseg_jax.curation.reference_dataset import build_reference_dataset

    with reporter.progress("20 variants each", len(collect(source).images)) as advance:
        counts = build_reference_dataset(source, out.absolute(), seed=seed, on_progress=advance)
    reporter.info(", ".join(f"{split}: {count} images" for split, count in counts.items()))
    reporter.warn("this dataset follows the reference: splits share sources; see `cervseg-jax audit`")
