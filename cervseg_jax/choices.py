"""Values that config keys and command-line options both accept; free of heavy imports, so that `--help` stays quick."""

from typing import Literal

MaskRule = Literal["half_range", "any_nonzero", "value_1"]
"""Which values of a mask with more than two levels are nucleus, see `decode_mask`."""

Padding = Literal["none", "square", "square_reference"]
"""`square` centers the image on the median color of its border, `square_reference` on its pixel (2, 2)."""

OnBadFile = Literal["fail", "skip"]
"""What becomes of files that cannot be used: the command ends, or they are left out."""

NearDuplicates = Literal["together", "apart"]
"""Whether images that look alike count as one source when a dataset is split."""

Crowd = Literal["drop", "keep"]
"""Whether COCO entries with `iscrowd` are left out, or each is kept as one nucleus."""

AnnotationKind = Literal["labelme", "geojson", "coco", "instances", "labels", "masks"]
"""Kinds of annotations, named after the folders that hold them."""

Outlines = Literal["auto", "exact", "pixel_centers"]
"""Whether coordinates are positions in the image, or name pixels on the border (`from_pixel_centers`); "auto": as they
look in most of a file's outlines (`follows_pixel_centers`)."""

RENAMED_OUTLINES: dict[str, Outlines] = {"drawn": "exact", "traced": "pixel_centers"}
"""Names of earlier releases."""

SceneKind = Literal["clusters", "smear", "groups"]
"""What synthetic images show: clusters of overlapping nuclei, single cells of several kinds among debris, or
hyperchromatic crowded groups."""

BitDepth = Literal["auto", 8, 10, 12, 14, 16]
"""Bits that the camera used in 16-bit files; "auto": as few of these as hold the values."""

MPP_RANGE = (1e-3, 1e3)
"""Accepted micrometers per pixel; areas at others overflow."""
