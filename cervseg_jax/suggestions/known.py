"""What is known of the images that a run was trained and scored on: copies of them are no suggestions."""

from pathlib import Path

import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.curation.membership import Member, read_members
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.curation.similarity import perceptual_hash
from cervseg_jax.curation.stored import read_dataset
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.data.scale import scale_pairs
from cervseg_jax.errors import CheckpointError, ConfigError, DataError
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.segmenter import Segmenter
from cervseg_jax.suggestions.embed import Embed
from cervseg_jax.tables import read_csv

MAX_KNOWN = 500
"""Training images whose features are compared with those of the pool; of more, an even selection is taken."""


def dataset_recipe(root: Path) -> Recipe:
    """Returns the settings that a dataset was made with, or the defaults where `prepare` did not make it."""
    try:
        return read_dataset(root).recipe
    except ConfigError:
        return Recipe()


def known_images(run: Path, config: Config, reporter: Reporter) -> list[Member]:
    """Lists the images of a run's dataset, in all splits, and those that the run noted.

    Args:
      run: run folder; its `data.csv` is read where there is one.
      config: its config; `data.root` may have got more images since, or be missing.
      reporter: for progress and warnings.

    Raises:
      DataError: if the manifest is damaged.
      CheckpointError: if `data.csv` is damaged.
    """
    members, root = list[Member](), config.data.root
    if (root / "manifest.csv").is_file():
        with reporter.progress("reading the dataset", len(read_csv(root / "manifest.csv"))) as advance:
            members = read_members(root, on_progress=advance)
    if config.data.train_on_valid:
        members = [member._replace(split="train") if member.split == "valid" else member for member in members]
    present = {(member.split, member.stem) for member in members}
    path = run / "data.csv"
    rows = read_csv(path, columns=("split", "stem", "image_sha256"), error=CheckpointError) if path.is_file() else []
    for row in rows:
        if (row["split"], row["stem"]) not in present:
            digests = frozenset({row["image_sha256"]})
            group = row.get("group") or row["stem"]
            members.append(Member(row["split"], row["stem"], group, digests, _hashes(row.get("image_path", ""))))
    if not any(member.hashes is not None for member in members):
        reporter.warn(
            f"the images that {run.name} was trained on are not here ({root}): files that are equal to them are left "
            "out, but not those that only look like them"
        )
    return members


def _hashes(path: str) -> np.ndarray | None:
    if not path or not Path(path).is_file():
        return None
    try:
        return perceptual_hash(read_image(Path(path)))
    except DataError:
        return None


def annotated_features(segmenter: Segmenter, embed: Embed, config: Config, reporter: Reporter) -> np.ndarray:
    """Returns the features of the training images of a config's dataset, float32 [n, d]; none if it is not here.

    Raises:
      DataError: if files are bad.
    """
    if not config.data.root.is_dir():
        return np.zeros((0, 0), np.float32)
    found = find_pairs(config.data, needed=())[0]
    pairs = found.get("train", []) + (found.get("valid", []) if config.data.train_on_valid else [])
    pairs = pairs[:: max(1, -(-len(pairs) // MAX_KNOWN))]
    if segmenter.scale is not None and pairs:
        pairs, _ = scale_pairs(pairs, config.data, nucleus_px=segmenter.scale.nucleus_px)
    default = 1.0 if segmenter.is_tiled else None
    features = []
    with reporter.progress("features of annotated images", len(pairs)) as advance:
        for pair in pairs:
            image = read_image(pair.image_path, bit_depth=config.data.bit_depth)
            features.append(embed(image, pair.scale if pair.scale is not None else default))
            advance()
    return np.array(features, np.float32) if features else np.zeros((0, 0), np.float32)
