"""`cervseg-jax train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cervseg_jax.cli.options import (
    Coordinator,
    Distributed,
    NumProcesses,
    OptionalConfig,
    Overrides,
    OwnData,
    ProcessId,
    Quiet,
    process_spec,
)
from cervseg_jax.errors import ConfigError

if TYPE_CHECKING:
    from cervseg_jax.console import Reporter
    from cervseg_jax.training.own_data import PlannedRecipe

EXAMPLE = "cervseg-jax train quickstart --set train.epochs=5"


def train(
    config: OptionalConfig = None,
    data: OwnData = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the config>.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="If the run folder exists, start a new run in a numbered folder beside it.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Number of runs with successive seeds, in RUN/seed_0, RUN/seed_1 ..."),
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Continue a run although its config or data have changed.")
    ] = False,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Train a network, or continue its training.

    After an interruption, the same command continues where the run stopped.
    """
    processes = process_spec(distributed, coordinator, num_processes, process_id)
    if (config is None) == (data is None):
        raise ConfigError("train: needs a config or --data FOLDER" + (", not both" if config else ""))
    from cervseg_jax.console import Reporter
    from cervseg_jax.training.run import TrainRequest, train_runs

    reporter = Reporter(quiet=quiet)
    if data is not None:
        run_dir = run_dir or Path("runs") / data.absolute().name
    recipe, known = _recipe(config, data, run_dir, reporter)
    request = TrainRequest(
        recipe,
        run_dir,
        tuple(overrides or ()),
        known=known,
        processes=processes,
        num_seeds=seeds,
        fresh=fresh,
        allow_changes=allow_changes,
    )
    train_runs(request, reporter=reporter)


def _recipe(config: Path | None, data: Path | None, run_dir: Path | None, reporter: "Reporter") -> "PlannedRecipe":
    """Returns the config, or the recipe that is planned for a folder of images."""
    from cervseg_jax.training.own_data import PlannedRecipe, planned_recipe

    if config is not None:
        return PlannedRecipe(config, None)
    assert data is not None and run_dir is not None  # noqa: S101 (one of both arguments was given)
    return planned_recipe(data, run_dir, reporter=reporter)
