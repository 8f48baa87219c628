"""Augmentations of the reference implementation, computed exactly as it does, known defects included.

For comparison only. The defects kept here are its border rules, the rotation about (width / 2, height / 2), bulges that
accumulate from center to center, and an elastic field that is smoothed across color channels. Images are BGR as OpenCV
reads them, [h, w, 3], because the elastic field differs between channels; a mask of three equal channels may be given
as [h, w], with the same result in a third of the time.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from scipy import ndimage

CENTERS = ((0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.7, 0.7))
RADIUS, AMOUNT = 0.3, 0.3
ALPHA, SIGMA, ELASTIC_SEED = 1300, 8, 137
DISTORTIONS, DISTORTION_SIGMA = (0.02, 0.03), 40

Color = tuple[float, ...]
Maps = tuple[np.ndarray, np.ndarray]
"""Positions to fetch from, as `cv2.remap` takes them."""


def rotate(picture: np.ndarray, angle: float, *, border: Color) -> np.ndarray:
    """Rotates counter-clockwise about (w / 2, h / 2), half a pixel off the true center."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    return _warp(picture, matrix, border)


def shear(picture: np.ndarray, amount: float, *, border: Color) -> np.ndarray:
    """Shears vertically about the center column."""
    matrix = np.array([[1, 0, 0], [amount, 1, -amount * picture.shape[1] / 2]], np.float32)
    return _warp(picture, matrix, border)


def shrink(picture: np.ndarray, ratio: float, *, color: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Shrinks by nearest neighbor and puts the result on a canvas of `color(shrunken)`."""
    height, width = picture.shape[:2]
    small = cv2.resize(picture, (int(width * ratio), int(height * ratio)), interpolation=cv2.INTER_NEAREST)
    canvas = np.empty((height, width, *small.shape[2:]), np.uint8)
    canvas[:] = color(small)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def elastic(picture: np.ndarray, maps: Sequence[Maps]) -> np.ndarray:
    """Displaces each channel by its own field (see `elastic_maps`), bilinearly, edges repeated."""
    warped = [
        cv2.remap(channel, *of_channel, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for channel, of_channel in zip(_channels(picture, len(maps)), maps, strict=True)
    ]
    return cv2.merge(warped)


def _channels(picture: np.ndarray, count: int) -> Sequence[np.ndarray]:
    return [picture] * count if picture.ndim == 2 else cv2.split(picture)


def elastic_fields(shapes: tuple[tuple[int, int, int], ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws (dx, dy) for pictures of the given shapes, one after the other from one stream of seed 137."""
    random = np.random.RandomState(ELASTIC_SEED)  # noqa: NPY002 (the reference's generator)
    return [
        tuple(ndimage.gaussian_filter(random.rand(*shape) * 2 - 1, SIGMA, mode="constant") * ALPHA for _ in range(2))
        for shape in shapes
    ]  # pyright: ignore[reportReturnType]


def elastic_maps(field: tuple[np.ndarray, np.ndarray]) -> tuple[Maps, ...]:
    """Positions for each channel of a field (dx, dy), each [h, w, c]; the reference does not round these."""
    dx, dy = (np.moveaxis(part, 2, 0).astype(np.float32) for part in field)
    rows, columns = np.indices(field[0].shape[:2], np.float32)
    return tuple(zip(columns + dx, rows + dy, strict=True))


@functools.lru_cache(maxsize=2)
def _offline_maps(height: int, width: int) -> tuple[Maps, ...]:
    return elastic_maps(elastic_fields(((height, width, 3),))[0])


def distort(picture: np.ndarray, amount: float, noise: np.ndarray) -> np.ndarray:
    """Warps along the gradient of smoothed white noise; black outside.

    The reference smooths an image of white noise by a Gaussian of sigma 40 with mirrored edges. In the matching cosine
    basis, the coefficients are white noise too, and the Gaussian keeps only the first few dozen.

    Args:
      picture: [h, w] or [h, w, 3].
      amount: largest displacement along each axis as a share of the larger side, in whole pixels.
      noise: coefficients of the noise's orthonormal cosine transform, lowest first, `noise_shape(max(h, w))` of them.

    Returns:
      The warped picture.
    """
    height, width = picture.shape[:2]
    side = max(height, width)
    cosines, slopes = _smooth_basis(side)
    given = noise.astype(np.float32)
    # cv2.gemm, as the matrix products of numpy start threads of their own, and this runs in one of many.
    dx, dy = (_product(_product(left, given), right.T) for left, right in ((cosines, slopes), (slopes, cosines)))
    rows, columns = np.arange(side, dtype=np.float32)[:, None], np.arange(side, dtype=np.float32)
    maps = _fixed(columns - dx * (int(side * amount) / dx.max()), rows - dy * (int(side * amount) / dy.max()))
    return cv2.resize(cv2.remap(cv2.resize(picture, (side, side)), *maps, cv2.INTER_LINEAR), (width, height))


def noise_shape(side: int) -> tuple[int, int]:
    """Returns the number of cosines along both axes that a Gaussian of sigma 40 keeps in `side` pixels."""
    count = min(side, max(2, int(6 * side / (np.pi * DISTORTION_SIGMA)) + 1))
    return count, count


@functools.lru_cache(maxsize=2)
def _smooth_basis(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines [side, count], weighted by the square root of the Gaussian's response, and their slopes."""
    frequency = np.pi * np.arange(noise_shape(side)[0]) / side
    weight = np.sqrt(np.where(frequency == 0, 1.0, 2.0) / side) * np.exp(-0.5 * (frequency * DISTORTION_SIGMA) ** 2)
    angle = (np.arange(side)[:, None] + 0.5) * frequency
    return (np.cos(angle) * weight).astype(np.float32), (-np.sin(angle) * frequency * weight).astype(np.float32)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return cv2.gemm(left, np.ascontiguousarray(right), 1.0, None, 0.0)  # pyright: ignore[reportCallIssue, reportArgumentType]


def bulge(picture: np.ndarray, center: tuple[float, float], *, radius: float, amount: float) -> np.ndarray:
    """Warps a disc radially: a positive amount magnifies its center (barrel), a negative one shrinks it."""
    maps = _bulge_maps(picture.shape[0], picture.shape[1], center, radius, amount)
    return cv2.remap(picture, *maps, cv2.INTER_LINEAR)


@functools.lru_cache(maxsize=32)
def _bulge_maps(height: int, width: int, center: tuple[float, float], radius: float, amount: float) -> Maps:
    x0, y0, reach = width * center[0], height * center[1], width * radius
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    dx, dy = columns - x0, rows - y0
    distance = np.hypot(dx, dy)
    inside = (distance < reach) & (distance > 0)
    factor = np.ones_like(distance)
    factor[inside] = np.sin(np.pi * distance[inside] / reach / 2) ** amount
    within = distance < reach
    return _fixed(np.where(within, factor * dx + x0, columns), np.where(within, factor * dy + y0, rows))


def bulges(picture: np.ndarray, *, radius: float, amount: float) -> Iterator[np.ndarray]:
    """Yields the picture after one, two ... five bulges, each applied to the result of the one before."""
    for center in CENTERS:
        picture = bulge(picture, center, radius=radius, amount=amount)
        yield picture


def sharpen(picture: np.ndarray, k: float) -> np.ndarray:
    """Convolves with a 3x3 kernel of center 1 + 8k and -k around."""
    kernel = np.full((3, 3), -k)
    kernel[1, 1] = 1 + 8 * k
    return cv2.filter2D(picture, -1, kernel)


def brighten(picture: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Scales and shifts, saturating; the reference does it to masks as well."""
    return cv2.convertScaleAbs(picture, alpha=alpha, beta=beta)


def offline_variants(
    picture: np.ndarray, *, is_mask: bool, random: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Makes the 20 variants of the published dataset.

    Args:
      picture: uint8 [s, s, 3], BGR, or a mask [s, s].
      is_mask: masks are rotated onto black, images onto their pixel (2, 2).
      random: source of the distortions' noise. The reference draws image and mask from an unseeded generator at
        different times, so that the two do not match; pass different generators to repeat that.

    Yields:
      Prefix of the file name and picture; the first is the picture itself.
    """
    yield "", picture
    yield "hflipped_", picture[:, ::-1]
    yield "vflipped_", picture[::-1]
    border = (0.0, 0.0, 0.0) if is_mask else tuple(float(value) for value in picture[2, 2])
    for angle in (90, 180, 270):
        yield f"rotated_{angle}_", rotate(picture, angle, border=border)
    shape = (picture.shape[0], picture.shape[1])
    yield f"deformed_alpha_{ALPHA}_sigmoid_{float(SIGMA)}_", elastic(picture, _offline_maps(*shape))
    for amount in DISTORTIONS:
        noise = random.standard_normal(noise_shape(max(shape)))
        yield f"distorted_{amount}_rsigma0.5_sigma{DISTORTION_SIGMA}_", distort(picture, amount, noise)
    yield "shrinked_0_8_", shrink(picture, 0.8, color=lambda small: small[2, 2])
    for prefix, amount in (("barrdistorted", AMOUNT), ("pincdistorted", -AMOUNT)):
        for number, warped in enumerate(bulges(picture, radius=RADIUS, amount=amount), start=101):
            yield f"{prefix}_{number}_{RADIUS}_{amount}_", warped


VARIANT_PREFIXES = (
    "hflipped_",
    "vflipped_",
    "rotated_",
    "deformed_",
    "distorted_",
    "shrinked_",
    "sheared_",
    "barrdistorted_",
    "pincdistorted_",
    "sharpened_",
    "brightened_",
)
"""Prefixes of file names that the reference gives to variants."""


def _fixed(map_x: np.ndarray, map_y: np.ndarray) -> Maps:
    """Rounds positions to 1/32 pixel, as OpenCV 4 does before it interpolates."""
    maps = cv2.convertMaps(map_x.astype(np.float32), map_y.astype(np.float32), cv2.CV_16SC2)
    return maps[0], maps[1]


def _warp(picture: np.ndarray, matrix: np.ndarray, border: Color) -> np.ndarray:
    """Affine warp in the fixed-point arithmetic of OpenCV 4; version 5 interpolates between finer positions."""
    maps = _affine_maps(picture.shape[0], picture.shape[1], tuple(matrix.astype(np.float64).ravel().tolist()))
    return cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderValue=border)


@functools.lru_cache(maxsize=32)
def _affine_maps(height: int, width: int, matrix: tuple[float, ...]) -> Maps:
    inverse = cv2.invertAffineTransform(np.array(matrix).reshape(2, 3))
    columns, rows = np.arange(width), np.arange(height)[:, None]
    map_x, map_y = (
        (np.rint(a * columns * 1024).astype(int) + np.rint((b * rows + c) * 1024).astype(int) + 16 >> 5) / 32
        for a, b, c in inverse
    )
    return _fixed(map_x, map_y)
