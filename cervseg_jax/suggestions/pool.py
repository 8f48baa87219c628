"""The images of a pool, and crops of large ones, as candidates for annotation."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.curation.geometry import Geometry
from cervseg_jax.curation.membership import hashes_of
from cervseg_jax.data.decode import decode_raw, read_bytes
from cervseg_jax.data.headers import read_header
from cervseg_jax.data.slides import is_slide
from cervseg_jax.errors import DataError
from cervseg_jax.files import png_bytes, sha256_of
from cervseg_jax.segmentation.images import ImageLike, open_image
from cervseg_jax.segmentation.jobs import Job
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter
from cervseg_jax.segmentation.uncertainty import uncertainty
from cervseg_jax.suggestions.embed import Embed

COPIED_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
"""Kinds of files that LabelMe shows as they are; other ones are written as PNG."""
LARGE = 2
"""Images of more than this many crops on a side are cut."""


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Returns rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Candidate(NamedTuple):
    """An image or crop that may be annotated next."""

    job: Job
    """The file."""
    window: Window
    """The part of it."""
    size: tuple[int, int]
    """Height and width of the whole image."""
    source_sha256: str
    """SHA-256 of the file."""
    digests: frozenset[str]
    """SHA-256 of the file, and of what would be written."""
    hashes: np.ndarray
    """Perceptual hashes, uint64 [k, 8]."""
    uncertainty: float
    """Bits per pixel near nuclei, see `segmentation.uncertainty`."""
    embedding: np.ndarray
    """Features, float32 [d]."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole image."""
        return self.window == (0, 0, *self.size)

    @property
    def stem(self) -> str:
        """Returns its name in the folder: that of the image, and the position of a crop."""
        return self.job.name if self.is_whole else f"{self.job.name}_y{self.window.top}_x{self.window.left}"


class Failure(NamedTuple):
    """A file that cannot be used."""

    path: Path
    reason: str


def windows_for(shape: tuple[int, ...], crop_px: int) -> list[Window]:
    """Returns the parts of an image that are candidates: all of it, or crops where it is large.

    Crops do not overlap; they are spread evenly, with gaps of less than a crop in all.

    Args:
      shape: height and width of the image.
      crop_px: side of a crop; images of up to `LARGE` crops on a side stay whole.

    Example:
      >>> windows_for((600, 400), 512), len(windows_for((2000, 3000), 512))
      ([Window(top=0, left=0, height=600, width=400)], 15)
    """
    height, width = shape[:2]
    if max(height, width) <= LARGE * crop_px:
        return [Window(0, 0, height, width)]
    rows, columns = min(height, crop_px), min(width, crop_px)
    tops, lefts = _starts(height, rows), _starts(width, columns)
    return [Window(top, left, rows, columns) for top in tops for left in lefts]


def _starts(length: int, crop: int) -> list[int]:
    count = length // crop
    return [0] if count == 1 else [round(index * (length - crop) / (count - 1)) for index in range(count)]


def scan_pool(
    segmenter: Segmenter,
    embed: Embed,
    jobs: Sequence[Job],
    *,
    crop_px: int,
    geometry: Geometry,
    pixel_sizes: dict[Job, float],
    on_progress: Callable[[], object],
) -> tuple[list[Candidate], list[Failure]]:
    """Predicts every image, and describes it and its crops.

    Args:
      segmenter: the network.
      embed: its features, see `make_embed`.
      jobs: the files.
      crop_px: see `windows_for`.
      geometry: of the dataset that the images may be added to.
      pixel_sizes: micrometers per pixel, where files state them.
      on_progress: called after each file.

    Returns:
      Candidates in the order of the files, and files that cannot be read or predicted.
    """
    failures: list[Failure] = []
    candidates: list[Candidate] = []

    def fail(job: Job, error: Exception) -> None:
        failures.append(Failure(job.path, str(error) or type(error).__name__))
        on_progress()

    opened = open_images(segmenter, jobs, fail)
    for job, result in segmenter.predict(opened, mpp_of=pixel_sizes.get, on_failure=fail):
        digest = _file_digest(job.path)
        for window in windows_for(result.image.shape, crop_px):
            pixels = np.ascontiguousarray(result.image[window.slices])
            size = (result.image.shape[0], result.image.shape[1])
            candidate = Candidate(
                job,
                window,
                size,
                digest,
                frozenset({digest}),
                hashes_of(pixels, geometry),
                uncertainty(np.asarray(result.maps[window.slices])),
                embed(pixels, embedding_factor(segmenter, result)),
            )
            if not (candidate.is_whole and is_shown_by_labelme(job.path)):
                candidate = candidate._replace(digests=frozenset({digest, sha256_of(png_bytes(pixels))}))
            candidates.append(candidate)
        result.close()
        on_progress()
    return candidates, failures


def open_images(
    segmenter: Segmenter, jobs: Sequence[Job], on_failure: Callable[[Job, Exception], None]
) -> Iterator[tuple[Job, ImageLike]]:
    """Yields the images that can be read, and reports the others."""
    for job in jobs:
        try:
            image = open_image(job.path, is_tiled=segmenter.is_tiled, bit_depth=segmenter.bit_depth)
        except (DataError, OSError, MemoryError) as error:
            on_failure(job, error)
            continue
        yield job, image


def embedding_factor(segmenter: Segmenter, result: Result) -> float | None:
    """Returns the factor of an image's size at which its features are computed: that of its prediction."""
    if result.scale is not None:
        return result.scale.factor
    if segmenter.is_tiled:
        return 1.0
    sides = zip(segmenter.predictor.image_size, result.image.shape[:2], strict=True)
    return min(network / own for network, own in sides) if max(result.image.shape[:2]) > MAX_RESIZED_PX else None


MAX_RESIZED_PX = 2048
"""Larger images are crops at the scale of the whole image, where whole images are resized."""


def is_shown_by_labelme(path: Path) -> bool:
    """Whether LabelMe shows a file upright and with its own colors, so that it can be copied as it is."""
    if path.suffix.lower() not in COPIED_SUFFIXES or is_slide(path):
        return False
    data = read_bytes(path)
    return read_header(data).orientation == 1 and decode_raw(data, source=path).bits is None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
