"""What the readers of slide formats have in common."""

from typing import NamedTuple, Protocol

import numpy as np

OVERVIEW_PX = 2048
"""Maximum side of the region from which the bit depth of a slide is estimated."""


class SlideInfo(NamedTuple):
    """Size and meaning of the pixels of a slide."""

    height: int
    width: int
    num_channels: int
    """1 (gray), 3 (RGB) or 4 (RGBA)."""
    dtype: np.dtype
    bits: int | None = None
    """Bits that 16-bit values use, as the file states them; None: it does not, or says 16."""
    plane: str = ""
    """Which plane of a stack is read, such as "3 of 5"; "" if it is none."""
    is_inverted: bool = False
    """Whether white is zero."""
    is_premultiplied: bool = False
    """Whether the colors are already multiplied by the opacity."""


class SlideSource(Protocol):
    """A slide in some format. Its constructor raises `SlideError` for what is not read."""

    info: SlideInfo

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Returns a window of the finest level, [h, w] or [h, w, channels], with the type of the file."""
        ...

    def overview(self) -> np.ndarray:
        """Returns the middle of the coarsest level, at most `OVERVIEW_PX` wide and high."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


class SlideError(ValueError):
    """Raised for slides that are not read; the message lacks the file name."""


def middle_plane(count: int) -> tuple[int, str]:
    """Returns the index of the plane that is read of a stack, and its description for `SlideInfo.plane`.

    Example:
      >>> middle_plane(5), middle_plane(2), middle_plane(1)
      ((2, '3 of 5'), (1, '2 of 2'), (0, ''))
    """
    index = count // 2
    return index, f"{index + 1} of {count}" if count > 1 else ""


def middle(height: int, width: int) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the window in the middle of a level, see `SlideSource.overview`."""
    rows, columns = min(height, OVERVIEW_PX), min(width, OVERVIEW_PX)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def stated_bits(dtype: np.dtype, bits: int | None) -> int | None:
    """Returns the bits that a file states for its values, if that says more than their type does."""
    return bits if bits is not None and dtype == np.uint16 and 8 <= bits < 16 else None
