"""The segmenter: weights of one or several runs, their contract, and post-processing.

Inference, evaluation, tuning, previews and the Python API all predict through it, so that the same settings give the
same pixels everywhere.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast, overload

import numpy as np
from jax.sharding import Mesh

from cervseg_jax.choices import MPP_RANGE, BitDepth
from cervseg_jax.engine.predict import Predict
from cervseg_jax.errors import ConfigError
from cervseg_jax.runs.weights import Network, load_network
from cervseg_jax.runtime.mesh import num_batch_shards
from cervseg_jax.schema import Config, Scale, TiledConfig
from cervseg_jax.segmentation.bands import Bands
from cervseg_jax.segmentation.candidates import dense_heads
from cervseg_jax.segmentation.confidence import Confidence, load_confidence, min_probability
from cervseg_jax.segmentation.images import (
    ImageLike,
    ImageSource,
    image_from_array,
    is_single_image,
    open_image,
)
from cervseg_jax.segmentation.maps import predict_bands, predict_maps
from cervseg_jax.segmentation.postprocess import Postprocessing, resolve_postprocessing
from cervseg_jax.segmentation.predict import Predictor, make_predictor, with_padding
from cervseg_jax.segmentation.result import OutputStyle, Result, parse_colors
from cervseg_jax.segmentation.scale import ImageScale, estimate_nucleus_px, image_scale, without_flat_areas
from cervseg_jax.segmentation.tta import with_tta
from cervseg_jax.storage.address import as_path

Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Segmenter:
    """Segments images of any size; `cervseg_jax.load` makes one from a run.

    Call it with one image for a `Result`, or with several for an iterator of results. Images are arrays or paths:
    uint8 or uint16 arrays of shape [h, w] (gray), [h, w, 1], [h, w, 3] (RGB) or [h, w, 4] (RGBA, laid on white);
    16-bit values are scaled to 8 bits by `data.bit_depth`. Whole images are resized to the network's input and the
    probabilities back; with `infer.tiled` they are predicted in tiles at their own scale.
    """

    predictor: Predictor
    postprocessing: Postprocessing
    tiled: TiledConfig | None = None
    """None: whole images are resized."""
    style: OutputStyle = OutputStyle()
    bit_depth: BitDepth = "auto"
    """Bits that the values of 16-bit images have, as in the data that the network was trained on."""
    scale: Scale | None = None
    """Scale of the network's input; None: see `tiled`. With a scale, each image is predicted in tiles at the factor
    that brings its nuclei to the size of those in training."""
    nucleus_px: float | None = None
    """Median diameter of nuclei in the images, in pixels; None: by the pixel size, or else estimated."""
    networks: tuple[Network, ...] = ()
    """Networks whose predictions are averaged; empty for weights in training."""
    confidence: Confidence | None = None
    """Model of the probability of nuclei; None: none was fitted."""
    min_probability: float = 0.0
    """Nuclei of a lower probability are left out."""
    threads: int | None = None
    """Threads for the blocks of a large image; None: one per CPU core."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload] (strings and arrays are iterable)
        self, images: ImageSource
    ) -> Result: ...

    @overload
    def __call__(self, images: Iterable[ImageSource]) -> Iterator[Result]: ...

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> Result | Iterator[Result]:
        """Segments one image, or several.

        Args:
          images: an array or path, or an iterable of those, see the class.

        Returns:
          The image's result, or an iterator as of `stream`.

        Raises:
          DataError: if an array has another shape or type, or a file cannot be read.
        """
        if is_single_image(images):
            return next(self.stream([images]))
        return self.stream(cast("Iterable[ImageSource]", images))

    def stream(self, images: Iterable[ImageSource]) -> Iterator[Result]:
        """Segments images in batches, reading ahead by two batches at most.

        Args:
          images: arrays or paths, see the class.

        Yields:
          A result per image, in order. Its name is the file's stem, or `image_0`, `image_1` ... for arrays.

        Raises:
          DataError: as a call.
        """
        for (name, path), result in self.predict(self._opened(images)):
            result.name, result.path = name, path
            yield result

    def predict(
        self,
        images: Iterable[tuple[Tag, ImageLike]],
        *,
        mpp_of: Callable[[Tag], float | None] = lambda tag: None,
        bands_of: Callable[[Tag], Bands | None] = lambda tag: None,
        scratch: Path | None = None,
        on_progress: Callable[[], None] = lambda: None,
        on_failure: Callable[[Tag, Exception], None] | None = None,
    ) -> Iterator[tuple[Tag, Result]]:
        """Segments opened images, each with a tag that is yielded with its result.

        Args:
          images: uint8 RGB arrays [h, w, 3], or slides where `is_tiled`.
          mpp_of: micrometers per pixel of an image by its tag, where known.
          bands_of: bands of an image by its tag, where several processes predict it.
          scratch: folder for temporary files of large maps; None: the system's.
          on_progress: called after each image, and after each row of tiles.
          on_failure: called with the tag of an image whose tiles cannot be read or held; None raises the error.

        Yields:
          Tag and result, in order.
        """
        maps_of_images = predict_maps(
            self.predictor,
            self.tiled,
            images,
            scale_of=None if self.scale is None else lambda tag, image: self.scale_of(image, mpp=mpp_of(tag)),
            bands_of=bands_of,
            scratch=scratch,
            on_progress=on_progress,
            on_failure=on_failure,
        )
        for tag, found in maps_of_images:
            taken, prediction = found.scale, found.prediction
            result = Result(
                found.image,
                prediction.maps,
                candidates=prediction.candidates,
                heads=dense_heads(self.predictor.heads),
                postprocessing=self.postprocessing if taken is None else self.postprocessing.at_scale(taken.factor),
                style=self.style,
                scale=taken,
                confidence=self.confidence,
                min_probability=self.min_probability,
                scratch=scratch,
                threads=self.threads,
            )
            yield tag, result

    def predict_part(
        self,
        image: ImageLike,
        bands: Bands,
        *,
        part: int,
        num_parts: int,
        mpp: float | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Predicts a part of a slide for another process, see `predict_bands`; `mpp` as of `scale_of`."""
        factor = None if self.scale is None else self.scale_of(image, mpp=mpp).factor
        predict_bands(
            self.predictor,
            self.tiled,
            image,
            bands,
            part=part,
            num_parts=num_parts,
            factor=factor,
            on_progress=on_progress,
        )

    def scale_of(self, image: ImageLike, *, mpp: float | None = None) -> ImageScale:
        """Returns the size of nuclei in an image, for networks of one scale.

        Args:
          image: uint8 RGB [h, w, 3], or a slide.
          mpp: micrometers per pixel of this image, where known; None: those of `style`.

        Returns:
          The size that is set, or that follows from the pixel size, or is estimated from the image.
        """
        if self.scale is None:
            raise ValueError("scale_of: the network has no scale")
        network_px = self.scale.nucleus_px
        if self.nucleus_px is not None:
            return image_scale(self.nucleus_px, "given", network_px)
        mpp = self.style.mpp if mpp is None else mpp
        if mpp is not None and self.scale.mpp is not None:
            return image_scale(network_px * self.scale.mpp / mpp, "pixel size", network_px)
        estimate = estimate_nucleus_px(self.predictor, image, self.scale)
        if estimate is None:
            return image_scale(network_px, "default", network_px)
        return image_scale(estimate, "estimated", network_px)

    @property
    def is_tiled(self) -> bool:
        """Whether images are predicted in tiles, so that slides can be read."""
        return self.tiled is not None or self.scale is not None

    def _opened(self, images: Iterable[ImageSource]) -> Iterator[tuple[tuple[str, Path | None], ImageLike]]:
        for index, image in enumerate(images):
            if isinstance(image, np.ndarray) or hasattr(image, "__array__"):
                name = f"image_{index}"
                yield (name, None), image_from_array(image, name=name, bit_depth=self.bit_depth)
            else:
                path = as_path(image)
                yield (path.stem, path), open_image(path, is_tiled=self.is_tiled, bit_depth=self.bit_depth)


def load_segmenter(runs: Sequence[Path], config: Config, *, mpp: float | None = None) -> Segmenter:
    """Loads the best weights of one or several runs.

    Args:
      runs: run folders; the predictions of several are averaged. Threshold and watershed parameters that were tuned
        are those of the first.
      config: config of the first run; the sections `infer` and `runtime` are used.
      mpp: micrometers per pixel, for measurements.

    Returns:
      The segmenter.

    Raises:
      CheckpointError: if a run has no usable weights.
      ConfigError: if the runs differ in heads or image size, a color is unknown, `mpp` is not within `MPP_RANGE`,
        `infer.nucleus_px` is set for weights that were not trained at one scale, or as `min_probability`.
    """
    if mpp is not None and not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise ConfigError(f"mpp: must be between {MPP_RANGE[0]:g} and {MPP_RANGE[1]:g} micrometers, got {mpp:g}")
    style = OutputStyle(mpp, parse_colors(config.infer.colors))
    networks = [load_network(run / "best", precision=config.runtime.precision) for run in runs]
    predictor = make_predictor(
        networks, batch_size=config.infer.batch_size, test_time_augmentation=config.infer.test_time_augmentation
    )
    scale = networks[0].contract.scale
    if scale is None and config.infer.nucleus_px != "auto":
        raise ConfigError(
            "infer.nucleus_px: these weights were not trained at one scale (data.nucleus_px); leave it out"
        )
    if scale is not None:
        predictor = predictor._replace(predict=without_flat_areas(predictor.predict, scale.nucleus_px))
    confidence = load_confidence(runs[0] / "best")
    return Segmenter(
        predictor,
        resolve_postprocessing(config.infer, runs[0] / "best"),
        config.infer.tiled,
        style,
        config.data.bit_depth,
        scale,
        _given_nucleus_px(config),
        tuple(networks),
        confidence,
        min_probability(config.infer, confidence),
        config.data.threads,
    )


def _given_nucleus_px(config: Config) -> float | None:
    return None if config.infer.nucleus_px == "auto" else config.infer.nucleus_px


def training_segmenter(predict: Predict, config: Config, mesh: Mesh, scale: Scale | None = None) -> Segmenter:
    """Returns a segmenter for the weights of a training that is under way, with `infer.threshold` or 0.5.

    Args:
      predict: prediction with these weights, compiled for `mesh`.
      config: config of the training.
      mesh: devices of the training.
      scale: scale of the network's input; None: whole images are resized.
    """
    if config.infer.test_time_augmentation:
        predict = with_tta(predict, config.model.heads)
    batch_size = math.lcm(config.infer.batch_size, num_batch_shards(mesh))
    predictor = Predictor(with_padding(predict, batch_size), config.model.image_size, batch_size, config.model.heads)
    if scale is not None:
        predictor = predictor._replace(predict=without_flat_areas(predictor.predict, scale.nucleus_px))
    return Segmenter(
        predictor,
        resolve_postprocessing(config.infer),
        config.infer.tiled,
        bit_depth=config.data.bit_depth,
        scale=scale,
        nucleus_px=_given_nucleus_px(config),
    )
