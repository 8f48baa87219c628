"""The input images of `infer` and the names of their results."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.console import Reporter
from cervseg_jax.data.pairs import scan_folder
from cervseg_jax.data.pixel_size import pixel_size_um
from cervseg_jax.data.slide_dicom import DICOM_SUFFIX, is_dicom_readable
from cervseg_jax.data.slide_tiff import SCANNER_SUFFIXES, TIFF_SUFFIXES
from cervseg_jax.data.slide_zarr import ZARR_SUFFIX, is_slide_folder, is_zarr
from cervseg_jax.data.slides import slides_in
from cervseg_jax.errors import ConfigError, first_few
from cervseg_jax.extras import install_command
from cervseg_jax.files import temporary_name
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.storage.cached import MAX_REQUESTS


class Job(NamedTuple):
    """An input file and the name of its results."""

    path: Path
    name: str


def plan_jobs(
    inputs: Sequence[Path], *, with_slides: bool = False, on_left_out: Callable[[str], None] = lambda message: None
) -> list[Job]:
    """Lists the images and gives each a unique name.

    The name is the file's stem, without a further `.ome`, or the name of a folder of DICOM files; where two files share
    one, it is the whole file name with `_` for the dot, then numbered.

    Args:
      inputs: files and folders; a folder may be a slide, or hold slides that are folders.
      with_slides: take slides in folders as well, for predictions in tiles.
      on_left_out: called with a message for each folder that has other files besides images.

    Returns:
      Jobs in order, each file once.

    Raises:
      ConfigError: if an input is missing or a folder holds no images.
    """
    paths: list[Path] = []
    for given in map(as_path, inputs):
        if is_zarr(given):
            paths.append(given)
        elif given.is_dir():
            paths += _images_in(given, with_slides=with_slides, on_left_out=on_left_out)
        elif given.exists():
            paths.append(given)
        else:
            raise ConfigError(f"--images: no such file or folder: {given}")
    by_place = {(path.parent.resolve(), path.name): path.absolute() for path in reversed(paths)}  # `a` and `b/../a`
    paths = list(reversed(by_place.values()))
    stems = Counter(map(_stem, paths))
    jobs, taken = [], {stem for stem, count in stems.items() if count == 1}
    for path in paths:
        name = _stem(path)
        if stems[name] > 1:
            base = name = path.name.replace(".", "_")
            suffix = 2
            while name in taken:
                name = f"{base}_{suffix}"
                suffix += 1
            taken.add(name)
        jobs.append(Job(path, name))
    return jobs


def _stem(path: Path) -> str:
    if path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
        return path.name
    return path.stem.removesuffix(".ome") or path.stem


def _images_in(folder: Path, *, with_slides: bool, on_left_out: Callable[[str], None]) -> list[Path]:
    scan = scan_folder(folder, with_slides=with_slides)
    if with_slides:
        slides = slides_in(folder)
        if slides == [folder] or any(
            slide.parent == folder and slide.suffix.lower() == DICOM_SUFFIX for slide in slides
        ):
            scan.left_out.pop(DICOM_SUFFIX, None)
        names = {slide.name for slide in slides} | {slide.parent.name for slide in slides}
        scan = scan._replace(
            images=sorted([*scan.images, *slides]), folders=[name for name in scan.folders if name not in names]
        )
    folders = f"its folders ({first_few(scan.folders)})" if scan.folders else ""
    left_out = ", ".join(filter(None, (scan.left_out_text(), folders)))
    left_out = f"left out: {left_out}" if left_out else ""
    has_zarr = any(name.lower().endswith(ZARR_SUFFIX) for name in scan.folders)
    if not with_slides and (has_zarr or not (SCANNER_SUFFIXES | {DICOM_SUFFIX}).isdisjoint(scan.left_out)):
        left_out += " (slides are read with --tiled)"
    elif DICOM_SUFFIX in scan.left_out and not is_dicom_readable():
        left_out += f" (DICOM slides need an extra: {install_command('dicom')})"
    if not scan.images:
        raise ConfigError(f"--images: {folder} holds no images{'; ' if left_out else ''}{left_out}")
    if left_out:
        on_left_out(f"{folder}: {left_out}")
    return scan.images


def stated_pixel_sizes(jobs: Sequence[Job], reporter: Reporter) -> dict[Job, float]:
    """Returns the pixel sizes that TIFF files and slides state, and tells the user.

    Args:
      jobs: the images.
      reporter: for messages.

    Returns:
      Micrometers per pixel by image; empty unless all images state it, because tables need one unit.
    """
    suffixes = SCANNER_SUFFIXES | TIFF_SUFFIXES | {DICOM_SUFFIX}
    able = [job for job in jobs if job.path.suffix.lower() in suffixes or is_slide_folder(job.path)]
    with ThreadPoolExecutor(MAX_REQUESTS if any(isinstance(job.path, Address) for job in able) else 1) as pool:
        sizes = pool.map(lambda job: pixel_size_um(job.path), able)
        stated = {job: size for job, size in zip(able, sizes, strict=True) if size is not None}
    if stated and len(stated) < len(jobs):
        reporter.warn(
            f"only {len(stated)} of {len(jobs)} images state a pixel size; it is not used, --mpp sets one for all"
        )
        return {}
    if stated:
        least, most = min(stated.values()), max(stated.values())
        shown = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        reporter.info(f"pixel size: {shown} micrometers, as the files state it; --mpp sets another one")
    return stated


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
    if isinstance(out, Address) and out.is_on_web_server:
        raise ConfigError(f"--out: {out} is on a web server, where files cannot be written; use a folder or a bucket")
    input_folders = {place.resolve() for job in jobs for place in (job.path.parent, job.path)}
    for folder in (out, *(out / name for name in outputs)):
        if folder.resolve() in input_folders:
            raise ConfigError(f"--out: {folder} is a folder of input images; results need a folder of their own")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out: {folder} is a file")
    for name in outputs:
        if not overwrite and (out / name).is_dir() and any((out / name).iterdir()):
            raise ConfigError(
                f"--out: {out / name} holds results already; choose another folder, or add --overwrite, or --resume to "
                "continue an interrupted call"
            )


def require_writable(folder: Path) -> None:
    """Makes sure that files can be written, by writing one.

    Raises:
      ConfigError: naming the folder.
    """
    if isinstance(folder, Address):
        return  # the first note tells, and a probe would stay in the bucket if this process were killed
    probe = folder / temporary_name("probe")
    try:
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from None
