"""The Typer application: registers the commands, which import heavy packages only when they run."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from cervseg_jax import __version__
from cervseg_jax.cli import (
    audit,
    bench,
    compare,
    compile,
    doctor,
    eval,
    export,
    import_config,
    import_weights,
    infer,
    merge,
    models,
    plan,
    prepare,
    recipes,
    report,
    stats,
    suggest,
    synth,
    train,
)
from cervseg_jax.cli.environment import check_limits

app = typer.Typer(
    name="cervseg-jax",
    help="Segment nuclei in clustered cervical cells. For research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        print(f"cervseg-jax {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors; accepted anywhere on the command line.")
    ] = False,
) -> None:
    pass


def _register(
    command: Callable[..., None],
    example: str,
    *,
    name: str | None = None,
    loads: Literal["nothing", "opencv", "jax"] = "jax",
) -> None:
    """Adds a command.

    Args:
      command: a function with Typer's annotations.
      example: shown below its help.
      name: name on the command line; None: the function's name.
      loads: the largest package that it imports, which decides what limits of the system it can run under.
    """

    @functools.wraps(command)
    def checked(*args: Any, **kwargs: Any) -> None:
        if loads != "nothing":
            check_limits(needs_jax=loads == "jax")
        command(*args, **kwargs)

    app.command(name=name, epilog=f"Example: {example}")(checked)


_register(recipes.recipes, recipes.EXAMPLE, loads="nothing")
_register(plan.plan, plan.EXAMPLE)
_register(train.train, train.EXAMPLE)
_register(eval.evaluate, eval.EXAMPLE, name="eval")
_register(compare.compare, compare.EXAMPLE)
_register(infer.infer, infer.EXAMPLE)
_register(merge.merge, merge.EXAMPLE)
_register(suggest.suggest, suggest.EXAMPLE)
_register(report.report, report.EXAMPLE)
_register(export.export, export.EXAMPLE)
_register(synth.synth, synth.EXAMPLE, loads="opencv")
_register(prepare.prepare, prepare.EXAMPLE, loads="opencv")
_register(audit.audit, audit.EXAMPLE, loads="opencv")
_register(stats.stats, stats.EXAMPLE, loads="opencv")
_register(models.models, models.EXAMPLE)
_register(bench.bench, bench.EXAMPLE)
_register(compile.compile_recipe, compile.EXAMPLE, name="compile")
_register(import_config.import_config, import_config.EXAMPLE)
_register(import_weights.import_weights, import_weights.EXAMPLE)
_register(doctor.doctor, doctor.EXAMPLE)
