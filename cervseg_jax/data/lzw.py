"""Size of decompressed LZW data of TIFF files, computed without decompressing them."""

import numpy as np

CLEAR, END, FIRST_ENTRY = 256, 257, 258
MAX_CODES = 5119 - FIRST_ENTRY
"""Maximum number of codes between two resets; writers reset at 4094 entries, readers accept somewhat more."""

# The width of a code depends only on its position after the reset: each code but the first adds one table entry.
_ENTRIES = np.arange(FIRST_ENTRY - 1, FIRST_ENTRY - 1 + MAX_CODES, dtype=np.int32)
_WIDTHS = 9 + (_ENTRIES > 510).astype(np.int32) + (_ENTRIES > 1022) + (_ENTRIES > 2046)
_STARTS = np.concatenate([[0], np.cumsum(_WIDTHS)]).astype(np.int32)
_MASKS = (1 << _WIDTHS) - 1


def expanded_size_lzw(packed: bytes) -> int:
    """Returns the number of bytes of a decompressed strip.

    Args:
      packed: LZW codes, most significant bit first.

    Returns:
      The size; -1 if a code is invalid, or the codes are in the style before TIFF 6.

    Example:
      >>> expanded_size_lzw(bytes([0x80, 0x0E, 0x10, 0x20, 0x20]))  # reset, 112, 258, end
      3
    """
    if packed[:1] == b"\0" and len(packed) > 1 and packed[1] & 1:
        return -1  # least significant bit first
    bits = np.frombuffer(packed + bytes(4), np.uint8).astype(np.int32)
    position, end, size = 0, 8 * len(packed), 0
    while position + 9 <= end:
        codes = _codes_at(bits, position, end)
        stops = np.flatnonzero((codes == CLEAR) | (codes == END))
        num_codes = int(stops[0]) if len(stops) else len(codes)
        expanded = _sizes(codes[:num_codes])
        if expanded < 0:
            return -1
        size += expanded
        if num_codes == len(codes):
            return size if num_codes < MAX_CODES else -1
        if codes[num_codes] == END:
            return size
        position += int(_STARTS[num_codes + 1])
    return size


def _codes_at(bits: np.ndarray, position: int, end: int) -> np.ndarray:
    """Unpacks the codes from a bit position to the end, as if there was no further reset."""
    num_codes = int(np.searchsorted(_STARTS, end - position, side="right")) - 1
    starts = _STARTS[:num_codes] + (position & 7)
    near = bits[position >> 3 : (position >> 3) + (int(starts[-1]) >> 3) + 3]
    windows = (near[:-2] << 16) | (near[1:-1] << 8) | near[2:]
    return (windows[starts >> 3] >> (24 - (starts & 7) - _WIDTHS[:num_codes])) & _MASKS[:num_codes]


def _sizes(codes: np.ndarray) -> int:
    """Returns the summed lengths of the codes' byte strings; -1 if a code refers to an entry that is not defined yet.

    Table entry k is the string of code k with one more byte, so the length of a code's string is one more than its
    number of hops to a plain byte.
    """
    if (codes > _ENTRIES[: len(codes)]).any():
        return -1
    none = len(codes)
    target = np.append(np.where(codes >= FIRST_ENTRY, codes - FIRST_ENTRY, none), none)
    hops = (target != none).astype(np.int32)
    while (moved := hops[target]).any():
        hops += moved
        target = target[target]
    return len(codes) + int(hops.sum())
