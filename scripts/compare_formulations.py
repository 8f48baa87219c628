"""Compiles implementations of the dilated convolutions of the published U-Net for a TPU topology, without hardware.

Prints the compiler's estimate of cycles, bytes accessed and temporary memory for each layer with a large kernel, in the
forward and backward pass. Implementations: XLA's dilated convolution, a plain convolution of images of every d-th pixel
("space to batch"), and one with the taps of a row as channels ("shifted"). Needs the extra tpu-compile.

Run: python scripts/compare_formulations.py [--topology v5e:1x1] [--precision float32] [--size 512] [--batch-size 2]
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding

from cervseg_jax.bench.topology import topology_devices

BASE, KERNEL, DILATION = 16, 9, 3
LEVELS = 3
NHWC = ("NHWC", "HWIO", "NHWC")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def main(arguments: Sequence[str]) -> None:
    """Compiles all implementations and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args(arguments)
    placement = SingleDeviceSharding(topology_devices(options.topology)[1][0])
    print(
        "| size | kernel | dilation | channels | implementation | pass | 10^6 cycles | MiB accessed | MiB temporary |"
    )
    print("|---" * 9 + "|")
    for level in range(LEVELS):
        filters, size = BASE * 2**level, options.size >> level
        kernel_size, dilation = KERNEL - 2 * level, DILATION - level
        for channels in (3 if level == 0 else filters // 2, filters, 2 * filters):
            shapes = (
                (options.batch_size, size, size, channels),
                (kernel_size, kernel_size, channels, filters),
                (options.batch_size, size, size, filters),
            )
            specs = [jax.ShapeDtypeStruct(shape, options.precision, sharding=placement) for shape in shapes]
            for name, convolve in IMPLEMENTATIONS.items():
                for title, function in _passes(convolve, dilation).items():
                    layer = (f"{size}x{size}", f"{kernel_size}x{kernel_size}", dilation, f"{channels} to {filters}")
                    print(
                        "| " + " | ".join(map(str, (*layer, name, title, *_cost(function, specs)))) + " |", flush=True
                    )


def _passes(convolve: Callable[..., jax.Array], dilation: int) -> dict[str, Callable[..., Any]]:
    def forward(images: Any, kernel: Any, _: Any) -> jax.Array:
        return convolve(images, kernel, dilation)

    def backward(images: Any, kernel: Any, cotangent: Any) -> Any:
        return jax.vjp(lambda *inputs: convolve(*inputs, dilation), images, kernel)[1](cotangent)

    return {"forward": forward, "gradients": backward}


def _cost(function: Callable[..., Any], specs: Sequence[Any]) -> tuple[str, str, str]:
    compiled = jax.jit(function).lower(*specs).compile()
    cycles = sum(int(count) for count in _CYCLES.findall(compiled.as_text() or ""))
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    accessed = (cost or {}).get("bytes accessed", float("nan"))
    temporary = getattr(memory, "temp_size_in_bytes", 0)
    return f"{cycles / 1e6:.2f}", f"{accessed / 2**20:.0f}", f"{temporary / 2**20:.0f}"


def dilated(images: Any, kernel: Any, dilation: int) -> jax.Array:
    """Dilated convolution of XLA."""
    steps = (dilation, dilation)
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", rhs_dilation=steps, dimension_numbers=NHWC)


def space_to_batch(images: Any, kernel: Any, dilation: int) -> jax.Array:
    """Undilated convolution of `dilation**2` subsampled images per image, each with every `dilation`-th pixel."""
    num_images, height, width, channels = images.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    images = jnp.pad(images, ((0, 0), (0, rows * dilation - height), (0, columns * dilation - width), (0, 0)))
    subsampled = images.reshape(num_images, rows, dilation, columns, dilation, channels).transpose(2, 4, 0, 1, 3, 5)
    outputs = dilated(subsampled.reshape(-1, rows, columns, channels), kernel, 1)
    outputs = outputs.reshape(dilation, dilation, num_images, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return outputs.reshape(num_images, rows * dilation, columns * dilation, -1)[:, :height, :width]


def shifted(images: Any, kernel: Any, dilation: int) -> jax.Array:
    """Convolution with one column of taps over images whose channels hold all taps of a row."""
    size, _, channels, filters = kernel.shape
    margin, width = dilation * (size // 2), images.shape[2]
    padded = jnp.pad(images, ((0, 0), (0, 0), (margin, margin), (0, 0)))
    across = jnp.concatenate([padded[:, :, dilation * tap : dilation * tap + width] for tap in range(size)], -1)
    column = kernel.reshape(size, 1, size * channels, filters)
    steps, margins = (dilation, 1), ((margin, margin), (0, 0))
    return lax.conv_general_dilated(across, column, (1, 1), margins, rhs_dilation=steps, dimension_numbers=NHWC)


IMPLEMENTATIONS = {"dilated": dilated, "space to batch": space_to_batch, "shifted": shifted}


if __name__ == "__main__":
    main(sys.argv[1:])
