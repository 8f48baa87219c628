"""Fuzzing of everything that reads users' files: images, annotations, reference configs and weights, and slides.

Small files are made, damaged (bits, bytes, blocks, lengths; in JSON also values) and read as the commands read them.
Each must end as a result or as one message. An image that is accepted must have the pixels of the undamaged file, or
those that an independent decoder (Pillow, tifffile) sees in the damaged one. Anything else is WRONG: other exceptions,
crashes, more than 60 s, more than 4 GiB, files outside the output folder, other pixels. Wrong files are kept in
OUT/wrong.

Run: python scripts/fuzz_campaign.py OUT [--images 10000] [--annotations 5000] [--archives 3000] [--slides 500]
  [--seed 0]
Needs the extras `slides` and `formats`, and Pillow.
"""

import argparse
import collections
import copy
import io
import json
import logging
import multiprocessing
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import tifffile  # pyright: ignore[reportMissingImports]
from PIL import Image, ImageOps

from cervseg_jax.console import Reporter
from cervseg_jax.curation.prepare import prepare
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.data.decode import decode_image, decode_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.slides import Slide
from cervseg_jax.errors import CervsegError
from cervseg_jax.files import make_folder
from cervseg_jax.reference.config import import_config
from cervseg_jax.reference.hdf5 import read_layers

HANG_SECONDS = 60
MAX_GIB = 4
JPEG_TOLERANCE = 12
"""Decoders differ by a few levels in a damaged JPEG, where rounding differs."""
FILES_PER_SOURCE = 10
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -1e308, 10**400, 2**63, 0.1, "", "NaN", "../../../outside.png", "/outside.png", "a\0b",
    "x" * 5000, [], [[]], {}, [1], [[1, 2]], [[1e9, 1e9]] * 3, {"type": "Polygon", "coordinates": None}, "\ud800",
)  # fmt: skip
INI = """[model]
model = "TensorflowUNet"
image_width = 512
image_height = 256
base_filters = 16
base_kernels = (9,9)
num_layers = 8
dropout_rate = 0.05
learning_rate = 0.00007
loss = "bce_dice_loss"
metrics = ["dice_coef"]
[train]
epochs = 100
batch_size = 2
image_datapath = "../train/images/"
mask_datapath = "../train/masks/"
[augmentor]
angles = [90, 180, 270,]
"""


def main(arguments: Sequence[str]) -> None:
    """Runs the campaign and prints a table; exits with 1 if any outcome is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    for name, count in (("images", 10000), ("annotations", 5000), ("archives", 3000), ("slides", 500)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    out = make_folder(options.out.absolute())
    (out / "wrong").mkdir()
    rows: dict[str, collections.Counter[str]] = {}
    sources = -(-options.annotations // FILES_PER_SOURCE)
    for title, count, make_trial in (
        ("images", options.images, image_trials),
        (f"sources of {FILES_PER_SOURCE} annotations", sources, annotation_trials),
        ("INI and HDF5", options.archives, archive_trials),
        ("slides", options.slides, slide_trials),
    ):
        rows[title] = run_trials(make_trial, out, count, options.seed)
        for outcome, times in sorted(rows[title].items()):
            print(f"| {title} | {outcome} | {times} |", flush=True)
    left = sorted(path.name for path in out.iterdir() if path.name not in ("wrong", "work"))
    if left:
        print(f"WRONG: files outside the working folder: {left}")
    sys.exit(bool(left) or any(outcome.startswith("WRONG") for row in rows.values() for outcome in row))


Trial = Callable[[Path, np.random.Generator], str]
"""Reads one damaged file in a folder of its own and returns the outcome."""


def run_trials(make_trial: Callable[[], Trial], out: Path, count: int, seed: int) -> collections.Counter[str]:
    """Runs trials in a child process, which is replaced if it crashes, hangs or grows too large."""
    outcomes: collections.Counter[str] = collections.Counter()
    context, index = multiprocessing.get_context("fork"), 0
    while index < count:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(make_trial, out, range(index, count), seed, sender))
        child.start()
        sender.close()
        while index < count:
            outcome = ""
            try:
                if receiver.poll(HANG_SECONDS):
                    outcome = receiver.recv()
                else:
                    outcome = f"WRONG: no end after {HANG_SECONDS} s"
            except EOFError:
                child.join()
                outcome = f"WRONG: the process ended with {child.exitcode}"
            outcomes[outcome.partition(" @")[0]] += 1
            folder = out / "work" / f"{make_trial.__name__}-{index}"
            if outcome.startswith("WRONG"):
                print(f"{folder.name}, seed {seed}: {outcome}", file=sys.stderr, flush=True)
                if folder.exists():
                    shutil.copytree(folder, out / "wrong" / folder.name, symlinks=True)
            shutil.rmtree(folder, ignore_errors=True)
            index += 1
            if outcome.startswith(("WRONG: no end", "WRONG: the process", "WRONG: more than")):
                break
        child.kill()
        child.join()
    return outcomes


def _child(make_trial: Callable[[], Trial], out: Path, indices: range, seed: int, sender: Connection) -> None:
    logging.disable(logging.ERROR)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 * MAX_GIB * 2**30, hard))
    trial = make_trial()
    for index in indices:
        folder = out / "work" / f"{make_trial.__name__}-{index}"
        folder.mkdir(parents=True)
        try:
            outcome = trial(folder, np.random.default_rng((seed, index)))
        except CervsegError as error:
            outcome = "one message" if str(error) and "\0" not in str(error) else f"WRONG: message {error!r}"
        except BaseException as error:  # noqa: BLE001 (any other type is a failure)
            outcome = f"WRONG: {type(error).__name__} @ {error}"
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MAX_GIB * 2**20:
            outcome = f"WRONG: more than {MAX_GIB} GiB"
        sender.send(outcome)


def damaged(data: bytes, rng: np.random.Generator, *, other: bytes = b"") -> bytes:
    """Returns a copy with one or a few faults."""
    changed = bytearray(data)
    for _ in range(int(rng.geometric(0.6))):
        if not changed:
            break
        # A third of the faults hit the first bytes, where headers are.
        at = int(rng.integers(min(len(changed), 200) if rng.integers(3) == 0 else len(changed)))
        match int(rng.integers(9)):
            case 0:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at : at + 4] = rng.bytes(4)
            case 2:
                del changed[at : at + int(rng.integers(1, 30))]
            case 3:
                changed[at:at] = rng.bytes(3)
            case 4:
                del changed[max(at, 4) :]
            case 5:
                changed[at : at + 64] = bytes(len(changed[at : at + 64]))
            case 6:
                changed[at : at + 4] = int(rng.choice([0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
            case 7:
                changed[at : at + 64] = other[at : at + 64]
            case _:
                changed[at:at] = changed[at : at + 200]
    return bytes(changed)


def _photo(*, seed: int = 7, size: tuple[int, int] = (48, 70)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.clip(cv2.GaussianBlur(rng.normal(size=(*size, 3)), (0, 0), 3) * 300 + 190, 1, 255).astype(np.uint8)
    for _ in range(4):
        cv2.circle(image, tuple(int(v) for v in rng.integers(8, min(size) - 8, 2)), 7, (120, 60, 110), -1)
    return image


def _encoded_images() -> dict[str, bytes]:
    photo = _photo()
    gray = photo[..., 0]
    pictures = {
        "png": (Image.fromarray(photo), {"format": "PNG"}),
        "png palette": (Image.fromarray(photo).quantize(16), {"format": "PNG"}),
        "png gray 16": (Image.fromarray(gray.astype(np.uint16) * 257), {"format": "PNG"}),
        "png alpha": (Image.fromarray(np.dstack([photo, gray])), {"format": "PNG"}),
        "jpg": (Image.fromarray(photo), {"format": "JPEG", "quality": 90}),
        "jpg progressive": (Image.fromarray(photo), {"format": "JPEG", "progressive": True}),
        "jpg gray": (Image.fromarray(gray), {"format": "JPEG"}),
        "bmp": (Image.fromarray(photo), {"format": "BMP"}),
        "webp": (Image.fromarray(photo), {"format": "WEBP", "lossless": True}),
        "webp lossy": (Image.fromarray(photo), {"format": "WEBP", "quality": 90}),
    }
    files = {}
    for name, (picture, settings) in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, **settings)
        files[name] = buffer.getvalue()
    for codec in (None, "zlib", "lzw", "packbits", "jpeg", "zstd", "jpeg2000", "webp", "png"):
        layouts: tuple[dict[str, Any], ...] = ({"rowsperstrip": 16}, {"tile": (32, 32)})
        for layout in layouts:
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, photo, photometric="rgb", compression=codec, **layout)
            files[f"tif {codec} {next(iter(layout))}"] = buffer.getvalue()
    return files


def image_trials() -> Trial:
    """Images, masks and label maps in all formats."""
    files = _encoded_images()
    names = list(files)
    pristine = {name: decode_image(data, source=Path(name)) for name, data in files.items()}

    def trial(folder: Path, rng: np.random.Generator) -> str:
        name, other = (names[int(index)] for index in rng.integers(len(names), size=2))
        data = damaged(files[name], rng, other=files[other])
        path = folder / f"x.{name.partition(' ')[0]}"
        path.write_bytes(data)
        for read in (lambda: decode_mask(data, source=path), lambda: read_labels(path)):
            try:
                read()
            except CervsegError:
                pass
        pixels = decode_image(data, source=path)
        return judge_pixels(pixels, pristine[name], data, name)

    return trial


def judge_pixels(pixels: np.ndarray, pristine: np.ndarray, data: bytes, name: str) -> str:
    """Compares accepted pixels with the undamaged ones, and with what an independent decoder sees."""
    if np.array_equal(pixels, pristine):
        return "undamaged pixels"
    seen = _independent(data, name)
    if seen is None:
        return f"WRONG: {name}: pixels where another decoder refuses"
    if seen.shape != pixels.shape:
        return f"WRONG: {name}: size {pixels.shape}, another decoder {seen.shape}"
    difference = int(np.abs(seen.astype(int) - pixels).max())
    if difference > (JPEG_TOLERANCE if "jpg" in name or "jpeg" in name or "lossy" in name else 1):
        return f"WRONG: {name}: pixels differ from another decoder @ by up to {difference}"
    return "pixels as another decoder sees them"


def _independent(data: bytes, name: str) -> np.ndarray | None:
    """Returns uint8 RGB as Pillow or tifffile decode it, or None."""
    try:
        if name.startswith("tif"):
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page: Any = file.pages[0]
                values = page.asarray()
                if 262 in page.tags and page.photometric == 0:  # white is zero
                    values = np.iinfo(values.dtype).max - values
        else:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                if upright.mode in ("P", "LA", "RGBA", "PA") or "transparency" in upright.info:
                    white = Image.new("RGBA", upright.size, "white")
                    upright = Image.alpha_composite(white, upright.convert("RGBA"))
                values = np.asarray(upright if upright.mode.startswith("I;16") else upright.convert("RGB"))
    except Exception:  # noqa: BLE001 (decoders raise all kinds)
        return None
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values[..., :3]


def annotation_trials() -> Trial:
    """Datasets of LabelMe, GeoJSON or COCO files, of which two are good; `prepare` must keep these as they are."""
    photo = _photo()
    square = [[10, 10], [30, 10.5], [30, 30], [10, 30]]
    hole = [[15, 15], [15, 25], [25, 25], [25, 15], [15, 15]]
    shape = {"label": "nucleus", "points": square, "group_id": 1, "shape_type": "polygon", "flags": {}}
    size = {"imageHeight": photo.shape[0], "imageWidth": photo.shape[1]}
    polygon = {"type": "Polygon", "coordinates": [[*square, square[0]], hole]}
    properties = {"objectType": "detection", "classification": {"name": "Tumor: Ki67", "color": [1, 2, 3]}}

    def make(kind: str, name: str) -> Any:
        if kind == "labelme":
            shapes = [shape, shape | {"shape_type": "circle", "points": [[50, 20], [55, 20]], "group_id": None}]
            return {"version": "5", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **size}
        if kind == "geojson":
            apart = {"type": "Polygon", "coordinates": [[[x + 32, y] for x, y in (*square, square[0])]]}
            cell = {"type": "Feature", "id": "a", "geometry": polygon, "nucleusGeometry": apart}
            return {"type": "FeatureCollection", "features": [
                {"type": "Feature", "id": "b", "geometry": polygon, "properties": properties},
                cell | {"properties": {"objectType": "cell"}},
            ]}  # fmt: skip
        runs = {"size": [48, 70], "counts": [100, 20, 48 * 70 - 120]}
        entries = [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": runs}]
        entries += [{"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[float(v) for p in square for v in p]]}]
        images = [{"id": 1, "file_name": name, "height": 48, "width": 70}]
        return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "nucleus"}]}

    def trial(folder: Path, rng: np.random.Generator) -> str:
        kind = ("labelme", "geojson", "coco")[int(rng.integers(3))]
        source = folder / "source"
        (source / "images").mkdir(parents=True)
        for index in range(FILES_PER_SOURCE if kind != "coco" else 1):
            name = f"i{index}.png"
            cv2.imencode(".png", _photo(seed=index))[1].tofile(source / "images" / name)
            document = make(kind, name)
            is_good = index < 2 and kind != "coco"
            text = json.dumps(document).encode() if is_good else damaged_json(document, rng)
            side = source / (kind if kind != "coco" else "annotations")
            side.mkdir(exist_ok=True)
            (side / f"i{index}.{'geojson' if kind == 'geojson' else 'json'}").write_bytes(text)
        recipe = Recipe(on_bad_file="skip", keep_near_duplicates_together=False, valid=0.1, test=0.0)
        progress = Reporter(quiet=True).progress
        try:
            made = prepare(source, folder / "dataset", recipe, progress=progress, is_resumed=lambda: None)
        finally:
            left = {path.name for path in folder.iterdir()} - {"source", "dataset"}
            if left:
                return f"WRONG: files outside the dataset @ {left}"  # noqa: B012 (replaces the error)
        good = [(r.num_nuclei, r.foreground) for r in made.records if r.stem in ("i0", "i1")]
        if kind != "coco" and (len(good) != 2 or good[0] != good[1] or good[0][0] != 2):
            return f"WRONG: good files were read otherwise @ {good}"
        return "dataset" if not made.problems else "dataset, bad files named"

    return trial


def damaged_json(document: Any, rng: np.random.Generator) -> bytes:
    """Returns JSON text with bad values, bad bytes or both."""
    document = json.loads(json.dumps(document))
    for _ in range(int(rng.integers(0, 4))):
        places = list(_places(document))
        holder, key = places[int(rng.integers(len(places)))]
        value = copy.deepcopy(NASTY[int(rng.integers(len(NASTY)))])
        if rng.integers(4) == 0 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = value
    text = json.dumps(document).encode()
    return damaged(text, rng) if rng.integers(2) else text


def _places(value: Any) -> Any:
    """Yields every list or object of a document with each of its keys."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def archive_trials() -> Trial:
    """Configs and Keras 2 weights of the reference implementation."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["layer_names"] = [b"conv2d", b"batch_normalization"]
        for layer, names in (("conv2d", ("kernel", "bias")), ("batch_normalization", ("gamma", "beta"))):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in names]
            for name in names:
                group.create_dataset(f"{layer}/{name}:0", data=np.ones((3, 3, 3, 8), np.float32), compression="gzip")
    weights = buffer.getvalue()

    def trial(folder: Path, rng: np.random.Generator) -> str:
        is_config = bool(rng.integers(2))
        path = folder / ("a.config" if is_config else "a.h5")
        path.write_bytes(damaged(INI.encode() if is_config else weights, rng, other=weights))
        if is_config:
            import_config(path)
            return "config"
        read_layers(path)
        return "weights"

    return trial


def slide_trials() -> Trial:
    """Pyramids of tiles, read window by window."""
    photo = _photo(size=(300, 420))
    files = {}
    for codec in (None, "zlib", "lzw", "jpeg", "jpeg2000"):
        for name, image in (("rgb", photo), ("gray", photo[..., 0].copy())):
            buffer = io.BytesIO()
            with tifffile.TiffWriter(buffer, bigtiff=codec == "zlib") as writer:
                settings: dict[str, Any] = {
                    "tile": (128, 128),
                    "compression": codec,
                    "photometric": "rgb" if name == "rgb" else None,
                }
                writer.write(image, subifds=1, resolution=(40000, 40000), resolutionunit=3, **settings)
                writer.write(image[::2, ::2], subfiletype=1, **settings)
            files[f"tif {codec} {name}"] = buffer.getvalue()
    names = list(files)

    def read(path: Path) -> np.ndarray:
        slide = Slide(path)
        try:
            rows = range(0, min(slide.shape[0], 2000), 150)
            columns = range(0, min(slide.shape[1], 2000), 150)
            return np.vstack([np.hstack([slide[r : r + 150, c : c + 150] for c in columns]) for r in rows])
        finally:
            slide.close()

    pristine: dict[str, np.ndarray] = {}

    def trial(folder: Path, rng: np.random.Generator) -> str:
        name, other = (names[int(index)] for index in rng.integers(len(names), size=2))
        path = folder / "x.tif"
        if name not in pristine:
            path.write_bytes(files[name])
            pristine[name] = read(path)
        data = damaged(files[name], rng, other=files[other])
        path.write_bytes(data)
        return judge_pixels(read(path), pristine[name], data, name)

    return trial


if __name__ == "__main__":
    main(sys.argv[1:])
