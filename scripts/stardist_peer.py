"""Trains StarDist from scratch for a given CPU time and labels test images, for `benchmark_accuracy.py`.

    PYTHON stardist_peer.py IMAGES.npz LABELS.npz --minutes 15 [--seed 0]

PYTHON is that of an environment with `stardist` and `tensorflow-cpu` (tried with 0.9.2 and 2.21.0). IMAGES.npz has
`{train,valid,test}_image_N`, uint8 [h, w, 3], and `{train,valid}_labels_N`, int32 [h, w]. Network, losses, learning
rate and its reduction are StarDist's defaults with the grid of its examples, (2, 2); thresholds are fitted to the
validation images.

Reference: Schmidt et al. 2018, arXiv:1806.03535.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from csbdeep.utils import normalize  # pyright: ignore[reportMissingImports]
from stardist.models import Config2D, StarDist2D  # pyright: ignore[reportMissingImports]

STEPS_PER_EPOCH = 25


class StopAfter(keras.callbacks.Callback):
    """Ends a training after some CPU time of this process."""

    def __init__(self, seconds: float) -> None:
        """Starts to count."""
        super().__init__()
        self._end = time.process_time() + seconds

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Called by Keras."""
        if time.process_time() > self._end and self.model is not None:
            self.model.stop_training = True


def turned(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors and turns a square window, and changes its brightness and contrast."""
    turns = np.random.randint(4)
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if np.random.rand() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    gain, offset = np.random.uniform(0.7, 1.4), np.random.uniform(-0.15, 0.15)
    return image * gain + offset + np.random.normal(0, 0.02, image.shape), labels


def main() -> None:
    """Trains, and writes `test_labels_N`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--minutes", type=float, required=True, help="CPU time of the training.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    with np.load(options.images) as arrays:
        images = {name: normalize(arrays[name], 1, 99.8, axis=(0, 1)) for name in arrays if "_image_" in name}
        labels = {name: arrays[name].astype(np.int32) for name in arrays if "_labels_" in name}

    def split(name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        count = sum(key.startswith(f"{name}_image_") for key in images)
        return (
            [images[f"{name}_image_{index}"] for index in range(count)],
            [labels[f"{name}_labels_{index}"] for index in range(count) if name != "test"],
        )

    train, valid, (tests, _) = split("train"), split("valid"), split("test")
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=3, train_tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:
        model = StarDist2D(config, name="peer", basedir=folder)
        model.prepare_for_training()
        model.callbacks.append(StopAfter(60 * options.minutes))
        history = model.train(
            *train, validation_data=valid, augmenter=turned, epochs=10_000, steps_per_epoch=STEPS_PER_EPOCH
        )
        model.optimize_thresholds(*valid)
        found = {f"test_labels_{index}": model.predict_instances(image)[0] for index, image in enumerate(tests)}
    np.savez_compressed(options.labels, **found)
    print(f"epochs of {STEPS_PER_EPOCH} updates: {len(history.history['loss'])}; {model.thresholds}", flush=True)


if __name__ == "__main__":
    main()
