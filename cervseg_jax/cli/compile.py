"""`cervseg-jax compile`."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cervseg_jax.cli.options import ConfigArgument, JsonFile, Overrides, Quiet
from cervseg_jax.errors import FindingsError

EXAMPLE = "cervseg-jax compile clustered --topology v5e:2x4"


def compile_recipe(
    config: ConfigArgument,
    topology: Annotated[
        str, typer.Option(metavar="NAME", help="v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, or a larger one.")
    ],
    find_largest: Annotated[
        bool, typer.Option("--largest-batch", help="Also search for the largest train.batch_size that fits.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(metavar="FORM", help="Also compile the network's layers in this form: plain.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also print the cycles of each layer.")] = False,
    json_path: JsonFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Compile the train step for a TPU topology.

    Needs no TPU hardware. Reports the memory per chip; exits with 1 if the step does not fit.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # JAX would look for a TPU here if the TPU compiler is installed
    from cervseg_jax.bench.topology import FORMS, compile_for, largest_batch
    from cervseg_jax.components import lookup
    from cervseg_jax.config import load_config
    from cervseg_jax.console import Reporter
    from cervseg_jax.files import write_json

    reporter = Reporter(quiet=quiet)
    other = None if against is None else lookup(FORMS, against, key="--against")
    checked = load_config(config, overrides or ())
    reporter.info(f"compiling the train step of {config} for {topology}; this can take minutes ...")
    compiled = compile_for(checked, topology)
    if find_largest and compiled["fits"]:
        compiled["largest_batch"] = largest_batch(checked, topology, start=checked.train.batch_size)
    columns = {"chosen": compiled}
    if against is not None:
        columns[against] = compiled[against] = compile_for(checked, topology, backend=other)
    if json_path is not None:
        write_json(json_path, compiled)
    for line in _table(columns, verbose=verbose):
        reporter.info(line)
    if not compiled["fits"]:
        raise FindingsError(
            f"{config} does not fit on {topology}: {compiled.get('needed', 'too much memory')}; try "
            "runtime.precision=bfloat16, runtime.remat=true, a larger train.grad_accum_steps, or more chips along "
            "runtime.mesh.spatial"
        )


def _table(columns: Mapping[str, Mapping[str, Any]], *, verbose: bool) -> list[str]:
    """Returns lines with a column for each form of the network, the first one's rows in order."""
    tables = [dict(_rows(facts) + (_layer_rows(facts) if verbose else [])) for facts in columns.values()]
    names = list(dict.fromkeys(name for table in tables for name in table))
    width = max(len(value) for value in tables[0].values()) + 2
    rows = [("", list(columns))] if len(tables) > 1 else []
    rows += [(name, [table.get(name, "-") for table in tables]) for name in names]
    return [f"{name:<28}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip() for name, cells in rows]


def _layer_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    by_layer = facts.get("cycles", {}).get("by_layer", {})
    return [(f"  {layer}", f"{cycles / 1e6:.2f} million cycles") for layer, cycles in by_layer.items()]


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    height, width = facts["image_size"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    lines = [
        ("chips", f"{facts['chips']} of {facts['hosts']} hosts; mesh {mesh}"),
        ("batch", f"{facts['batch_size']} images of {height}x{width}, {facts['precision']}"),
    ]
    if "total_bytes" not in facts:
        return lines
    share = facts["total_bytes"] / facts["chip_bytes"]
    verdict = "fits" if facts["fits"] else "does not fit"
    lines += [
        ("weights, optimizer, batch", _gib(facts["arguments_bytes"])),
        ("activations, temporaries", _gib(facts["temporary_bytes"])),
        ("program, results", _gib(facts["program_bytes"] + facts["outputs_bytes"])),
        ("total per chip", f"{_gib(facts['total_bytes'])} of {_gib(facts['chip_bytes'])} ({share:.1%}): {verdict}"),
        ("operations per step", f"{facts['step_flops'] / 1e12:.2f} TFLOP over all chips"),
        ("estimated cycles per step", f"{facts['cycles']['total'] / 1e6:.1f} million per chip"),
        ("operations per cycle", f"{facts['matrix_share']:.1%} of a large matrix product's"),
        ("compiled in", f"{facts['compile_seconds']:.0f} s"),
    ]
    for kind, entry in facts["collectives"].items():
        if kind != "large_gathers":
            lines.append((kind, f"{entry['count']}, {entry['bytes'] / 2**20:.1f} MiB per chip and step"))
    gathers = facts["collectives"]["large_gathers"]
    lines.append(("large all-gathers", "; ".join(f"{n} x {shape}" for shape, n in gathers.items()) or "none"))
    if "largest_batch" in facts:
        lines.append(("largest batch that fits", str(facts["largest_batch"])))
    return lines


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
