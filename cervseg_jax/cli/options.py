"""Options, checks and completions that several commands share."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cervseg_jax.choices import MPP_RANGE
from cervseg_jax.errors import ConfigError
from cervseg_jax.packaged_recipes import model_names, recipe_names

if TYPE_CHECKING:
    from cervseg_jax.runtime.processes import ProcessSpec
    from cervseg_jax.segmentation.shares import Shard

MAX_SIDE_PX = 16_384
"""Largest side of images that commands create."""
MAX_SEED = 2**32 - 1


def complete_config(incomplete: str) -> list[str]:
    """Returns the packaged recipes and the YAML files and folders that begin with `incomplete`."""
    return [name for name in recipe_names() if name.startswith(incomplete)] + _paths(incomplete, suffix=".yaml")


def complete_recipe(incomplete: str) -> list[str]:
    """Returns the packaged recipes that begin with `incomplete`."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Returns the models that begin with `incomplete`."""
    return [name for name in model_names() if name.startswith(incomplete)]


def complete_output(incomplete: str) -> list[str]:
    """Returns the outputs of `infer` that complete the last item of a comma-separated list."""
    from cervseg_jax.segmentation.outputs import OUTPUTS

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in (*OUTPUTS, "all") if name.startswith(last)]


def complete_split(incomplete: str) -> list[str]:
    """Returns the splits of a dataset that begin with `incomplete`."""
    return [name for name in ("train", "valid", "test") if name.startswith(incomplete)]


def _paths(incomplete: str, *, suffix: str) -> list[str]:
    try:
        found = sorted(Path(incomplete).parent.glob(Path(incomplete).name.replace("[", "[[]") + "*"))
    except (OSError, ValueError):
        return []
    return [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix == suffix]


def positive(value: float | None) -> float | None:
    """Checks that an optional number is finite and positive."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"must be a positive number, got {value:g}")
    return value


def pixel_size(value: float | None) -> float | None:
    """Checks that an optional pixel size in micrometers is one of a microscope; areas of others overflow."""
    if value is not None and not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
        raise typer.BadParameter(f"must be between {MPP_RANGE[0]:g} and {MPP_RANGE[1]:g} micrometers, got {value:g}")
    return value


def fraction(value: float) -> float:
    """Checks that a share is in [0, 0.9]; NaN passes Typer's own range check."""
    if not 0.0 <= value <= 0.9:
        raise typer.BadParameter(f"must be between 0 and 0.9, got {value:g}")
    return value


def share_or_all(value: float) -> float:
    """Checks that a share is in [0, 0.9], or 1."""
    return value if value == 1.0 else fraction(value)


def host_and_port(value: str | None) -> str | None:
    """Checks that an optional address has the form HOST:PORT."""
    if value is not None:
        match = re.fullmatch(r".+:(\d{1,5})", value)
        if match is None or not 0 < int(match[1]) < 65_536:
            raise typer.BadParameter(f"must be HOST:PORT, for example 10.0.0.2:8476, got {value!r}")
    return value


def shard_of(value: str | None) -> "Shard | None":
    """Reads an optional `K/N`, K from 1 to N."""
    if value is None:
        return None
    from cervseg_jax.segmentation.shares import Shard

    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard: must be K/N with K from 1 to N, for example 3/16, got {value!r}")
    return Shard(int(match[1]), int(match[2]))


def process_spec(
    is_cluster: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> "ProcessSpec":
    """Returns what `--distributed`, `--coordinator`, `--num-processes` and `--process-id` say."""
    from cervseg_jax.runtime.processes import ProcessSpec

    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ConfigError(f"--process-id: must be less than --num-processes ({num_processes}), got {process_id}")
    return ProcessSpec(coordinator, num_processes, process_id, is_cluster)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a config value (repeatable)."),
]
_CONFIG = typer.Argument(
    help="A YAML file, or the name of a recipe (`cervseg-jax recipes` lists them).", autocompletion=complete_config
)
ConfigArgument = Annotated[Path, _CONFIG]
OptionalConfig = Annotated[Path | None, _CONFIG]
RunArgument = Annotated[
    Path, typer.Argument(help="A run folder, such as runs/quickstart, or built-in weights, such as pap.")
]
DatasetArgument = Annotated[
    Path,
    typer.Argument(help="A folder with train, valid and test, each with images and masks; or images and masks."),
]
OtherData = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Score this dataset instead: a folder with train, valid and test, or with images and masks."
    ),
]
Split = Annotated[str, typer.Option("--split", help="train, valid or test.", autocompletion=complete_split)]
Tiled = Annotated[
    bool | None,
    typer.Option(
        "--tiled/--whole",
        help="Predict on overlapping tiles at the original scale, or on the whole image resized to the network's "
        "input. Default: as configured.",
    ),
]
NucleusPx = Annotated[
    float | None,
    typer.Option(
        callback=positive,
        help="Diameter of nuclei in the images, in pixels, for weights of one scale such as pap. "
        "Default: by the pixel size where it is known, or else estimated in each image.",
    ),
]
OwnData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Train on a folder of annotated images without a config: it is prepared, a recipe is planned "
        "(`cervseg-jax plan` shows it), and training starts from the built-in weights.",
    ),
]
Ensemble = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="RUN", help="Average the predictions with those of this run (repeatable)."),
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="One process per host, as started by Cloud TPU, Slurm or MPI.")
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        callback=host_and_port,
        help="Address of process 0, for launchers that JAX does not detect.",
    ),
]
NumProcesses = Annotated[int | None, typer.Option(min=1, max=65_536, help="Number of processes; with --coordinator.")]
ProcessId = Annotated[int | None, typer.Option(min=0, max=65_535, help="Index of this process; with --coordinator.")]
DecisionsOption = Annotated[
    Path | None,
    typer.Option(
        "--decisions",
        metavar="FILE",
        help="decisions.json of a reviewing page: rejected images and nuclei are left out.",
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the results as JSON.")]


def tiled_setting(tiled: bool | None) -> list[str]:
    """Returns the override that `--tiled` or `--whole` stands for."""
    return [] if tiled is None else ["infer.tiled={}" if tiled else "infer.tiled=null"]


def nucleus_px_setting(nucleus_px: float | None) -> list[str]:
    """Returns the override that `--nucleus-px` stands for."""
    return [] if nucleus_px is None else [f"infer.nucleus_px={nucleus_px}"]
