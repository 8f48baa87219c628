"""Which images of a call a process does: those of a shard, or its share among processes that started together."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cervseg_jax.data.slides import is_slide
from cervseg_jax.errors import DataError
from cervseg_jax.files import sha256_of
from cervseg_jax.runtime.distributed import broadcast_array
from cervseg_jax.segmentation.jobs import Job

_COMPLETE, _WHOLE, _IN_PARTS = range(3)


@dataclass(frozen=True)
class Shard:
    """One of several disjoint parts of the images, which together are all of them."""

    number: int
    """From 1 to `total`."""
    total: int

    def __str__(self) -> str:
        """Returns the shard as the command line takes it."""
        return f"{self.number}/{self.total}"


def of_shard(jobs: Sequence[Job], shard: Shard | None) -> list[Job]:
    """Returns the images of a shard, in order.

    An image's shard follows from its file name alone, so it stays the same whatever other images there are.

    Args:
      jobs: all images of the call.
      shard: the shard; None: all images.
    """
    return [job for job in jobs if shard is None or _hash(job) % shard.total == shard.number - 1]


def _hash(job: Job) -> int:
    return int(sha256_of(os.fsencode(job.path.name))[:16], 16)


@dataclass(frozen=True)
class Share:
    """What one of several processes does."""

    jobs: list[Job]
    """Images that this process predicts and writes."""
    divided: list[Job]
    """Slides of any process whose tiles all processes predict; those among `jobs` are the last of them."""
    process: int = 0
    """Index of the process."""
    num_processes: int = 1


def divide(jobs: Sequence[Job], todo: Sequence[Job], *, is_tiled: bool, index: int, count: int) -> Share:
    """Divides images over processes as process 0 sees them. Collective if there are several.

    Args:
      jobs: images of the call, the same on all processes.
      todo: those that are not complete; those of process 0 count.
      is_tiled: whether images are predicted in tiles. If there are fewer slides to do than processes, the tiles of
        each slide are divided as well.
      index: index of this process.
      count: number of processes.

    Returns:
      The share of this process.
    """
    if count == 1 or not jobs:
        return Share(list(todo), [], index, count)
    codes = np.full(len(jobs), _COMPLETE, np.int8)
    if index == 0:
        open_jobs = set(todo)
        candidates = (job for job in jobs if is_tiled and job in open_jobs and _is_slide(job))
        slides = list(itertools.islice(candidates, count))
        in_parts = set(slides) if len(slides) < count else set()
        codes[:] = [_IN_PARTS if job in in_parts else _WHOLE if job in open_jobs else _COMPLETE for job in jobs]
    codes = broadcast_array(codes)
    whole, divided = (
        [job for job, code in zip(jobs, codes, strict=True) if code == kind] for kind in (_WHOLE, _IN_PARTS)
    )
    return Share([*whole[index::count], *divided[index::count]], divided, index, count)


def _is_slide(job: Job) -> bool:
    try:
        return is_slide(job.path)
    except DataError:
        return False  # its process reports it
