"""Values that config keys and command-line options both accept; free of heavy imports, so that `--help` stays quick."""

from typing import Literal

MaskRule = Literal["half_range", "any_nonzero"]
"""Which values of a mask with more than two levels are nucleus: from half of the range, or all but zero."""

OnBadFile = Literal["fail", "skip"]
"""What becomes of files that cannot be used: the command ends, or they are left out."""

BitDepth = Literal["auto", 8, 10, 12, 14, 16]
"""Bits that the camera used in 16-bit files; "auto": as few of these as hold the values."""
