"""Which split of an existing dataset new images belong to: none if a copy or their source is held out."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.curation.geometry import Geometry, cut_tiles
from cervseg_jax.curation.similarity import join_groups, near_pairs, perceptual_hash
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.manifest import read_manifest
from cervseg_jax.data.pairs import images_by_stem
from cervseg_jax.errors import DataError
from cervseg_jax.runtime.threads import map_files


class Member(NamedTuple):
    """An image of a dataset."""

    split: str
    stem: str
    group: str
    digests: frozenset[str]
    """SHA-256 of its file and of the source file, as far as they are known."""
    hashes: np.ndarray | None
    """Perceptual hashes, see `perceptual_hash`; None if the file is not here."""

    @property
    def name(self) -> str:
        """Returns split and stem."""
        return f"{self.split}/{self.stem}"


class NewImage(NamedTuple):
    """An image that may be added to a dataset."""

    group: str
    digests: frozenset[str]
    """SHA-256 of its file and of the file that it was cut from."""
    hashes: np.ndarray
    """Perceptual hashes, uint64 [k, 8]; see `hashes_of`."""


class Place(NamedTuple):
    """What a dataset has of a new image."""

    group: str
    """Group that it belongs to."""
    copy: Member | None
    """The member that is the same file."""
    alike: Member | None
    """A member that looks like it."""
    held_out: Member | None
    """A member of valid or test that is of the same group, or a near-duplicate of something in it."""

    @property
    def reason(self) -> str | None:
        """Returns why the image cannot be added to train, in words; None if it can."""
        if self.copy is not None and self.copy.split != "train":
            return f"is {self.copy.name} of the dataset"
        if self.held_out is None:
            return None
        if self.alike is not None and self.alike.split != "train":
            return f"looks like {self.alike.name} of the dataset, perhaps turned or mirrored"
        return (
            f"is by its name of the source {self.held_out.group!r}, which the dataset has in {self.held_out.split} "
            "(rename it if that is wrong)"
        )


def read_members(dataset: Path, *, on_progress: Callable[[], object] = lambda: None) -> list[Member]:
    """Lists the images of a dataset that has a manifest, and computes their perceptual hashes.

    Args:
      dataset: folder with `manifest.csv`.
      on_progress: called after each image.

    Raises:
      DataError: if the manifest is missing or damaged.
    """
    rows = read_manifest(dataset / "manifest.csv")
    folders = {split: dataset / split / "images" for split in {row["split"] for row in rows}}
    files = {split: images_by_stem(folder) if folder.is_dir() else {} for split, folder in folders.items()}

    def member(row: dict[str, str]) -> Member:
        digests = {row.get("source_sha256", ""), row.get("image_sha256", "")} - {""}
        try:
            hashes = perceptual_hash(read_image(files[row["split"]][row["stem"]]))
        except (KeyError, DataError):
            hashes = None
        return Member(row["split"], row["stem"], row["group"], frozenset(digests), hashes)

    return map_files(member, rows, on_progress=on_progress)


def hashes_of(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Returns the perceptual hashes of an image as it is, and as a dataset of this geometry would hold it.

    Args:
      image: uint8 [h, w, 3].
      geometry: padding, size and tiles of the dataset.

    Returns:
      uint64 [k, 8], one row for the image and one for each tile.
    """
    views = [image] if geometry == Geometry() else [image, *(tile.image for tile in cut_tiles(image, None, geometry))]
    return np.stack([perceptual_hash(view) for view in views])


def find_places(images: Sequence[NewImage], members: Sequence[Member]) -> list[Place]:
    """Compares new images with a dataset, and with each other.

    Groups are joined as `prepare` joins them: images that look alike are of one group, also through a third image.

    Args:
      images: the new images.
      members: the dataset.

    Returns:
      The place of each new image, in order.
    """
    known = [member for member in members if member.hashes is not None]
    rows = [(index, hashes) for index, image in enumerate(images) for hashes in image.hashes]
    stacked = np.array([hashes for _, hashes in rows] + [member.hashes for member in known], np.uint64).reshape(-1, 8)
    first_member = len(rows)
    names = [image.group for image in images] + [member.group for member in members]
    position = {id(member): len(images) + index for index, member in enumerate(members)}
    pairs, alike = [], dict[int, Member]()
    for one, other in near_pairs(stacked):
        if one >= first_member:
            continue  # two members: `audit` reports them
        index = rows[one][0]
        if other >= first_member:
            member = known[other - first_member]
            if index not in alike or member.split != "train":
                alike[index] = member
            pairs.append((index, position[id(member)]))
        elif rows[other][0] != index:
            pairs.append((index, rows[other][0]))
    joined = join_groups(names, pairs)
    of_group: dict[str, list[Member]] = defaultdict(list)
    for member, group in zip(members, joined[len(images) :], strict=True):
        of_group[group].append(member)
    copies = {digest: member for member in members for digest in member.digests}
    places = []
    for index, image in enumerate(images):
        relatives = of_group[joined[index]]
        held_out = next((member for member in relatives if member.split != "train"), None)
        group = next((member.group for member in relatives if member.split == "train"), joined[index])
        copy = next((copies[digest] for digest in sorted(image.digests) if digest in copies), None)
        places.append(Place(group, copy, alike.get(index), held_out))
    return places
