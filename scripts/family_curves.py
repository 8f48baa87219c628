"""Trains every network family on one synthetic dataset and plots the learning curves in one figure.

The largest networks are trained in narrower versions (`NARROWER`), so that two CPU cores finish within about two hours;
all other settings are those of configs/clustered_<family>.yaml. Finished families are reused, so an interrupted run
continues where it stopped.

Run: python scripts/family_curves.py OUT
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cervseg_jax.models import MODELS, build_model
from cervseg_jax.models.layers.blocks import num_params
from cervseg_jax.plots import draw_family_curves

NARROWER = {
    "basnet": ["model.args.base_filters=16"],
    "efficientnet_b7_unet": ["model.args.encoder=efficientnet_b0"],
    "trans_unet": ["model.args.embed_width=256", "model.args.mlp_width=1024", "model.args.num_blocks=4"],
    "unet": ["model.args.levels=5"],
}
COMMON = [
    "model.image_size=[128, 128]",
    "data.origin=",
    "data.synthetic={train: 60, valid: 12, test: 32, size: [256, 256], seed: 3}",
    "augment.operations=[{name: flip}, {name: rotate90}]",
    "train.batch_size=2",
    "train.epochs=10",
    "train.early_stop_patience=",
    "train.plateau=",
    "train.cosine={final_factor: 0.05}",
]
"""Settings of all families: ten epochs of 30 steps."""


def main(arguments: Sequence[str]) -> None:
    """Trains and scores all families, draws their curves and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for data, runs, curves.png and families.json")
    parser.add_argument("--only", nargs="*", default=sorted(MODELS), help="families")
    options = parser.parse_args(arguments)
    out: Path = options.out.absolute()
    rows = []
    for name in options.only:
        run = out / "runs" / name
        summary = run / "family.json"
        if not summary.is_file():
            settings = [*COMMON, *NARROWER.get(name, []), f"data.root={out / 'data'}"]
            peak = _train(name, run, settings)
            summary.write_text(json.dumps(_summary(name, run) | {"peak_bytes": peak}), encoding="utf-8")
        rows.append(json.loads(summary.read_text(encoding="utf-8")))
    draw_family_curves(out / "curves.png", {row["name"]: (row["loss"], row["val_loss"]) for row in rows})
    (out / "families.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    print("| family | parameters | first, last loss | Dice on test images | s per step | peak memory |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['num_params']:,} | {row['loss'][0]:.3f}, {row['loss'][-1]:.3f} "
            f"| {row['dice_mean']:.4f} | {row['step_seconds']:.2f} | {row['peak_bytes'] / 2**30:.1f} GiB |"
        )


def _train(name: str, run: Path, settings: Sequence[str]) -> int:
    """Trains and evaluates a family; returns the peak memory of the training in bytes."""
    config = Path("configs") / ("clustered.yaml" if name == "unet" else f"clustered_{name}.yaml")
    overrides = [word for setting in settings for word in ("--set", setting)]
    program = str(Path(sys.executable).with_name("cervseg-jax"))
    process = subprocess.Popen([program, "train", str(config), "--run-dir", str(run), "--quiet", *overrides])
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{name}: training ended with {os.waitstatus_to_exitcode(status)}")
    subprocess.run([program, "eval", str(run), "--quiet"], check=True)
    return usage.ru_maxrss * 1024


def _summary(name: str, run: Path) -> dict[str, object]:
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    contract = json.loads((run / "best" / "contract.json").read_text(encoding="utf-8"))
    summary = json.loads((run / "eval" / "test" / "summary.json").read_text(encoding="utf-8"))
    model = build_model(name, image_size=tuple(contract["image_size"]), args=contract["model_args"])
    return {
        "name": name,
        "num_params": num_params(model),
        "loss": history["loss"],
        "val_loss": history["val_loss"],
        "dice_mean": summary["dice_mean"],
        # Excludes the first epoch, which compiles; the others include validation.
        "step_seconds": statistics.median(history["seconds"][1:]) / history["step"][0],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
