"""The result for one image: probabilities, and everything that follows from them, computed on first use."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8
from matplotlib.colors import to_rgb

from cervseg_jax.annotations.polygons import Polygon
from cervseg_jax.errors import ConfigError
from cervseg_jax.extents import Extent, extents_of
from cervseg_jax.heads import Head
from cervseg_jax.plots import PREDICTION_COLOR, draw_instance_outlines, tint
from cervseg_jax.segmentation.candidates import Candidates
from cervseg_jax.segmentation.confidence import Confidence, features_of, outline_band
from cervseg_jax.segmentation.images import ImageLike, close_image
from cervseg_jax.segmentation.maps import allocate
from cervseg_jax.segmentation.morphometry import Table, in_micrometers
from cervseg_jax.segmentation.nuclei import Nuclei, find_nuclei, keep_nuclei, label_nuclei
from cervseg_jax.segmentation.postprocess import Postprocessing, make_mask
from cervseg_jax.segmentation.scale import ImageScale
from cervseg_jax.segmentation.uncertainty import uncertainty
from cervseg_jax.storage.address import as_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_OVERLAY_PIXELS = 64_000_000
"""Overlays of larger images are subsampled."""
BAND_ROWS = 1024
"""Rows of a slide that are read at a time."""

Color = tuple[int, int, int]


class OutputStyle(NamedTuple):
    """Settings of the files that are written."""

    mpp: float | None = None
    """Micrometers per pixel; None: measurements in pixels only."""
    colors: tuple[Color, Color] = ((0, 0, 0), (255, 255, 255))
    """RGB of background and nuclei in the output `color`."""


def parse_colors(names: tuple[str, str]) -> tuple[Color, Color]:
    """Returns the RGB of two color names or `#rrggbb`, for `OutputStyle.colors`.

    Raises:
      ConfigError: if a name is unknown.
    """
    try:
        background, nucleus = ([round(255 * share) for share in to_rgb(name)] for name in names)
    except ValueError as error:
        raise ConfigError(f"infer.colors: {error}") from None
    return (background[0], background[1], background[2]), (nucleus[0], nucleus[1], nucleus[2])


class Result:
    """Segmentation of one image.

    `mask` and `labels` follow from the same threshold; `labels` divides the mask after small components were dropped
    and small holes filled.
    """

    def __init__(
        self,
        image: ImageLike,
        maps: np.ndarray,
        *,
        heads: tuple[Head, ...] = ("mask",),
        candidates: Candidates | None = None,
        postprocessing: Postprocessing | None = None,
        style: OutputStyle | None = None,
        scale: ImageScale | None = None,
        confidence: Confidence | None = None,
        min_probability: float = 0.0,
        name: str = "image",
        path: Path | None = None,
        scratch: Path | None = None,
        threads: int | None = None,
    ) -> None:
        """Keeps image and probabilities.

        Args:
          image: uint8 RGB [h, w, 3], or a slide.
          maps: probabilities [h, w, maps], float16 or float32; may be memory-mapped.
          heads: heads of the network in the order of `maps`.
          candidates: whole outlines that the network proposes; None: nuclei are parted where they overlap.
          postprocessing: threshold and watershed parameters; None: the defaults.
          style: settings of the files; None: the defaults.
          scale: size of nuclei that was taken for the prediction; None: the image was not scaled by it.
          confidence: model of the probability of nuclei; None: they have none.
          min_probability: nuclei of a lower probability are left out.
          name: stem of the files that `save` writes.
          path: file of the image; None for an array.
          scratch: folder for temporary files of large label maps; None: the system's.
          threads: threads for the blocks of a large image; None: one per CPU core.
        """
        self.image = image
        self.maps = maps
        self.heads = heads
        self.candidates = candidates
        self.postprocessing = postprocessing or Postprocessing()
        self.style = style or OutputStyle()
        self.scale = scale
        self.confidence = confidence
        self.min_probability = min_probability if confidence is not None else 0.0
        self.name = name
        self.path = path
        self.scratch = scratch
        self.threads = threads

    def __repr__(self) -> str:
        """Returns name and size."""
        height, width = self.maps.shape[:2]
        return f"Result({self.name!r}, {height}x{width})"

    @property
    def probabilities(self) -> Float[np.ndarray, "h w"]:
        """Probability of nucleus in [0, 1], float32 or float16."""
        return self.maps[..., 0]

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """Pixels that belong to nuclei."""
        return make_mask(self.probabilities, self.postprocessing.threshold, self.postprocessing.threshold_rule)

    @functools.cached_property
    def nuclei(self) -> Nuclei:
        """Labels, measurements and outlines of all nuclei."""
        params = self.postprocessing.params
        found = find_nuclei(
            self.maps,
            self.mask,
            self.image,
            self.heads,
            params,
            candidates=self.candidates,
            labels=self._zeros(),
            threads=self.threads,
        )
        if self.confidence is None:
            return found
        probs = self.confidence.probabilities(features_of(found.table, found.whole))
        keep = probs >= self.min_probability
        if not keep.all():
            found = keep_nuclei(found, keep, self.maps, self.image, threads=self.threads)
        found.table["probability"] = probs[keep]
        found.table["margin_px"] = self.confidence.margin * found.diameters
        return found

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, "h w"]:
        """Label map: 1..n for nuclei, 0 for background."""
        if "nuclei" in self.__dict__ or self.min_probability > 0:
            return self.nuclei.labels
        params = self.postprocessing.params
        return label_nuclei(
            self.maps,
            self.mask,
            self.heads,
            params,
            candidates=self.candidates,
            labels=self._zeros(),
            threads=self.threads,
        )

    @property
    def outlines(self) -> list[list[Polygon]]:
        """Outlines of all nuclei, in the order of their labels: the polygons of each one, with x and y in pixels.

        Networks with the head "rays" give whole nuclei, which may overlap; the label map cannot hold that, and shows
        the part of the mask that each one has for itself. Outlines of other networks are those of the label map.
        """
        return self.nuclei.polygons

    @property
    def extents(self) -> list[Extent]:
        """The pixels of all nuclei, in the order of their labels; see `outlines`."""
        return self.nuclei.extents or list(extents_of(self.labels).values())

    def outline_band(self, label: int) -> tuple[Extent | None, Extent]:
        """Returns the pixels that surely belong to a nucleus, and those that may.

        The outline of a true nucleus that matches this one runs between both with the probability that was chosen
        when the confidence was fitted, 0.9.

        Args:
          label: the nucleus, from 1.

        Raises:
          ValueError: if the weights have no confidence, see `segmentation.confidence`.
        """
        if self.confidence is None:
            raise ValueError("outline_band: the weights have no confidence; a run with validation images has")
        margin = float(self.nuclei.table["margin_px"][label - 1])
        return outline_band(self.extents[label - 1], margin, shape=(self.maps.shape[0], self.maps.shape[1]))

    def with_postprocessing(self, postprocessing: Postprocessing) -> "Result":
        """Returns the result of the same prediction with other settings, and without a confidence."""
        return Result(
            self.image,
            self.maps,
            heads=self.heads,
            candidates=self.candidates,
            postprocessing=postprocessing,
            style=self.style,
            scale=self.scale,
            name=self.name,
            path=self.path,
            scratch=self.scratch,
            threads=self.threads,
        )

    @property
    def table(self) -> Table:
        """Measurements by column name, one row per nucleus, as in `nuclei.csv`.

        The columns are `morphometry.COLUMNS`, and those in micrometers where `mpp` is set.
        """
        table = self.nuclei.table
        return table if self.style.mpp is None else in_micrometers(table, self.style.mpp)

    @functools.cached_property
    def uncertainty(self) -> float:
        """Mean binary entropy of the mask probabilities near nuclei, bits per pixel in [0, 1]; see `uncertainty`."""
        return uncertainty(self.maps)

    def overlay(self, *, with_labels: bool = True) -> UInt8[np.ndarray, "rows columns 3"]:
        """Returns the RGB image with tinted, outlined nuclei; images above 64 megapixels are subsampled.

        Args:
          with_labels: outline every nucleus; otherwise the mask.
        """
        height, width = self.maps.shape[:2]
        step = max(1, int(np.ceil(np.sqrt(height * width / MAX_OVERLAY_PIXELS))))
        band = step * max(1, BAND_ROWS // step)
        bands = [np.asarray(self.image[top : top + band, 0:width])[::step, ::step] for top in range(0, height, band)]
        labels = (self.labels if with_labels else self.mask)[::step, ::step]
        return draw_instance_outlines(tint(np.concatenate(bands), labels > 0), labels, color=PREDICTION_COLOR)

    def save(self, folder: str | Path, outputs: str | Sequence[str] | None = None) -> Path:
        """Writes files of this image as `cervseg-jax infer` does, each kind into a folder of its own name.

        Args:
          folder: receives `masks/<name>.png`, `nuclei/<name>.csv` and so on; files of the same name are replaced.
          outputs: one or several of masks, overlays, instances, nuclei, geojson, probabilities, color, coco, labelme,
            rois, instance_pyramids and probability_pyramids, or "all"; None: the first five.

        Returns:
          The folder.

        Raises:
          ConfigError: for an unknown output, or a folder that cannot be written.
        """
        from cervseg_jax.segmentation.outputs import (
            DEFAULT_OUTPUTS,
            installed_outputs,
            require_outputs,
            write_results,
        )

        if isinstance(outputs, str):
            names = installed_outputs() if outputs == "all" else (outputs,)
        else:
            names = DEFAULT_OUTPUTS if outputs is None else tuple(outputs)
        require_outputs(names, key="outputs")
        folder = as_path(folder)
        write_results(folder, self, names)
        return folder

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the image with tinted, outlined nuclei.

        Args:
          ax: matplotlib axes to draw on; None: those of a new figure.

        Returns:
          The axes.
        """
        if ax is None:
            from matplotlib import pyplot

            _, ax = pyplot.subplots()
        ax.imshow(self.overlay())
        ax.set_title(f"{self.name}: {int(self.labels.max(initial=0))} nuclei")
        ax.set_axis_off()
        return ax

    def close(self) -> None:
        """Closes the file of a slide; what was computed stays."""
        close_image(self.image)

    def _zeros(self) -> np.ndarray:
        return allocate(self.maps.shape[:2], np.int32, self.scratch)
