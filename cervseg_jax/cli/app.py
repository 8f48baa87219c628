"""The Typer application. Heavy imports happen inside the commands, so that `--help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax import __version__
from cervseg_jax.cli import data_app
from cervseg_jax.cli.options import Ensemble, Overrides, Quiet, RunArgument, Tiled

app = typer.Typer(
    name="cervseg-jax",
    help="Segments nuclei in clustered cervical cells. For research only; not a medical device, no diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tiled_setting(tiled: bool | None) -> list[str]:
    return [] if tiled is None else ["infer.tiled={}" if tiled else "infer.tiled=null"]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cervseg-jax {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; works anywhere on the line.")] = False,
) -> None:
    pass


@app.command(epilog="Example: cervseg-jax train configs/quickstart.yaml --set train.epochs=5")
def train(
    config: Annotated[Path, typer.Argument(help="A recipe, such as configs/clustered.yaml.")],
    run_dir: Annotated[Path | None, typer.Option(help="Run folder; default: runs/<name of the config>.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new run in a numbered folder beside it.")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Train so many times with other seeds, in RUN/seed_0, seed_1 ...")
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Go on with a run although its config or data have changed.")
    ] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One process per host, found by JAX: Cloud TPU slices, Slurm, MPI.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of process 0, where nothing else tells.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(min=1, help="With --coordinator: how many.")] = None,
    process_id: Annotated[int | None, typer.Option(min=0, help="With --coordinator: which one this is.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Train a network; the same command continues a run that was stopped."""
    from cervseg_jax.console import Reporter
    from cervseg_jax.runtime.processes import ProcessSpec
    from cervseg_jax.training.run import TrainRequest, train_runs

    request = TrainRequest(
        config,
        run_dir,
        tuple(overrides or []),
        processes=ProcessSpec(coordinator, num_processes, process_id, distributed),
        num_seeds=seeds,
        fresh=fresh,
        allow_changes=allow_changes,
    )
    train_runs(request, reporter=Reporter(quiet=quiet))


@app.command(name="eval", epilog="Example: cervseg-jax eval runs/quickstart --split test")
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    data: Annotated[
        Path | None, typer.Option(help="Another dataset: with train, valid, test, or with images and masks.")
    ] = None,
    tiled: Tiled = None,
    ensemble: Ensemble = None,
    allow_trained: Annotated[
        bool, typer.Option("--allow-trained", help="Score images that the run was trained on.")
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Score a run's best weights, predicting as `infer` does; writes RUN/eval/."""
    from cervseg_jax.cli.score_commands import run_eval

    settings = _tiled_setting(tiled) + (overrides or [])
    run_eval(run, split, data, settings, others=ensemble or [], allow_trained=allow_trained, quiet=quiet)


@app.command(epilog="Example: cervseg-jax compare runs/small runs/large")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more runs, or folders of --seeds; the first is the base.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    data: Annotated[
        Path | None, typer.Option(help="Another dataset: with train, valid, test, or with images and masks.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: in the first run.")] = None,
    allow_trained: Annotated[
        bool, typer.Option("--allow-trained", help="Score images that a run was trained on.")
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Compare runs on the same images: differences with intervals, a test, a picture."""
    from cervseg_jax.cli.score_commands import run_compare

    run_compare(runs, split, data, out, overrides or [], allow_trained=allow_trained, quiet=quiet)


@app.command(epilog="Example: cervseg-jax infer runs/quickstart --images my_slides --out my_masks")
def infer(
    run: RunArgument,
    images: Annotated[list[Path], typer.Option(help="An image or a folder of images (repeatable).")],
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.")],
    output: Annotated[
        list[str] | None,
        typer.Option(
            help="What to write (repeatable, commas allowed): masks, overlays, instances, nuclei, probabilities, "
            "color, geojson, coco, labelme, rois, or all; default: the first four."
        ),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(min=0.0, help="Micrometres per pixel: measurements in micrometers as well.")
    ] = None,
    tiled: Tiled = None,
    ensemble: Ensemble = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of an earlier call.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an earlier call that was cut off.")] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Make masks, single nuclei and measurements of images with a run's best weights."""
    from cervseg_jax.cli.commands import run_infer

    outputs = [name.strip() for given in output or [] for name in given.split(",")]
    run_infer(
        run,
        images,
        out,
        _tiled_setting(tiled) + (overrides or []),
        others=ensemble or [],
        outputs=outputs,
        mpp=mpp,
        overwrite=overwrite,
        resume=resume,
        quiet=quiet,
    )


@app.command(epilog="Example: cervseg-jax report runs/quickstart")
def report(
    folder: Annotated[Path, typer.Argument(help="A run, finished or not, or a folder that infer wrote.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the folder.")] = None,
    layers: Annotated[
        int, typer.Option(min=0, help="Images that open in layers; the others are thumbnails, to keep the page small.")
    ] = 60,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about a run or inferred images, and cards for model and data."""
    from cervseg_jax.cli.score_commands import run_report

    run_report(folder, out, num_layered=layers, quiet=quiet)


@app.command(name="compile", epilog="Example: cervseg-jax compile configs/clustered.yaml --topology v5e:2x4")
def compile_recipe(
    config: Annotated[Path, typer.Argument(help="A recipe, such as configs/clustered.yaml.")],
    topology: Annotated[str, typer.Option(help="v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, or larger.")],
    find_largest: Annotated[
        bool, typer.Option("--largest-batch", help="Also look for the largest train.batch_size that fits.")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Compile the train step for a TPU that is not there: does it fit, what do the chips exchange?"""
    import os

    os.environ["JAX_PLATFORMS"] = "cpu"  # with its compiler installed JAX would look for a TPU here
    from cervseg_jax.cli.compile_command import run_compile

    run_compile(config, topology, overrides or [], find_largest=find_largest, json_path=json_path, quiet=quiet)


@app.command(epilog="Example: cervseg-jax bench configs/quickstart.yaml --against keras")
def bench(
    config: Annotated[
        Path | None, typer.Argument(help="A recipe; default: the published U-Net at 256x256 with six levels.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Also time keras (its fit) or torch (a twin of unet); repeatable.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: both.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed, in turns.")] = 5,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Time training, prediction and input on this machine, beside other programs in one run."""
    from cervseg_jax.cli.bench_command import run_bench

    run_bench(
        config,
        overrides or [],
        against=against or [],
        precision=precision,
        rounds=rounds,
        json_path=json_path,
        quiet=quiet,
    )


@app.command(epilog="Example: cervseg-jax export runs/quickstart")
def export(
    run: RunArgument,
    format_name: Annotated[
        str, typer.Option("--format", help="stablehlo (runs without this package), or keras (a .keras file).")
    ] = "stablehlo",
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: RUN/export/FORMAT.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a run's network, weights included, for other programs; read back and compared before it counts."""
    from cervseg_jax.cli.commands import run_export

    run_export(run, out, format_name, quiet=quiet)


for _command, _example in (
    (data_app.synth, "cervseg-jax synth drawn --images 20 --seed 1"),
    (data_app.prepare, "cervseg-jax prepare CNSeg --out data/clustered --padding square --size 512 512"),
    (data_app.audit, "cervseg-jax audit data/clustered"),
    (data_app.stats, "cervseg-jax stats data/clustered"),
):
    app.command(epilog=f"Example: {_example}")(_command)


@app.command(epilog="Example: cervseg-jax models unet --size 512 512 --set model.args.levels=8")
def models(
    name: Annotated[str | None, typer.Argument(help="A model; without it, all are listed.")] = None,
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of the input.")] = (256, 256),
    batch_size: Annotated[int, typer.Option(min=1, help="Images of the measured train step.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder for layers, table, figures as JSON and a picture.")] = None,
    cost: Annotated[
        bool | None,
        typer.Option("--cost/--no-cost", help="Compile and time a train step; default: for one model, not for all."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """List the networks, or show one: layers, parameters, operations, memory, time of a train step."""
    from cervseg_jax.cli.model_commands import run_models

    run_models(name, size, batch_size, overrides or [], out, cost=name is not None if cost is None else cost)


@app.command(epilog="Example: cervseg-jax import-config train_eval_infer.config -o mine.yaml")
def import_config(
    file: Annotated[Path, typer.Argument(help="A config of the reference implementation.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; default: standard output.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Turn a config of the reference into a recipe; says what became of each key."""
    from cervseg_jax.cli.import_commands import run_import_config

    run_import_config(file, out, overwrite=overwrite)


@app.command(epilog="Example: cervseg-jax import-weights best_model.h5 --config mine.yaml --out runs/mine")
def import_weights(
    file: Annotated[Path, typer.Argument(help="HDF5 weights or model of the reference (Keras 2).")],
    config: Annotated[Path, typer.Option(help="The recipe, such as import-config makes it.")],
    out: Annotated[Path, typer.Option(help="A new run folder.")],
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Turn weights of the reference into a run for eval, infer and train.init_from."""
    from cervseg_jax.cli.import_commands import run_import_weights

    run_import_weights(file, config, out, overrides or [], quiet=quiet)


@app.command(epilog="Example: cervseg-jax doctor")
def doctor() -> None:
    """Check devices, versions, OpenCV, memory and disk; say the fix for each finding."""
    from cervseg_jax.cli.doctor import run_doctor

    run_doctor()
