"""Synthetic scenes on disk: the CNSeg layout of `synth`, and the split dataset of a config."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cervseg_jax.annotations.labelme import LabeledOutline, labelme_document
from cervseg_jax.annotations.outlines import draw_instances, rasterize
from cervseg_jax.choices import SceneKind
from cervseg_jax.curation.synthetic import Scene, draw_scene
from cervseg_jax.data.covered_files import save_covered
from cervseg_jax.data.manifest import DATASET_FILE
from cervseg_jax.errors import ConfigError
from cervseg_jax.extents import Extent, covered_layers
from cervseg_jax.files import make_folder, refuse_filled_folder, write_json, write_png, write_text
from cervseg_jax.runtime.threads import map_files
from cervseg_jax.schema import SyntheticConfig


def write_scenes(
    folder: Path,
    *,
    num_images: int,
    seed: int,
    size: tuple[int, int],
    kind: SceneKind = "clusters",
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Draws images and writes them with LabelMe polygons and instance labels.

    Args:
      folder: receives `images`, `labelme` and `instances`; must be new or empty.
      num_images: number of images.
      seed: seed of the images.
      size: height and width.
      kind: what they show, as of `draw_scene`.
      on_progress: called after each image.

    Raises:
      ConfigError: if the folder is not empty.
    """
    refuse_filled_folder(folder, shown=f"{folder}:")
    for name in ("images", "labelme", "instances"):
        make_folder(folder / name)

    def write(index: int) -> None:
        stem = f"{'synthetic' if kind == 'clusters' else kind}_{seed:03d}_{index:05d}"
        scene = draw_scene(shape=size, seed=seed, index=index, kind=kind)
        write_png(folder / "images" / f"{stem}.png", scene.image)
        nuclei = [LabeledOutline(rings) for rings in scene.outlines]
        document = labelme_document(nuclei, image_path=f"../images/{stem}.png", shape=size)
        write_text(folder / "labelme" / f"{stem}.json", document, durable=False)
        labels = _instances(scene, size)
        write_png(folder / "instances" / f"{stem}.png", labels)
        save_covered(folder, stem, _covered(scene, labels))

    map_files(write, range(num_images), on_progress=on_progress)


def ensure_synthetic_dataset(
    root: Path, config: SyntheticConfig, *, on_progress: Callable[[], None] = lambda: None
) -> bool:
    """Makes the synthetic dataset of a config unless it exists.

    All splits come from one stream of scenes, each of which is used once. The folder appears when it is complete.

    Args:
      root: `data.root`.
      config: the config's `data.synthetic`.
      on_progress: called after each image.

    Returns:
      Whether it had to be made.

    Raises:
      ConfigError: if `root` holds another dataset.
    """
    metadata = {"kind": "synthetic", **config.model_dump(mode="json")}
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        _require_same(root, metadata)
        return False
    building = root.with_name(f".{root.name}.{os.getpid()}.building")
    make_folder(building)
    try:
        first = 0
        for split, count in (("train", config.train), ("valid", config.valid), ("test", config.test)):
            _write_split(building / split, range(first, first + count), config, on_progress)
            first += count
        write_json(building / DATASET_FILE, metadata)
        if root.exists():
            root.rmdir()
        building.rename(root)
    except OSError as error:
        raise ConfigError(f"{root}: the synthetic dataset cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)  # our own temporary folder
    return True


def _write_split(folder: Path, indices: range, config: SyntheticConfig, on_progress: Callable[[], None]) -> None:
    for name in ("images", "masks", "instances"):
        make_folder(folder / name)

    def write(index: int) -> None:
        scene = draw_scene(shape=config.size, seed=config.seed, index=index)
        labels = _instances(scene, config.size)
        name = f"synthetic_{config.seed:03d}_{index:05d}.png"
        write_png(folder / "images" / name, scene.image)
        write_png(folder / "masks" / name, ((labels > 0) * 255).astype(np.uint8))
        write_png(folder / "instances" / name, labels)
        save_covered(folder, Path(name).stem, _covered(scene, labels))

    map_files(write, indices, on_progress=on_progress)


def _instances(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    return draw_instances(scene.outlines, shape=size).astype(np.uint16)


def _covered(scene: Scene, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the label maps of the nuclei that later ones partly cover."""
    windows = (rasterize(rings, shape=(labels.shape[0], labels.shape[1])) for rings in scene.outlines)
    extents = {label: Extent(*window) for label, window in enumerate(windows, start=1)}
    return covered_layers(extents, labels.astype(np.int32))


def _require_same(root: Path, expected: Mapping[str, object]) -> None:
    try:
        actual = json.loads((root / DATASET_FILE).read_text())
    except (OSError, ValueError):
        actual = None
    if actual != expected:
        raise ConfigError(
            f"data.root: {root} holds another dataset than data.synthetic describes "
            f"(expected {dict(expected)}, got {actual}); choose another data.root"
        )
