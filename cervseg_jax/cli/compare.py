"""`cervseg-jax compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cervseg_jax.cli.options import OtherData, Overrides, Quiet, Split
from cervseg_jax.errors import ConfigError

EXAMPLE = "cervseg-jax compare runs/small runs/large"


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two or more runs, or folders of `train --seeds`; the first is the base."),
    ],
    split: Split = "test",
    data: OtherData = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the files. Default: RUN/compare of the first run.")
    ] = None,
    allow_trained: Annotated[
        bool, typer.Option("--allow-trained", help="Score images although a run was trained on them.")
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Compare runs on the same images.

    Reports differences with confidence intervals and a paired test, and draws a scatter plot.
    """
    if len(runs) < 2:
        raise ConfigError("compare: needs at least two runs")
    from cervseg_jax.console import Reporter
    from cervseg_jax.evaluation.compare import compare_recipes, headline_columns, load_recipe
    from cervseg_jax.files import make_folder, write_json
    from cervseg_jax.plots import draw_scatter
    from cervseg_jax.runs.bucket import local_copies

    reporter = Reporter(quiet=quiet)
    with local_copies(runs) as local_runs:
        recipes = [
            load_recipe(
                run.folder, overrides or [], split=split, data=data, allow_trained=allow_trained, reporter=reporter
            )
            for run in local_runs
        ]
        comparison = compare_recipes(recipes)
        names = [recipe.name for recipe in recipes]
        folder = make_folder((out or local_runs[0].folder / "compare" / "-".join(names[1:])).absolute())
        write_json(folder / "comparison.json", comparison)
        draw_scatter(folder / "comparison.png", headline_columns(recipes), names=names)
        for line in _comparison_lines(comparison):
            reporter.info(line)
        reporter.info(f"written to {local_runs[0].display_path(folder)}")


def _comparison_lines(comparison: dict[str, Any]) -> list[str]:
    left_out = comparison["num_left_out"]
    lines = [
        f"{comparison['num_images']} images of {comparison['num_sources']} sources in common"
        + (f"; {left_out} images that are not in all runs are left out" if left_out else "")
    ]
    for recipe in comparison["recipes"]:
        shown = [
            f"{name} {score['mean']:.4f}" + (f" ± {score['sd_over_seeds']:.4f}" if recipe["num_seeds"] > 1 else "")
            for name, score in recipe["scores"].items()
        ]
        seeds = f" ({recipe['num_seeds']} seeds, mean ± sd)" if recipe["num_seeds"] > 1 else ""
        lines.append(f"{recipe['run']}{seeds}: {', '.join(shown)}")
    for pair in comparison["comparisons"]:
        lines.append(f"\n{pair['run']} - {pair['base']}:")
        for name, score in pair["scores"].items():
            gain = score["difference"]
            interval = f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
            lines.append(
                f"{name:<14}{gain['mean']:+.4f}  {interval}  p = {score['p_value']:.2g}  "
                f"larger on {score['num_better']}, smaller on {score['num_worse']} images"
            )
        lines.append(pair["verdict"])
    if len(comparison["comparisons"]) > 1:
        lines.append("p-values are not corrected for multiple comparisons")
    return lines
