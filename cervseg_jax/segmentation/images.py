"""Images as the segmentation takes them: arrays, files and slides."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np

from cervseg_jax.choices import BitDepth
from cervseg_jax.data.decode import RawImage, bits_used, read_image, rgb_of
from cervseg_jax.data.slide_dicom import DICOM_SUFFIX
from cervseg_jax.data.slide_tiff import SCANNER_SUFFIXES, TIFF_SUFFIXES
from cervseg_jax.data.slides import Slide, is_slide
from cervseg_jax.data.tiff_decode import Pixels
from cervseg_jax.errors import DataError
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cached import PIECE_BYTES, local_file


@runtime_checkable
class ImageLike(Protocol):
    """An image whose windows can be read: a numpy array, or a slide on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and 3."""
        ...

    def __getitem__(self, window: tuple[slice, slice], /) -> np.ndarray:
        """Returns uint8 RGB of a window within the image."""
        ...


ImageSource = np.ndarray | str | os.PathLike[str]
"""What a user passes as one image."""


def is_single_image(images: ImageSource | Iterable[ImageSource]) -> TypeGuard[ImageSource]:
    """Whether an argument is one image and not an iterable of images."""
    return isinstance(images, (str, os.PathLike)) or hasattr(images, "__array__")


def open_image(
    path: Path,
    *,
    is_tiled: bool,
    bit_depth: BitDepth = "auto",
    on_narrow: Callable[[int], None] = lambda bits: None,
) -> ImageLike:
    """Reads an image whole, or opens it as a slide.

    Args:
      path: the file.
      is_tiled: whether the image is to be predicted in tiles, as slides must be.
      bit_depth: bits that the values of a 16-bit file have.
      on_narrow: called with the bits that the values use if a 16-bit file is read whole and uses fewer than 16.

    Returns:
      uint8 RGB [h, w, 3], or a slide.

    Raises:
      DataError: if the file cannot be read, or is a slide and would have to be resized.
    """
    local = local_file(path) if path.suffix.lower() in SCANNER_SUFFIXES | {DICOM_SUFFIX} or _is_large(path) else path
    if not is_slide(local):
        return read_image(path, bit_depth=bit_depth, on_narrow=on_narrow)
    if not is_tiled:
        raise DataError(
            f"{path}: is a slide (several pages, BigTIFF or very large), which is not resized; add --tiled, or "
            "infer.tiled={} to the config"
        )
    try:
        slide = Slide(local, bit_depth=bit_depth)
    except DataError as error:
        raise DataError(str(error).replace(str(local), str(path))) from None
    slide.path = path  # for messages
    return slide


def _is_large(path: Path) -> bool:
    return isinstance(path, Address) and path.suffix.lower() in TIFF_SUFFIXES and path.stat().st_size > PIECE_BYTES


def plane_of(image: ImageLike) -> str:
    """Returns which plane of a stack was read, such as "3 of 5"; "" for images that are none."""
    return getattr(image, "plane", "")


def close_image(image: ImageLike) -> None:
    """Closes the file of a slide; does nothing for an array."""
    close: Any = getattr(image, "close", None)
    if close is not None:
        close()


def image_from_array(array: Any, *, name: str, bit_depth: BitDepth = "auto") -> np.ndarray:
    """Checks an array and converts it to 8-bit RGB.

    Args:
      array: uint8 or uint16; [h, w], or [h, w, c] with 1 (gray), 3 (RGB) or 4 (RGBA) channels. 16-bit values are
        scaled to 8 bits as those of files, transparency is laid on white.
      name: what messages call the image.
      bit_depth: bits that 16-bit values have: 12 scales 0..4095 to 0..255; "auto": the least that holds them.

    Returns:
      uint8 [h, w, 3].

    Raises:
      DataError: for another shape or type.

    Example:
      >>> image_from_array(np.array([[0, 65535]], np.uint16), name="a")[0].tolist()
      [[0, 0, 0], [255, 255, 255]]
    """
    pixels = np.asarray(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise DataError(
            f"{name}: has the shape {list(pixels.shape)}; [height, width], or [height, width, channels] with 1, 3 or 4 "
            "channels is needed; pass several images as a list"
        )
    if not pixels.size:
        raise DataError(f"{name}: has no pixels (shape {list(pixels.shape)})")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{name}: has {pixels.dtype} pixels; 8-bit or 16-bit is needed (for values in [0, 1]: "
            "(255 * image).round().astype('uint8'))"
        )
    bgr = pixels if pixels.ndim == 2 else np.concatenate([pixels[:, :, 2::-1], pixels[:, :, 3:]], axis=2)
    bits = None if pixels.dtype == np.uint8 else bits_used(pixels if pixels.ndim == 2 else pixels[:, :, :3])
    return rgb_of(RawImage(Pixels(bgr, False), bits), source=Path(name), bit_depth=bit_depth)
