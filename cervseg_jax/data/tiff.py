"""Structure of TIFF files: tags, names of compressions, and completeness of every strip and tile.

OpenCV leaves strips black that libtiff cannot decode, and reports success. Each strip is therefore checked first:
whether libtiff supports its compression, and whether its data decompress to the size that follows from the tags.
"""

import struct
import zlib
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

from cervseg_jax.data.jpeg import find_jpeg_damage, jpeg_size
from cervseg_jax.data.lzw import expanded_size_lzw

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES = 266, 270, 273, 274, 277
ROWS_PER_STRIP, STRIP_SIZES = 278, 279
MAX_VALUE, X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT = 281, 282, 283, 284, 296
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES, EXTRA_SAMPLES, SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339

NO_COMPRESSION, LZW, JPEG, ADOBE_DEFLATE, PACKBITS, DEFLATE = 1, 5, 7, 8, 32773, 32946
FAX = frozenset({2, 3, 4})
OPENCV_COMPRESSIONS = FAX | {NO_COMPRESSION, LZW, JPEG, ADOBE_DEFLATE, PACKBITS, DEFLATE}
COMPRESSION_NAMES = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    32766: "NeXT run lengths",
    32809: "ThunderScan",
    32895: "raster padding",
    32908: "Pixar film",
    32909: "Pixar log",
    32947: "Kodak DCS",
    33003: "JPEG 2000 (Aperio, YCbCr)",
    33004: "JPEG 2000 (Aperio, lossy)",
    33005: "JPEG 2000 (Aperio, RGB)",
    33007: "lossy JPEG",
    34661: "JBIG",
    34676: "SGI log luminance",
    34677: "SGI log luminance, 24 bits",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG (DNG)",
    34925: "LZMA",
    34926: "Zstandard",
    34927: "WebP",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR (NDPI)",
    48124: "JETRAW",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL (DNG)",
}

_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q"}
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_ASCII, _RATIONAL = 2, 5
_MAX_TEXT = 2**20
MAX_ENTRIES = 4096
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files."""


class Directory(NamedTuple):
    """The tags of one picture in a TIFF file."""

    order: str
    """Byte order, "<" or ">"."""
    values: dict[int, tuple[int, ...]]
    """Integers by tag; two per rational number."""
    texts: dict[int, bytes]
    following: int
    """Offset of the next directory, 0 for none."""

    def first(self, tag: int, default: int) -> int:
        """Returns the first value of a tag, or the default."""
        return self.values.get(tag, (default,))[0]


def read_directory(data: bytes | mmap, start: int | None = None) -> Directory:
    """Reads a directory of a TIFF file or EXIF block.

    Args:
      data: the file, at least up to the end of the directory and its values.
      start: offset of the directory; None: of the first one.

    Raises:
      struct.error: if it is truncated.
    """
    order, _, offset, count, entry = _layout(data)
    begin = first_directory(data) if start is None else start
    (entries,) = struct.unpack_from(f"{order}{count}", data, begin)
    directory = Directory(order, {}, {}, 0)
    at = begin + struct.calcsize(count)
    for index in range(min(entries, MAX_ENTRIES)):
        _read_entry(data, at + entry * index, directory, offset)
    (following,) = struct.unpack_from(f"{order}{offset}", data, at + entry * entries)
    return directory._replace(following=following)


def first_directory(data: bytes | mmap) -> int:
    """Returns the offset of a file's first directory.

    Raises:
      struct.error: if the file is truncated.
    """
    order, first, offset, _, _ = _layout(data)
    return struct.unpack_from(f"{order}{offset}", data, first)[0]


def _layout(data: bytes | mmap) -> tuple[str, int, str, str, int]:
    """Returns byte order, place and type of offsets, type of counts, and bytes per entry."""
    order = "<" if data[:2] == b"II" else ">"
    # BigTIFF has wider offsets and counts.
    return (order, 8, "Q", "Q", 20) if data[2:4] in (b"+\0", b"\0+") else (order, 4, "I", "H", 12)


def _read_entry(data: bytes | mmap, at: int, directory: Directory, offset: str) -> None:
    order, inline_bytes = directory.order, struct.calcsize(offset)
    tag, kind, count = struct.unpack_from(f"{order}HH{offset}", data, at)
    if not 0 < count <= len(data):
        return
    code, per_value = ("B", 1) if kind == _ASCII else ("I", 2) if kind == _RATIONAL else (_CODES.get(kind, ""), 1)
    if not code:
        return
    where, num_bytes = at + 4 + inline_bytes, struct.calcsize(code) * per_value * count
    if num_bytes > inline_bytes:
        (where,) = struct.unpack_from(f"{order}{offset}", data, where)
    if kind == _ASCII:
        directory.texts[tag] = bytes(data[where : where + min(count, _MAX_TEXT)]).rstrip(b"\0")
    else:
        directory.values[tag] = struct.unpack_from(f"{order}{per_value * count}{code}", data, where)


class Block(NamedTuple):
    """A strip or tile."""

    offset: int
    num_bytes: int
    expected: tuple[int, int]
    """Smallest and largest accepted number of bytes after decompression."""
    size: tuple[int, int]
    """Width, and smallest accepted number of rows."""


def find_damage(data: bytes, directory: Directory) -> str:
    """Returns a message if strips or tiles are damaged, else "".

    Deflate has a checksum. LZW and PackBits have none: damage that keeps the decompressed size cannot be detected.
    """
    compression = directory.first(COMPRESSION, NO_COMPRESSION)
    blocks = list(_blocks(directory))
    num_expected = _num_blocks(directory)
    if num_expected < 1:
        return "is damaged (its strips or tiles have no size)"
    if len(blocks) < num_expected:
        return f"has {len(blocks)} strips or tiles where its size needs {num_expected}"
    for index, block in enumerate(blocks[:num_expected]):
        if block.offset == 0 or (block.num_bytes == 0 and compression != NO_COMPRESSION):
            return "is damaged (a strip or tile without data)"
        if block.offset + block.num_bytes > len(data):
            return "is cut short"
        packed = data[block.offset : block.offset + block.num_bytes]
        if directory.first(FILL_ORDER, 1) == 2:
            packed = packed.translate(_REVERSED_BITS)
        if not _is_whole(packed, compression, block, data, num_expected):
            return f"is damaged (strip or tile {index + 1} of {num_expected} does not hold what its size needs)"
    return ""


def _is_whole(packed: bytes, compression: int, block: Block, data: bytes, num_blocks: int) -> bool:
    least, largest = block.expected
    if compression == NO_COMPRESSION:
        # The stored size of a single strip is often wrong; libtiff computes it from the tags.
        return block.offset + least <= len(data) and (num_blocks == 1 or block.num_bytes >= least)
    if compression in (ADOBE_DEFLATE, DEFLATE):
        size = _expanded_size_deflate(packed, largest)
    elif compression == PACKBITS:
        size = _expanded_size_packbits(packed, largest)
    elif compression == LZW:
        size = expanded_size_lzw(packed)
    elif compression == JPEG:
        if not packed.startswith(b"\xff\xd8") or b"\xff\xd9" not in packed[-16:] or find_jpeg_damage(packed):
            return False
        width, height = jpeg_size(packed)
        return width == block.size[0] and height >= block.size[1]
    else:
        return True
    return size in (least, largest)


def _expanded_size_deflate(packed: bytes, largest: int) -> int:
    """Returns the decompressed size of a zlib stream; -1 if it is damaged or larger than `largest`."""
    stream = zlib.decompressobj()
    try:
        size = len(stream.decompress(packed, largest + 1))
    except zlib.error:
        return -1
    return size if stream.eof else -1


def _expanded_size_packbits(packed: bytes, largest: int) -> int:
    """Returns the decompressed size of PackBits data; -1 if it is damaged or larger than `largest`."""
    position = size = 0
    end = len(packed)
    while position < end and size < largest:
        count = packed[position]
        if count < 128:
            position += count + 2
            size += count + 1
        else:
            position += 1 if count == 128 else 2
            size += 0 if count == 128 else 257 - count
    return size if end - 1 <= position <= end else -1  # some writers add a byte for an even length


def _geometry(directory: Directory) -> tuple[int, int, int, int]:
    """Returns width and height of a block in pixels, and the number of blocks per row and per column."""
    width, height = directory.first(WIDTH, 0), directory.first(HEIGHT, 0)
    if TILE_OFFSETS in directory.values:
        block_width, block_height = directory.first(TILE_WIDTH, 0), directory.first(TILE_HEIGHT, 0)
    else:
        block_width, block_height = width, min(directory.first(ROWS_PER_STRIP, height), height)
    if block_width < 1 or block_height < 1:
        return block_width, block_height, 0, 0
    return block_width, block_height, -(-width // block_width), -(-height // block_height)


def _num_blocks(directory: Directory) -> int:
    _, _, across, down = _geometry(directory)
    planes = directory.first(SAMPLES, 1) if directory.first(PLANAR, 1) == 2 else 1
    return across * down * planes


def _blocks(directory: Directory) -> Iterator[Block]:
    tiled = TILE_OFFSETS in directory.values
    offsets = directory.values.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())
    sizes = directory.values.get(TILE_SIZES if tiled else STRIP_SIZES, (0,) if len(offsets) == 1 else ())
    width, rows, across, down = _geometry(directory)
    samples = 1 if directory.first(PLANAR, 1) == 2 else directory.first(SAMPLES, 1)
    row_bytes = -(-width * samples * directory.first(BITS, 1) // 8)
    per_plane = max(across * down, 1)
    for index, (offset, size) in enumerate(zip(offsets, sizes, strict=False)):
        is_last = not tiled and index % per_plane == per_plane - 1
        filled = directory.first(HEIGHT, 0) - (down - 1) * rows if is_last else rows
        yield Block(offset, size, (row_bytes * filled, row_bytes * rows), (width, filled))
