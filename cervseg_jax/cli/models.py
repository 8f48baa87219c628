"""`cervseg-jax models`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cervseg_jax.cli.options import MAX_SIDE_PX, Overrides, complete_model
from cervseg_jax.errors import ConfigError

if TYPE_CHECKING:
    import keras

EXAMPLE = "cervseg-jax models unet --size 512 512 --set model.args.levels=8"

COLUMNS = ("model", "input", "parameters", "forward GFLOPs", "step GFLOPs", "activations MiB", "step s", "paper")


def models(
    name: Annotated[
        str | None,
        typer.Argument(help="A model. Without it, all models are listed.", autocompletion=complete_model),
    ] = None,
    size: Annotated[
        tuple[int, int],
        typer.Option(min=1, max=MAX_SIDE_PX, metavar="HEIGHT WIDTH", help="Input size in pixels."),
    ] = (256, 256),
    batch_size: Annotated[int, typer.Option(min=1, max=65_536, help="Batch size of the measured train step.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for the layers, the summary as Markdown and JSON, and a diagram."),
    ] = None,
    cost: Annotated[
        bool | None,
        typer.Option("--cost/--no-cost", help="Compile and time a train step. Default: only if NAME is given."),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="List the weights that come with the package.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """List the models, or describe one.

    Shows layers, parameters, operations, memory and the time of a train step.
    """
    if pretrained:
        _list_pretrained()
        return
    args = _model_args(overrides or [])
    has_cost = name is not None if cost is None else cost
    if name is None:
        if args or out is not None:
            raise ConfigError("models: --set and --out need the name of a model")
        _list(size, batch_size, cost=has_cost)
        return
    from cervseg_jax.files import make_folder, write_json, write_text
    from cervseg_jax.models import build_model

    model = build_model(name, image_size=size, args=args)
    lines: list[str] = []
    model.summary(line_length=110, print_fn=lines.append)
    summary = "\n".join(lines)
    print(summary)
    facts = _facts(model, args, size, batch_size, cost=has_cost)
    table = _table([facts])
    print(f"{table}\nlicense: {facts['license']}")
    if out is not None:
        folder = make_folder(out.absolute())
        write_text(folder / "layers.txt", summary + "\n")
        write_text(folder / "summary.md", table)
        write_json(folder / "facts.json", facts)
        _draw(folder / "graph.png", model, size)
        print(f"layers.txt, summary.md, facts.json and graph.png written to {out}")


def _list_pretrained() -> None:
    """Prints the name, network, scale and size of the built-in weights, and where their model card is."""
    from cervseg_jax.pretrained_weights import FOLDER, pretrained_names
    from cervseg_jax.runs.weights import read_contract

    for name in pretrained_names():
        folder = FOLDER / name
        contract = read_contract(folder / "best")
        scale = "" if contract.scale is None else f", nuclei at {contract.scale.nucleus_px:g} px"
        megabytes = (folder / "best" / contract.weights_file).stat().st_size / 1e6
        print(f"{name:<12}{contract.model_name}, {', '.join(contract.heads)}{scale}, {megabytes:.1f} MB")
        print(f"{'':<12}model card: {folder / 'README.md'}")


def _model_args(overrides: Sequence[str]) -> dict[str, Any]:
    from cervseg_jax.yaml12 import parse_yaml

    args = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.startswith("model.args."):
            raise ConfigError(f"--set {override}: expected model.args.KEY=VALUE")
        args[key.removeprefix("model.args.")] = parse_yaml(text, source=f"--set {override}")
    return args


def _list(size: tuple[int, int], batch_size: int, *, cost: bool) -> None:
    """Prints the table of models: names and papers, or their cost with default arguments."""
    from cervseg_jax.models import MODELS, build_model

    if not cost:
        for name, entry in MODELS.items():
            print(f"{name:<22}{entry.paper}")
        return
    print("\n".join(_lines(COLUMNS)))
    for name in MODELS:
        model = build_model(name, image_size=size, args={})
        facts = _facts(model, {}, size, batch_size, cost=True)
        print("\n".join(_lines(_row(facts))[:1]), flush=True)


def _facts(
    model: "keras.Model", args: Mapping[str, Any], size: tuple[int, int], batch_size: int, *, cost: bool
) -> dict[str, Any]:
    from cervseg_jax.models import MODELS, check_model_args
    from cervseg_jax.models.layers.blocks import num_params

    facts = {
        "model": model.name,
        "args": dict(args),
        "image_size": list(size),
        "num_params": num_params(model),
        "paper": MODELS[model.name].paper,
        "license": _license(check_model_args(model.name, size, args)),
    }
    if cost:
        from cervseg_jax.bench.cost import cost_config, measure_cost

        config = cost_config(model.name, args, size, batch_size=batch_size)
        facts |= {"batch_size": batch_size, "cost": measure_cost(config).to_json()}
    return facts


def _license(bound: Mapping[str, Any]) -> str:
    from cervseg_jax.models.encoders import ENCODERS

    own = "this implementation: Apache-2.0, written from the paper"
    encoder = bound.get("encoder")
    if encoder is None:
        return own
    return f"{own}; ImageNet weights of {encoder}, if used: {ENCODERS[encoder].license}"


def _row(facts: Mapping[str, Any]) -> tuple[str, ...]:
    height, width = facts["image_size"]
    figures = ["-"] * 4
    if "cost" in facts:
        cost = facts["cost"]
        figures = [
            f"{cost['forward_flops'] / 1e9:.1f}",
            f"{cost['step_flops'] / 1e9:.1f}",
            f"{cost['activation_bytes'] / 2**20:.0f}",
            f"{cost['median_seconds']:.2f}",
        ]
    shape = f"{facts.get('batch_size', 1)}x{height}x{width}"
    return (facts["model"], shape, f"{facts['num_params']:,}", *figures, facts["paper"])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats a Markdown table."""
    return "\n".join([*_lines(COLUMNS), *(_lines(_row(facts))[0] for facts in rows)]) + "\n"


def _lines(cells: Sequence[str]) -> list[str]:
    """Formats a row of a Markdown table, and the separator that makes it the header."""
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def _draw(path: Path, model: "keras.Model", size: tuple[int, int]) -> None:
    from cervseg_jax.models.graph import stages_of
    from cervseg_jax.plots import Box, draw_stages

    boxes = [
        Box(
            label=f"{stage.channels}" + (f"\n×{stage.num_layers}" if stage.num_layers else ""),
            level=math.log2(size[0] / stage.size[0]),
            side=f"{stage.size[0]}x{stage.size[1]}",
            feeds=stage.feeds,
        )
        for stage in stages_of(model)
    ]
    draw_stages(path, boxes, title=f"{model.name}: channels, × layers; skip connections in red")
