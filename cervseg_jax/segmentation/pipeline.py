"""The pipeline of `infer`: reads ahead, predicts, and writes images while the next ones are predicted."""

import dataclasses
import errno
import logging
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.console import Advance, Reporter
from cervseg_jax.data.checks import bit_depth_warning
from cervseg_jax.data.slides import Slide
from cervseg_jax.errors import CervsegError, ConfigError, DataError, InterruptedRunError
from cervseg_jax.runtime.signals import StopRequest
from cervseg_jax.runtime.threads import map_ahead
from cervseg_jax.segmentation.bands import Bands
from cervseg_jax.segmentation.images import ImageLike, close_image, open_image, plane_of
from cervseg_jax.segmentation.jobs import Job, require_writable
from cervseg_jax.segmentation.ledger import Ledger
from cervseg_jax.segmentation.notes import DONE, file_stamp
from cervseg_jax.segmentation.outputs import MASK_OUTPUTS, compute_results, image_row, write_results
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter
from cervseg_jax.segmentation.shares import Share
from cervseg_jax.segmentation.throughput import Throughput, TimedSlide, timed
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cached import fetch_ahead
from cervseg_jax.storage.retrying import StoreError

MUCH_LARGER = 4
"""A whole image whose side is this many times the network's is worth a warning: nuclei shrink too far."""
MAX_PENDING_ELEMENTS = 50_000_000
"""The results of larger maps are labelled and written one at a time, while the next image is predicted."""
SCRATCH_BYTES_PER_PIXEL = 32
"""Disk space that two large images need at once: maps of three heads, labels and the levels of pyramids, and some
more. Where there is less, an image waits until the one before it is written."""
SYSTEMIC_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})
"""Errors that the next image would meet as well."""


class FailedJob(NamedTuple):
    """An image without results, and why."""

    job: Job
    reason: str


class _Opened(NamedTuple):
    """An image that is being processed, with its `file_stamp` from before it was read."""

    job: Job
    stamp: list[str]


class Pipeline:
    """Processes images; an error that concerns one image fails that image, and the rest is processed."""

    def __init__(
        self,
        segmenter: Segmenter,
        ledger: Ledger,
        *,
        out: Path,
        outputs: Sequence[str],
        pixel_sizes: Mapping[Job, float],
        num_threads: int,
        num_requests: int = 0,
        reporter: Reporter,
        advance: Advance,
        stop: StopRequest,
    ) -> None:
        """Keeps the settings.

        Args:
          segmenter: predicts the images.
          ledger: notes which images are complete.
          out: folder for the results.
          outputs: keys of `OUTPUTS`.
          pixel_sizes: micrometers per pixel of single images; others have the segmenter's.
          num_threads: threads that read and write.
          num_requests: further threads that write, for a store that is to be waited for.
          reporter: for warnings.
          advance: called after each image.
          stop: whether the user asked to stop.
        """
        self.throughput = Throughput()
        predict = timed(self.throughput, "network", segmenter.predictor.predict)
        self._segmenter = dataclasses.replace(segmenter, predictor=segmenter.predictor._replace(predict=predict))
        self._ledger = ledger
        self._out = out
        self._outputs = tuple(outputs)
        self._pixel_sizes = pixel_sizes
        self._num_threads = num_threads
        self._num_writers = num_threads + num_requests
        self._reporter = reporter
        self._advance = advance
        self._stop = stop
        self._failed: list[FailedJob] = []
        self._narrow: list[int] = []
        self._divided: frozenset[Job] = frozenset()
        self._writes: deque[tuple[Job, Future[Exception | None]]] = deque()

    def process(self, share: Share) -> list[FailedJob]:
        """Reads, predicts and writes images.

        Args:
          share: the images, and slides of which this process predicts a part.

        Returns:
          The images that failed.

        Raises:
          ConfigError: if nothing more can be written, such as on a full disk.
          InterruptedRunError: if the user asked to stop.
        """
        segmenter, jobs = self._segmenter, share.jobs
        self._divided = frozenset(share.divided)
        for job in share.divided:
            self._predict_part(job, share)
        # Whole images are read ahead by a batch and more; of tiled ones, which may be large, by one.
        ahead = 1 if segmenter.is_tiled else max(2 * segmenter.predictor.batch_size, self._num_threads)
        with ThreadPoolExecutor(self._num_threads) as pool, ThreadPoolExecutor(self._num_writers) as writers:
            results = segmenter.predict(
                self._readable(pool, jobs, ahead),
                mpp_of=lambda opened: self._pixel_sizes.get(opened.job),
                bands_of=self._bands_of,
                scratch=None if isinstance(self._out, Address) else self._out,
                on_progress=self._leave_if_asked,
                on_failure=lambda opened, error: self._fail(opened.job, error),
            )
            for opened, result in results:
                job = opened.job
                result.name, result.path = job.name, job.path
                if job in self._pixel_sizes:
                    result.style = result.style._replace(mpp=self._pixel_sizes[job])
                is_large = result.maps.size > MAX_PENDING_ELEMENTS
                num_pending = max(ahead, min(self._num_writers, MAX_PENDING_ELEMENTS // result.maps.size))
                self._finish_until(0 if is_large else num_pending - 1)
                self._writes.append((job, writers.submit(self._write, opened, result)))
            self._finish_until(0)
        warning = bit_depth_warning(self._narrow, segmenter.bit_depth, option="--set data.bit_depth=")
        if warning:
            self._reporter.warn(warning)
        self.throughput.stop()
        return self._failed

    def _predict_part(self, job: Job, share: Share) -> None:
        """Predicts this process' part of a slide; what is wrong with a slide is left to the process that writes it."""
        opened = self._read(job)
        if isinstance(opened, Exception):
            return
        stamp, image = opened
        try:
            self._segmenter.predict_part(
                image,
                self._ledger.bands(job.name, stamp),
                part=share.process,
                num_parts=share.num_processes,
                mpp=self._pixel_sizes.get(job),
                on_progress=self._leave_if_asked,
            )
        except (DataError, OSError, MemoryError) as error:
            self._leave_if_systemic(error)
        finally:
            close_image(image)
            self._ledger.remove_left_bands()

    def _bands_of(self, opened: _Opened) -> Bands | None:
        """Returns the bands of a slide that several processes predict, or that such a call has left."""
        name = opened.job.name
        is_in_bands = opened.job in self._divided or self._ledger.has_bands(name)
        return self._ledger.bands(name, opened.stamp) if is_in_bands else None

    def _readable(
        self, pool: ThreadPoolExecutor, jobs: Sequence[Job], ahead: int
    ) -> Iterator[tuple[_Opened, ImageLike]]:
        """Yields the images that could be opened."""
        height, width = self._segmenter.predictor.image_size
        has_warned = self._segmenter.is_tiled
        for job, opened in map_ahead(pool, lambda job: (job, self._read(job)), fetch_ahead(jobs), ahead=ahead):
            if isinstance(opened, Exception):
                self._fail(job, opened)
                continue
            stamp, image = opened
            if plane_of(image):
                self._reporter.info(f"{job.path}: is a stack; plane {plane_of(image)} is read")
            if not has_warned and (image.shape[0] >= MUCH_LARGER * height or image.shape[1] >= MUCH_LARGER * width):
                has_warned = True
                self._reporter.warn(
                    f"{job.path}: is resized from {image.shape[0]}x{image.shape[1]} to the network's {height}x{width}; "
                    "--tiled keeps the scale"
                )
            if self._writes and not self._has_room(image):
                self._finish_until(0)
            yield _Opened(job, stamp), image

    def _has_room(self, image: ImageLike) -> bool:
        """Whether the disk holds the maps of an image beside those of one that is being written."""
        scratch = tempfile.gettempdir() if isinstance(self._out, Address) else self._out
        return shutil.disk_usage(scratch).free > SCRATCH_BYTES_PER_PIXEL * image.shape[0] * image.shape[1]

    def _read(self, job: Job) -> tuple[list[str], ImageLike] | Exception:
        """Opens an image, or returns what is wrong with it."""
        segmenter = self._segmenter
        try:
            with self.throughput.measure("reading"):
                stamp = file_stamp(job.path)
                image = open_image(
                    job.path,
                    is_tiled=segmenter.is_tiled,
                    bit_depth=segmenter.bit_depth,
                    on_narrow=self._narrow.append,
                )
        except Exception as error:  # one file must not end the call, whatever a decoder raises
            return error
        return stamp, TimedSlide(image, self.throughput) if isinstance(image, Slide) else image

    def _write(self, opened: _Opened, result: Result) -> Exception | None:
        """Writes the files of an image, and last the row that marks it as complete; returns what went wrong."""
        name = opened.job.name
        try:
            with self.throughput.measure("nuclei"):
                compute_results(result, self._outputs)
                row = image_row(result, with_nuclei=not MASK_OUTPUTS.issuperset(self._outputs))
            with self.throughput.measure("writing"):
                self._ledger.start(name)
                write_results(self._out, result, self._outputs)
                self._ledger.complete(name, row, opened.stamp)
            self.throughput.add_image(result.mask.shape)
        except Exception as error:  # nor may post-processing or a writer
            return error
        finally:
            result.close()
        return None

    def _finish_until(self, num_pending: int) -> None:
        """Waits for the oldest results until no more than `num_pending` are being written."""
        while len(self._writes) > num_pending:
            self._finish(*self._writes.popleft())

    def _finish(self, job: Job, write: Future[Exception | None]) -> None:
        error = write.result()
        if error is None:
            # An image counts when its files are written, or the time left would come out too short.
            self._advance(f"{self.throughput.megapixels_per_second:.2f} megapixels/s")
            return
        if isinstance(error, OSError):
            for name in (*self._outputs, DONE):
                require_writable(self._out / name)
        self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """Notes that an image failed, unless the others would fail as well."""
        self._leave_if_systemic(error)
        reason = _describe(job, error)
        logging.getLogger("cervseg_jax").debug("%s", reason, exc_info=error)
        self._ledger.fail(job, reason)
        self._failed.append(FailedJob(job, reason))
        self._reporter.warn(reason)
        self._advance()

    def _leave_if_systemic(self, error: Exception) -> None:
        if isinstance(error, StoreError):
            raise StoreError(f"{error}\nFinished images are kept, the same command with --resume continues") from None
        if isinstance(error, OSError) and error.errno in SYSTEMIC_ERRORS:
            raise ConfigError(
                f"{self._out}: {error.strerror}; finished images are kept, the same command with --resume continues"
            ) from None

    def _leave_if_asked(self) -> None:
        if self._stop():
            raise InterruptedRunError(
                f"{self._stop.signal_name}: stopped; finished images are kept, the same command with --resume continues"
            )


def _describe(job: Job, error: Exception) -> str:
    """Returns one line that names the image and says what went wrong."""
    if isinstance(error, CervsegError):
        text = str(error)
        return text if str(job.path) in text else f"{job.path}: {text}"
    if isinstance(error, OSError):
        place = Path(error.filename).parent if isinstance(error.filename, str) else job.path.parent
        shown = "" if place == job.path.parent else f" (in {place})"
        return f"{job.path}: {error.strerror or error}{shown}"
    if isinstance(error, MemoryError):
        return f"{job.path}: too little memory for this image"
    return f"{job.path}: {type(error).__name__}: {error}"
