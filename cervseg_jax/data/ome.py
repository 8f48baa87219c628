"""What OME metadata say about pixels: size, significant bits, and whether channels are the colors of one picture."""

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

MICROMETERS = {
    "m": 1e6,
    "meter": 1e6,
    "cm": 1e4,
    "centimeter": 1e4,
    "mm": 1e3,
    "millimeter": 1e3,
    "um": 1.0,
    "\u00b5m": 1.0,
    "\u03bcm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "inch": 25400.0,
    "in": 25400.0,
}
"""Units of length in OME-XML, OME-Zarr and ImageJ."""
_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
_COLOR_NAMES = (("red", "r"), ("green", "g"), ("blue", "b"))
_GENERIC_NAME = re.compile(r"(channel)?[\s:_-]*\d*|ch\d*|c\d*", re.IGNORECASE)
"""Names that writers give to channels without one."""


class Channel(NamedTuple):
    """A channel as the metadata describe it."""

    name: str = ""
    color: tuple[int, int, int] | None = None
    """RGB in which viewers show it."""


class OmePixels(NamedTuple):
    """The first picture in OME-XML."""

    attributes: dict[str, str]
    channels: list[Channel]

    @property
    def significant_bits(self) -> int | None:
        """Bits that the values use; None if that is not said."""
        text = self.attributes.get("SignificantBits", "")
        return int(text) if text.isdecimal() and int(text) > 0 else None


def read_ome_xml(text: str) -> OmePixels | None:
    """Returns the first picture that OME-XML describes; None if the text is something else."""
    found = re.search(r"<(?:\w+:)?Pixels\b([^>]*)>(.*?)(?:</(?:\w+:)?Pixels>|\Z)", text, re.DOTALL)
    if found is None:
        return None
    described = (_attributes(tag) for tag in re.findall(r"<(?:\w+:)?Channel\b([^>]*)>", found[2]))
    channels = [Channel(one.get("Name", ""), _color_of_integer(one.get("Color", ""))) for one in described]
    return OmePixels(_attributes(found[1]), channels)


def are_colors(channels: Sequence[Channel]) -> bool:
    """Whether three channels are red, green and blue of one picture, and not separate stains.

    They are if their names say so. Without names of their own, they are if the metadata color them so, or not at all.

    Example:
      >>> are_colors([Channel("DAPI"), Channel("FITC"), Channel("Cy5")]), are_colors([Channel()] * 3)
      (False, True)
    """
    if len(channels) != 3:
        return False
    if all(channel.name.strip().lower() in names for channel, names in zip(channels, _COLOR_NAMES, strict=True)):
        return True
    if not all(_GENERIC_NAME.fullmatch(channel.name.strip()) for channel in channels):
        return False
    colors = [channel.color for channel in channels]
    return colors == [None] * 3 or colors == list(_COLORS)


def describe_channels(channels: Sequence[Channel]) -> str:
    """Returns number and names of channels, such as "2 channels (DAPI, FITC)"."""
    names = [channel.name.strip() for channel in channels]
    shown = f" ({', '.join(name or '?' for name in names)})" if any(names) else ""
    return f"{len(channels)} channels{shown}"


def color_of_hex(text: str) -> tuple[int, int, int] | None:
    """Returns the RGB of six hexadecimal digits; None for another text."""
    if not re.fullmatch(r"[0-9a-fA-F]{6}", text):
        return None
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)


def _color_of_integer(text: str) -> tuple[int, int, int] | None:
    """Returns the RGB of OME-XML's signed 32-bit RGBA."""
    if not re.fullmatch(r"-?\d{1,10}", text) or text == "-1":  # -1 is white, the default of the schema
        return None
    value = int(text) & 0xFFFFFFFF
    return value >> 24, value >> 16 & 255, value >> 8 & 255


def _attributes(tag: str) -> dict[str, str]:
    return {name: html.unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', tag)}
