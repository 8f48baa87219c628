"""Writing drawn scenes to disk: the CNSeg layout of `synth`, and the divided dataset of a config."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cervseg_jax.annotations.labelme import labelme_document
from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.curation.synthetic import Scene, draw_scene
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import make_folder, refuse_filled_folder, write_json, write_png, write_text
from cervseg_jax.runtime.threads import default_threads
from cervseg_jax.schema import SyntheticConfig

DATASET_FILE = "dataset.json"


def write_scenes(
    folder: Path, *, num_images: int, seed: int, size: tuple[int, int], on_progress: Callable[[], None] = lambda: None
) -> None:
    """Draws images with LabelMe polygons and instance labels.

    Args:
      folder: receives `images`, `labelme` and `instances`; must be new or empty.
      num_images: how many.
      seed: seed of the set.
      size: height and width.
      on_progress: called after each image.

    Raises:
      ConfigError: if the folder holds something already.
    """
    _require_empty(folder)
    for name in ("images", "labelme", "instances"):
        make_folder(folder / name)

    def write(index: int) -> None:
        stem = f"synthetic_{seed:03d}_{index:05d}"
        scene = draw_scene(shape=size, seed=seed, index=index)
        write_png(folder / "images" / f"{stem}.png", scene.image)
        document = labelme_document(scene.outlines, image_path=f"../images/{stem}.png", shape=size)
        write_text(folder / "labelme" / f"{stem}.json", document, durable=False)
        write_png(folder / "instances" / f"{stem}.png", _instances(scene, size))
        on_progress()

    _for_all(write, num_images)


def ensure_synthetic_dataset(
    root: Path, wanted: SyntheticConfig, *, on_progress: Callable[[], None] = lambda: None
) -> bool:
    """Makes the drawn dataset of a config, unless it is there.

    The splits are drawn from one stream of scenes, none twice. The folder appears complete or not at all.

    Args:
      root: `data.root`.
      wanted: the config's `data.synthetic`.
      on_progress: called after each image.

    Returns:
      Whether it had to be made.

    Raises:
      ConfigError: if `root` holds another dataset.
    """
    facts = {"kind": "synthetic", **wanted.model_dump(mode="json")}
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        _require_same(root, facts)
        return False
    building = root.with_name(f".{root.name}.{os.getpid()}.building")
    make_folder(building)
    try:
        first = 0
        for split, count in (("train", wanted.train), ("valid", wanted.valid), ("test", wanted.test)):
            _write_split(building / split, range(first, first + count), wanted, on_progress)
            first += count
        write_json(building / DATASET_FILE, facts)
        if root.exists():
            root.rmdir()
        building.rename(root)
    except OSError as error:
        raise ConfigError(f"{root}: the synthetic dataset cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)  # our own temporary folder
    return True


def _write_split(folder: Path, indices: range, wanted: SyntheticConfig, on_progress: Callable[[], None]) -> None:
    for name in ("images", "masks", "instances"):
        make_folder(folder / name)

    def write(position: int) -> None:
        index = indices[position]
        scene = draw_scene(shape=wanted.size, seed=wanted.seed, index=index)
        labels = _instances(scene, wanted.size)
        name = f"synthetic_{wanted.seed:03d}_{index:05d}.png"
        write_png(folder / "images" / name, scene.image)
        write_png(folder / "masks" / name, ((labels > 0) * 255).astype(np.uint8))
        write_png(folder / "instances" / name, labels)
        on_progress()

    _for_all(write, len(indices))


def _instances(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    return draw_instances(scene.outlines, shape=size).astype(np.uint16)


def _for_all(work: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(default_threads()) as pool:
        for _ in pool.map(work, range(count)):
            pass


def _require_empty(folder: Path) -> None:
    refuse_filled_folder(folder, shown=f"{folder}:")


def _require_same(root: Path, facts: Mapping[str, object]) -> None:
    try:
        found = json.loads((root / DATASET_FILE).read_text())
    except (OSError, ValueError):
        found = None
    if found != facts:
        raise ConfigError(
            f"data.root: {root} holds another dataset than data.synthetic describes "
            f"(found {found}, wanted {dict(facts)}); choose another data.root"
        )
