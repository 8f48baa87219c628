"""The Python API behind `cervseg_jax.load`, `train` and `evaluate`: the commands, without printing.

Messages go to the logger "cervseg_jax". Errors are those of `cervseg_jax.errors`, with the messages of the commands.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cervseg_jax.console import LogReporter
from cervseg_jax.evaluation.score import ScoreRequest, score_run
from cervseg_jax.runs.bucket import local_copies
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runtime.mesh import require_devices
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter
from cervseg_jax.training.run import TrainedRun, TrainRequest, train_runs

RunAddress = str | os.PathLike[str]
"""Path of a run folder, its address in a bucket, or the name of built-in weights, such as "pap"."""


def load(
    run: RunAddress,
    *,
    overrides: Sequence[str] = (),
    members: Sequence[RunAddress] = (),
    mpp: float | None = None,
    nucleus_px: float | None = None,
) -> Segmenter:
    """Loads the best weights of a run, or built-in weights.

    Args:
      run: run folder, its address in a bucket, or the name of built-in weights, such as "pap".
      overrides: `section.key=value` items on the run's config, such as `infer.threshold=0.4` or `infer.tiled={}`.
      members: further runs, whose predictions are averaged with those of `run`.
      mpp: micrometers per pixel; adds columns in micrometers to the measurements.
      nucleus_px: median diameter of nuclei in the images, in pixels, for weights of one scale; None: by `mpp` where
        the weights know theirs, or else estimated in each image.

    Returns:
      The segmenter: call it with an image, or with an iterable of images.

    Raises:
      ConfigError: if there is no such folder, or an override is wrong.
      CheckpointError: if a folder is not a run, or has no usable weights.
    """
    with ExitStack() as stack:
        copies = stack.enter_context(local_copies([Path(name) for name in (run, *members)]))
        folders = [copy.folder for copy in copies]
        sizes = [] if nucleus_px is None else [f"infer.nucleus_px={nucleus_px}"]
        config = load_run_config(folders[0], [*overrides, *sizes])
        require_devices(config.runtime)
        return load_segmenter(folders, config, mpp=mpp)


def train(
    config: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    run_dir: RunAddress | None = None,
    fresh: bool = False,
    allow_changes: bool = False,
) -> TrainedRun:
    """Trains a recipe as `cervseg-jax train` does; the same call continues a run that was stopped.

    Args:
      config: path of a recipe.
      overrides: `section.key=value` items on the recipe, such as `train.epochs=5`.
      run_dir: run folder, or its address in a bucket; None: `runs/<name of the recipe>`.
      fresh: start a new run in a numbered folder beside an existing one.
      allow_changes: continue a run although its config or data have changed.

    Returns:
      The run's folder and progress; may be passed to `load` and `evaluate`.

    Raises:
      ConfigError: if the recipe, an override or the run folder is wrong.
      DataError: if the data are unreadable or unpaired.
      CheckpointError: if no state can be restored or saved.
      DivergedError: if the loss is not finite.
      InterruptedRunError: on Ctrl-C or SIGTERM; the state is saved.
    """
    request = TrainRequest(
        Path(config),
        None if run_dir is None else Path(run_dir),
        tuple(overrides),
        fresh=fresh,
        allow_changes=allow_changes,
    )
    return train_runs(request, reporter=LogReporter())[0]


def evaluate(
    run: RunAddress,
    split: str = "test",
    *,
    data: RunAddress | None = None,
    overrides: Sequence[str] = (),
    members: Sequence[RunAddress] = (),
    allow_trained: bool = False,
) -> dict[str, Any]:
    """Scores a run's best weights as `cervseg-jax eval` does, and writes `RUN/eval/<split>/`.

    Args:
      run: run folder, or its address in a bucket.
      split: train, valid or test.
      data: another dataset than the config's.
      overrides: `section.key=value` items on the run's config.
      members: further runs, whose predictions are averaged with those of `run`.
      allow_trained: score images that a run was trained on.

    Returns:
      The content of `summary.json`.

    Raises:
      ConfigError: if the run, split or dataset does not exist.
      DataError: if files are bad, or a run was trained on some.
      CheckpointError: if a run has no usable weights.
    """
    with local_copies([Path(name) for name in (run, *members)]) as (own, *others):
        request = ScoreRequest(
            own.folder,
            split,
            None if data is None else Path(data),
            overrides=tuple(overrides),
            members=tuple(other.folder for other in others),
            allow_trained=allow_trained,
        )
        return score_run(request, reporter=LogReporter()).summary
