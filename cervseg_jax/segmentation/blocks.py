"""Blocks of a large image, each with a margin, and the measurements of the nuclei in them.

Blocks are worked on by several threads: nearly all of the time goes into NumPy and OpenCV, which release the GIL.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from cervseg_jax.runtime.threads import default_threads, map_ahead
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.morphometry import Table, measure, nearest_distances

BLOCK_PX = 2048
"""Side of a block; smaller images are one block."""
HALO_PX = 256
"""Margin that a block sees beyond its border: more than a nucleus and its neighbors."""

Place = tuple[np.ndarray, np.ndarray, tuple[slice, slice]]
"""First and end pixel of a block, and the block with its margin as rows and columns of the image."""

T = TypeVar("T")
R = TypeVar("R")


class Block(NamedTuple):
    """A block that has been labelled."""

    window: tuple[slice, slice]
    """The block with its margin, as rows and columns of the image."""
    labels: np.ndarray
    """The block's own nuclei as 1..n, int32 [h, w]."""
    context: np.ndarray
    """Everything that was labelled in the window, under other numbers."""
    num_before: int
    """Nuclei of earlier blocks; the block's first nucleus has this label + 1."""


def windows(shape: tuple[int, int]) -> Iterator[Place]:
    """Yields first and end pixel of each block, and the block with its margin."""
    for first_row in range(0, shape[0], BLOCK_PX):
        for first_column in range(0, shape[1], BLOCK_PX):
            start = np.array((first_row, first_column))
            end = np.minimum(start + BLOCK_PX, shape)
            top, left = np.maximum(0, start - HALO_PX).tolist()
            bottom, right = np.minimum(shape, end + HALO_PX).tolist()
            yield start, end, np.s_[top:bottom, left:right]


class BlockPool:
    """Threads for the blocks of an image."""

    def __init__(self, shape: tuple[int, ...], threads: int | None = None) -> None:
        """Starts no thread yet.

        Args:
          shape: height and width of the image.
          threads: how many; None: `default_threads()`. There are no more than blocks.
        """
        num_blocks = math.prod(-(-length // BLOCK_PX) for length in shape[:2])
        self._threads = max(1, min(threads or default_threads(), num_blocks))
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> "BlockPool":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the threads; blocks that have not begun are left out."""
        self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[T], R], entries: Iterable[T]) -> Iterator[R]:
        """Yields the results of a function in order, while the threads work on the next blocks."""
        if self._threads == 1:
            return map(work, entries)
        return map_ahead(self._pool, work, entries, ahead=self._threads)


def measured(block: Block, maps: np.ndarray, image: ImageLike) -> Table:
    """Measures the nuclei of a block, with positions in the whole image."""
    (height, width), (top, left) = maps.shape[:2], (block.window[0].start, block.window[1].start)
    probs = np.asarray(maps[block.window][..., 0])
    table = measure(block.labels, np.asarray(image[block.window]), probs, context=block.context)
    table["label"] = table["label"] + block.num_before
    for center, offset, extent in (("row", top, "top"), ("column", left, "left")):
        table[center] = table[center] + offset
        table[extent] = table[extent] + offset
    table["touches_border"] = (
        (table["top"] == 0)
        | (table["left"] == 0)
        | (table["top"] + table["height"] == height)
        | (table["left"] + table["width"] == width)
    ).astype(np.int64)
    return table


def joined(tables: Sequence[Table]) -> Table:
    """Joins the tables of all blocks, in the order of the labels."""
    table = {name: np.concatenate([own[name] for own in tables]) for name in tables[0]}
    order = np.argsort(table["label"], kind="stable")
    table = {name: values[order] for name, values in table.items()}
    table["nearest_px"] = nearest_distances(np.stack([table["row"], table["column"]], axis=1))
    return table


def label_table(
    labels: np.ndarray, maps: np.ndarray, image: ImageLike, owners: np.ndarray, *, threads: int | None = None
) -> Table:
    """Measures the nuclei of a label map 1..n block by block.

    Args:
      labels: label map.
      maps: probabilities, the mask first; may be memory-mapped.
      image: uint8 RGB of the same height and width.
      owners: row and column [n, 2] of a point by which each nucleus belongs to a block; near the nucleus.
      threads: as of `BlockPool`.
    """

    def table_of(place: Place) -> Table:
        start, end, window = place
        own = 1 + np.flatnonzero((owners >= start).all(axis=1) & (owners < end).all(axis=1))
        context = np.asarray(labels[window])
        block = Block(window, np.where(np.isin(context, own), context, 0), context, 0)
        return measured(block, maps, image)

    with BlockPool(labels.shape, threads) as pool:
        return joined(list(pool.map(table_of, windows((labels.shape[0], labels.shape[1])))))
