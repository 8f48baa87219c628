"""Benchmark of the convolutions and pooling of the published U-Net: XLA beside the CPU backend of this package.

Run: python scripts/benchmark_convolution.py [--size 256] [--batch-size 2] [--rounds 5]
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cervseg_jax.bench.timing import time_in_turns
from cervseg_jax.models.layers.conv.cpu import convolve_on_cpu
from cervseg_jax.models.layers.pooling import max_of_blocks

LEVELS, BASE, KERNEL, DILATION = 6, 16, 9, 3


def main(arguments: Sequence[str]) -> None:
    """Runs the benchmark and prints two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    header = ["size", "kernel", "dilation", "channels"]
    header += [f"{kind}, XLA / CPU backend, GFLOP/s" for kind in ("forward", "gradients")]
    print(f"| {' | '.join(header)} |")
    print("|---|---|---|---|---|---|")
    for level in range(LEVELS):
        filters, size = BASE * 2**level, options.size >> level
        kernel, dilation = max(3, KERNEL - 2 * level), max(1, DILATION - level)
        for channels in (3 if level == 0 else filters // 2, filters, 2 * filters):
            shape = (options.batch_size, size, size)
            rates = _rates(shape, kernel, dilation, channels, filters, options.rounds)
            row = (f"{size}x{size}", f"{kernel}x{kernel}", dilation, f"{channels} to {filters}")
            print("| " + " | ".join(map(str, row)), *rates, "", sep=" | ")
    print("\n| pooling of 2x2, with gradient | XLA / CPU backend, ms |\n|---|---|")
    for level in range(LEVELS - 1):
        shape = (options.batch_size, options.size >> level, options.size >> level, BASE * 2**level)
        print("| " + "x".join(map(str, shape)), _pooling(shape, options.rounds), "", sep=" | ")


def _pooling(shape: tuple[int, ...], rounds: int) -> str:
    rng = np.random.default_rng(0)
    images = np.maximum(rng.standard_normal(shape, np.float32), 0)
    cotangent = rng.standard_normal((shape[0], shape[1] // 2, shape[2] // 2, shape[3]), np.float32)

    def xla(images: Any) -> jax.Array:
        return jax.lax.reduce_window(images, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def with_gradient(pool: Callable[..., jax.Array]) -> Callable[..., Any]:
        def both(images: Any, cotangent: Any) -> Any:
            maxima, back = jax.vjp(pool, images)
            return maxima, back(cotangent)

        return both

    pools = {"xla": xla, "cpu": lambda images: max_of_blocks(images, 2)}
    calls = {name: _call(with_gradient(pool), images, cotangent) for name, pool in pools.items()}
    times = time_in_turns(calls, rounds=rounds)
    return " / ".join(f"{1e3 * times[name].median:.1f}" for name in pools)


def _rates(
    shape: tuple[int, ...], kernel_size: int, dilation: int, channels: int, filters: int, rounds: int
) -> list[str]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((*shape, channels), np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, channels, filters), np.float32)
    cotangent = rng.standard_normal((*shape, filters), np.float32)

    def xla(images: Any, kernel: Any) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (1, 1),
            "SAME",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def cpu(images: Any, kernel: Any) -> jax.Array:
        return convolve_on_cpu(images, kernel, dilation)

    def gradients(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
        return lambda images, kernel, cotangent: jax.vjp(convolve, images, kernel)[1](cotangent)

    calls = {}
    for name, convolve in (("xla", xla), ("cpu", cpu)):
        calls[f"{name} forward"] = _call(convolve, images, kernel)
        calls[f"{name} gradients"] = _call(gradients(convolve), images, kernel, cotangent)
    times = time_in_turns(calls, rounds=rounds)
    operations = 2 * np.prod(shape) * kernel.size / 1e9
    return [
        " / ".join(f"{count * operations / times[f'{name} {kind}'].median:.0f}" for name in ("xla", "cpu"))
        for kind, count in (("forward", 1), ("gradients", 2))
    ]


def _call(function: Callable[..., Any], *arrays: Any) -> Callable[[], None]:
    compiled, placed = jax.jit(function), jax.device_put(arrays)

    def call() -> None:
        jax.block_until_ready(compiled(*placed))

    return call


if __name__ == "__main__":
    main(sys.argv[1:])
