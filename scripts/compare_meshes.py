"""Compares loss and gradients of a train step on several meshes of up to eight simulated devices with a single device.

Gradients are compared in float64, where rounding does not hide errors; the loss in float32 and float64. Collectives are
counted in the compiled float32 program.

Run: python scripts/compare_meshes.py [--size 48 72] [--filters 4] [--levels 4]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

MESHES = ((1, 1, 1), (8, 1, 1), (4, 1, 2), (2, 1, 4), (1, 1, 8), (1, 8, 1), (2, 2, 2))
"""Devices along the axes data, fsdp and spatial."""
BATCH_SIZE = 8
ZERO = 1e-6
"""Gradients below this fraction of the largest one are zero up to rounding; for example biases before BatchNorm."""


def main(arguments: Sequence[str]) -> None:
    """Measures each precision in a process of its own and prints a combined table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--size", type=int, nargs=2, default=(48, 72), help="height and width; the height must be a multiple of 8"
    )
    parser.add_argument("--filters", type=int, default=4)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument(
        "--batch-norm", action="store_true", help="use BatchNorm; Keras keeps its statistics in float32"
    )
    parser.add_argument(
        "--precision", choices=("float32", "float64"), help="measure only this precision, in this process"
    )
    options = parser.parse_args(arguments)
    if options.precision:
        _measure(options)
        return
    rows: dict[str, list[list[str]]] = {}
    for precision in ("float32", "float64"):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": str(int(precision == "float64")),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        }
        command = [sys.executable, __file__, *arguments, "--precision", precision]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows[precision] = [line.split() for line in done.stdout.splitlines()]
    header = ["data x fsdp x spatial", "loss, float32", "loss, float64", "gradients, float64", "halos", "gathered, MiB"]
    print(f"| {' | '.join(header)} |")
    print("|---|---|---|---|---|---|")
    for single, double in zip(rows["float32"], rows["float64"], strict=True):
        print(f"| {single[0]} | {single[1]} | {double[1]} | {double[2]} | {single[3]} | {single[4]} |")


def _measure(options: Any) -> None:
    """Prints for each mesh the relative differences from one device, and the collectives."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cervseg_jax.bench.topology import collectives
    from cervseg_jax.data.batch import Batch, batch_sharding
    from cervseg_jax.engine.step import StepOptions, objective
    from cervseg_jax.losses import LOSSES
    from cervseg_jax.models import build_model, functionalize
    from cervseg_jax.models.layers.blocks import KERAS_DTYPES
    from cervseg_jax.runtime.mesh import make_mesh, state_sharding
    from cervseg_jax.schema import MeshConfig

    if options.precision == "float64":  # replaces every use of float32
        jnp.float32, KERAS_DTYPES["float32"] = jnp.float64, "float64"
    import keras  # after the package, which selects the backend

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    size = tuple(options.size)
    args = {
        "base_filters": options.filters,
        "levels": options.levels,
        "kernel_size": 9,
        "dilation": 3,
        "batch_norm": options.batch_norm,
    }
    model = build_model("unet", image_size=size, args=args | {"dropout_rate": 0.1})
    apply, params, model_state = functionalize(model)
    dtype = np.dtype(options.precision)
    params, model_state = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), (params, model_state))
    batch = Batch(
        rng.integers(0, 256, (BATCH_SIZE, *size, 3), np.uint8),
        (rng.random((BATCH_SIZE, *size, 1)) < 0.3).astype(np.uint8),
        np.ones(BATCH_SIZE, np.float32),
        np.arange(BATCH_SIZE, dtype=np.int32),
    )

    def loss_and_gradients(params: Any, batch: Batch) -> Any:
        def value(params: Any) -> Any:
            return objective(apply, LOSSES["bce_dice"], StepOptions(), params, model_state, batch, jax.random.key(0))[0]

        return jax.value_and_grad(value)(params)

    reference: Any = None
    for data, fsdp, spatial in MESHES:
        mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, spatial=spatial), batch_size=BATCH_SIZE)
        sharding = state_sharding(mesh, params)
        step = jax.jit(
            loss_and_gradients, in_shardings=(sharding, batch_sharding(mesh)), out_shardings=(None, sharding)
        )
        compiled = step.lower(params, batch).compile()
        loss, gradients = jax.device_get(
            compiled(jax.device_put(params, sharding), jax.device_put(batch, batch_sharding(mesh)))
        )
        reference = reference or (loss, gradients)
        scale = {path: np.abs(gradient).max() for path, gradient in reference[1].items()}
        differences = [
            np.abs(gradients[path] - gradient).max() / scale[path]
            for path, gradient in reference[1].items()
            if scale[path] > ZERO * max(scale.values())
        ]
        exchanged = collectives(compiled.as_text() or "")
        halos, gathered = exchanged.get("collective-permute", {}), exchanged.get("all-gather", {})
        relative = abs(float(loss) - float(reference[0])) / abs(float(reference[0]))
        print(
            f"{data}x{fsdp}x{spatial} {relative:.1e} {max(differences):.1e} {halos.get('count', 0)} "
            f"{gathered.get('bytes', 0) / 2**20:.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
