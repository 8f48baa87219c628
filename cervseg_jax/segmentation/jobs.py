"""The input images of `infer` and the names of their results."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.data.pairs import list_images
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import refuse_bucket


class Job(NamedTuple):
    """An input file and the name of its results."""

    path: Path
    name: str


def plan_jobs(inputs: Sequence[Path]) -> list[Job]:
    """Lists the images and gives each a unique name.

    The name is the file's stem; where two files share one, it is the whole file name with `_` for the dot, then
    numbered.

    Args:
      inputs: files and folders.

    Returns:
      Jobs in order, each file once.

    Raises:
      ConfigError: if an input is missing or a folder holds no images.
    """
    paths: list[Path] = []
    for given in inputs:
        refuse_bucket(given)
        if given.is_dir():
            found = list_images(given)
            if not found:
                raise ConfigError(f"--images: {given} holds no images")
            paths += found
        elif given.exists():
            paths.append(given)
        else:
            raise ConfigError(f"--images: no such file or folder: {given}")
    paths = list(dict.fromkeys(path.absolute() for path in paths))
    stems = Counter(path.stem for path in paths)
    jobs, taken = [], {stem for stem, count in stems.items() if count == 1}
    for path in paths:
        name = path.stem
        if stems[name] > 1:
            base = name = path.name.replace(".", "_")
            suffix = 2
            while name in taken:
                name = f"{base}_{suffix}"
                suffix += 1
            taken.add(name)
        jobs.append(Job(path, name))
    return jobs


def require_safe_output(out: Path, outputs: Sequence[str], jobs: Sequence[Job], *, overwrite: bool) -> None:
    """Refuses a folder whose files would replace input images, or earlier results.

    Args:
      out: folder for the results, with a folder per output.
      outputs: names of these.
      jobs: the input images.
      overwrite: accept earlier results.

    Raises:
      ConfigError: naming the folder.
    """
    input_folders = {job.path.parent.resolve() for job in jobs}
    for folder in (out, *(out / name for name in outputs)):
        if folder.resolve() in input_folders:
            raise ConfigError(f"--out: {folder} is a folder of input images; results need a folder of their own")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out: {folder} is a file")
    for name in outputs:
        if not overwrite and (out / name).is_dir() and any((out / name).iterdir()):
            raise ConfigError(f"--out: {out / name} holds results already; choose another folder, or add --overwrite")
