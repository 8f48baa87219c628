"""Opens the outputs of `infer` with the programs that they are meant for; counts and areas must equal nuclei.csv.

| output | opened by |
|---|---|
| instances | tifffile or Pillow |
| nuclei.csv | Python's csv |
| labelme | labelme's own `LabelFile`; outlines filled by Pillow |
| coco.json | pycocotools: areas of its masks |
| rois | ImageJ's `RoiDecoder`, without a display |
| geojson | QuPath's documented format; shapely: validity and areas |
| QuPath script | Groovy: the script of `.readme/nuclei.md` is run on stand-ins for QuPath's classes |

Programs that are missing are named and left out. They may be in another environment: `--python`.

Run: python scripts/check_clients.py OUT [--run RUN --images PATH] [--python PYTHON] [--imagej ij.jar]
  [--groovy JAR:JAR...]
OUT is a folder that `infer --output all` wrote; a new folder is filled, by RUN on PATH, or by a small run on drawn
nuclei that is trained first (a minute on two CPU cores).

    pip install labelme pycocotools shapely tifffile; apt install imagej groovy default-jdk-headless
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Areas = dict[str, list[float]]
"""Areas of the nuclei of each image in pixels, in the order of their labels."""

TRAINING = """
model:
  name: unet
  image_size: [64, 64]
  args: {base_filters: 8, levels: 3}
  heads: [mask, boundary]
data: {root: data}
train: {epochs: 3, batch_size: 4, steps_per_epoch: 30, learning_rate: 3e-3}
"""
JAVA = """
import java.io.*; import java.util.zip.*;
public class ReadRois {
  public static void main(String[] paths) throws Exception {
    for (String path : paths) try (ZipInputStream zip = new ZipInputStream(new FileInputStream(path))) {
      for (ZipEntry entry; (entry = zip.getNextEntry()) != null; ) {
        ij.gui.Roi roi = ij.io.RoiDecoder.openFromByteArray(zip.readAllBytes());
        System.out.println(path + "\\t" + roi.getContainedPoints().length);
      }
    }
  }
}
"""
GROOVY = """
class GeneralTools { static stripExtension(name) { name.contains('.') ? name[0..<name.lastIndexOf('.')] : name } }
class Hierarchy { def objects = []; def addObjects(more) { objects.addAll(more) } }
class Data { def hierarchy = new Hierarchy(); def getHierarchy() { hierarchy } }
class Entry {
  String name; def data = new Data(); boolean saved = false
  def getImageName() { name }
  def readImageData() { data }
  def saveImageData(written) { saved = written.is(data) }
}
def entries = new File(args[1]).readLines().collect { new Entry(name: it) }
def reader = [readObjects: { new groovy.json.JsonSlurper().parse(it).features }]
def binding = new Binding(qupath: [lib: [io: [PathIO: reader]]], GeneralTools: GeneralTools,
                          getProject: { -> [getImageList: { -> entries }] })
new GroovyShell(this.class.classLoader, binding).evaluate(new File(args[0]).text)
entries.each { println it.name + '\\t' + it.data.hierarchy.objects.size() + '\\t' + it.saved }
"""


class Missing(Exception):
    """The client is not installed."""


def main(arguments: Sequence[str]) -> None:
    """Makes the files where needed, checks them and prints a table; exits with 1 if any client sees something else."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", type=Path, help="run folder; default: a small one is trained")
    parser.add_argument("--images", type=Path, help="images for --run")
    parser.add_argument("--python", help="Python of an environment with the clients")
    parser.add_argument("--imagej", default="/usr/share/java/ij.jar", help="ImageJ's JAR file")
    parser.add_argument("--groovy", default="/usr/share/java/groovy-all.jar", help="class path of Groovy")
    options = parser.parse_args(arguments)
    if (options.run is None) != (options.images is None):
        parser.error("--run and --images belong together")
    if not (options.out / "images.csv").is_file():
        make_files(options.out, options.run, options.images)
    if options.python:
        command = [options.python, __file__, str(options.out), "--imagej", options.imagej, "--groovy", options.groovy]
        sys.exit(subprocess.run(command).returncode)
    files = files_by_name(options.out)
    expected = measured_areas(options.out)
    print(f"{len(files)} images, {sum(map(len, expected.values()))} nuclei\n| file | client | outcome |\n|---|---|---|")
    outcomes = []
    for file, client, read in (
        ("instances", "tifffile, Pillow", lambda: areas_of_instances(options.out, files)),
        ("labelme", "labelme.LabelFile", lambda: areas_of_labelme(options.out, files)),
        ("coco.json", "pycocotools", lambda: areas_of_coco(options.out, files)),
        ("rois", "ImageJ", lambda: areas_of_rois(options.out, files, Path(options.imagej))),
        ("geojson", "QuPath's format", lambda: areas_of_geojson(options.out, files, with_shapely=False)),
        ("geojson", "shapely", lambda: areas_of_geojson(options.out, files, with_shapely=True)),
        ("QuPath script", "Groovy", lambda: loaded_by_script(options.out, files, expected, options.groovy)),
    ):
        outcomes.append(outcome(read, expected))
        print(f"| {file} | {client} | {outcomes[-1]} |", flush=True)
    sys.exit(any(text.startswith("WRONG") for text in outcomes))


def make_files(out: Path, run: Path | None, images: Path | None) -> None:
    """Calls `infer`, with a new run if none is given."""
    program = str(Path(sys.executable).with_name("cervseg-jax"))
    if run is None or images is None:
        folder = out.absolute().with_name(f"{out.name}-run")
        folder.mkdir(parents=True)
        (folder / "small.yaml").write_text(TRAINING)
        subprocess.run([program, "synth", "src", "--images", "16", "--size", "96", "96"], cwd=folder, check=True)
        subprocess.run([program, "prepare", "src", "--out", "data"], cwd=folder, check=True)
        subprocess.run([program, "train", "small.yaml", "--run-dir", "run"], cwd=folder, check=True)
        run, images = folder / "run", folder / "src" / "images"
    command = [program, "infer", str(run), "--images", str(images), "--out", str(out), "--output", "all", "--tiled"]
    subprocess.run(command, check=True)


def files_by_name(out: Path) -> dict[str, Path]:
    """Returns the image file of each result."""
    with (out / "images.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: Path(row["file"]) for row in csv.DictReader(file)}


def measured_areas(out: Path) -> Areas:
    """Returns the areas in nuclei.csv; an image without nuclei has an empty list."""
    areas: Areas = {name: [] for name in files_by_name(out)}
    with (out / "nuclei.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            areas[row["image"]].append(float(row["area_px"]))
    return areas


def outcome(read: Callable[[], Areas], expected: Areas) -> str:
    """Returns "equal" with counts, "not installed", or what is wrong."""
    chatter = io.StringIO()  # pycocotools and labelme report their progress
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            actual = read()
    except Missing as error:
        return f"not installed: {error}"
    except Exception as error:  # noqa: BLE001 (clients raise all kinds)
        return f"WRONG: {type(error).__name__}: {str(error)[:200]}"
    for name in expected.keys() | actual.keys():
        found, wanted = actual.get(name, []), expected.get(name, [])
        if len(found) != len(wanted):
            return f"WRONG: {name}: {len(found)} nuclei instead of {len(wanted)}"
        for label, (area, other) in enumerate(zip(found, wanted, strict=True), start=1):
            if area != other:
                return f"WRONG: {name}: nucleus {label} has {area:g} px instead of {other:g}"
    return f"{sum(map(len, actual.values()))} nuclei, all areas equal"


def _imported(name: str) -> Any:
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise Missing(f"{name} ({error})") from None


def areas_of_instances(out: Path, files: Mapping[str, Path]) -> Areas:
    """Counts the pixels of each label."""
    areas = {}
    for name in files:
        path = out / "instances" / f"{name}.tif"
        if path.is_file():
            labels = _imported("tifffile").imread(path)
        else:
            labels = np.asarray(_imported("PIL.Image").open(path.with_suffix(".png")))
        values, counts = np.unique(labels, return_counts=True)
        areas[name] = counts[values > 0].tolist()
    return areas


def areas_of_labelme(out: Path, files: Mapping[str, Path]) -> Areas:
    """Loads each file with its image; shapes of one group are one nucleus, whose outlines are summed."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    loader = _imported("labelme").LabelFile
    areas: Areas = {}
    for name, image in files.items():
        loaded = loader(str(out / "labelme" / f"{name}.json"))
        if (out / "labelme" / loaded.image_path).resolve() != image.resolve():
            raise ValueError(f"{name}: imagePath leads to {loaded.image_path}")
        groups: dict[Any, float] = {}
        for index, shape in enumerate(loaded.shapes):
            key = index if shape["group_id"] is None else f"group {shape['group_id']}"
            mask = shape.get("mask")
            area = abs(ring_area(shape["points"])) if mask is None else float(np.count_nonzero(mask))
            groups[key] = groups.get(key, 0) + area
        areas[name] = list(groups.values())
    return areas


def areas_of_coco(out: Path, files: Mapping[str, Path]) -> Areas:
    """Decodes each mask and checks the stated area and box."""
    coco = _imported("pycocotools.coco").COCO(str(out / "coco.json"))
    masks = _imported("pycocotools.mask")
    names = dict(zip(coco.getImgIds(), files, strict=True))
    areas: Areas = {name: [] for name in files}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        encoded = coco.annToRLE(annotation)
        area = float(masks.area(encoded))
        if area != annotation["area"] or masks.toBbox(encoded).tolist() != annotation["bbox"]:
            raise ValueError(f"annotation {annotation['id']}: area or box do not fit its mask")
        if coco.loadImgs(annotation["image_id"])[0]["file_name"] != files[names[annotation["image_id"]]].name:
            raise ValueError(f"annotation {annotation['id']}: another image")
        areas[names[annotation["image_id"]]].append(area)
    return areas


def areas_of_rois(out: Path, files: Mapping[str, Path], jar: Path) -> Areas:
    """Counts the pixels within each region as ImageJ does; an image without nuclei has no archive."""
    if not jar.is_file() or shutil.which("java") is None:
        raise Missing(f"{jar}, or java")
    archives = {str(out / "rois" / f"{name}.zip"): name for name in files}
    given = [path for path in archives if Path(path).is_file()]
    areas: Areas = {name: [] for name in files}
    for line in run_java(JAVA, "ReadRois.java", str(jar), given):
        path, area = line.split("\t")
        areas[archives[path]].append(float(area))
    return areas


def run_java(program: str, name: str, class_path: str, arguments: Sequence[str]) -> list[str]:
    """Runs a Java program from its source and returns its lines."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / name
        source.write_text(program)
        command = ["java", "-Djava.awt.headless=true", "-cp", class_path, str(source), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(ended.stderr[-300:])
    return ended.stdout.splitlines()


def ring_area(ring: Sequence[Sequence[float]]) -> float:
    """Returns the area of a ring, closed or not; negative for one of the two directions."""
    closed = [*ring, ring[0]]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(closed)) / 2


def areas_of_geojson(out: Path, files: Mapping[str, Path], *, with_shapely: bool) -> Areas:
    """Checks each document by QuPath's documentation, and the areas of its outlines minus their holes."""
    shapely = _imported("shapely.geometry") if with_shapely else None
    areas: Areas = {}
    for name in files:
        document = json.loads((out / "geojson" / f"{name}.geojson").read_text(encoding="utf-8"))
        check_features(document)
        areas[name] = []
        for feature in document["features"]:
            geometry = feature["geometry"]
            if shapely is not None:
                outline = shapely.shape(geometry)
                if not outline.is_valid:
                    raise ValueError(f"{name}: {feature['id']}: the outline crosses itself")
                areas[name].append(outline.area)
                continue
            several = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            rings = [[abs(ring_area(ring)) for ring in polygon] for polygon in several]
            areas[name].append(sum(outer - sum(holes) for outer, *holes in rings))
    return areas


def check_features(document: Any) -> None:
    """Checks the form of a document that QuPath reads.

    Raises:
      ValueError: naming what is wrong.
    """
    if document.get("type") != "FeatureCollection" or not isinstance(document.get("features"), list):
        raise ValueError("not a FeatureCollection")
    ids = [feature.get("id") for feature in document["features"]]
    if len(set(ids)) != len(ids) or any(str(uuid.UUID(text)) != text for text in ids):
        raise ValueError("ids are not unique UUIDs")
    for feature in document["features"]:
        properties, geometry = feature["properties"], feature["geometry"]
        if feature["type"] != "Feature" or properties["objectType"] != "detection":
            raise ValueError(f"{feature['id']}: not a detection")
        color = properties["classification"]["color"]
        if not properties["classification"]["name"] or len(color) != 3 or not all(0 <= level <= 255 for level in color):
            raise ValueError(f"{feature['id']}: no classification with a color")
        if not all(isinstance(value, int | float) for value in properties["measurements"].values()):
            raise ValueError(f"{feature['id']}: a measurement that is not a number")
        if geometry["type"] not in ("Polygon", "MultiPolygon"):
            raise ValueError(f"{feature['id']}: a {geometry['type']}")
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        if any(len(ring) < 4 or ring[0] != ring[-1] for polygon in polygons for ring in polygon):
            raise ValueError(f"{feature['id']}: a ring that is not closed")


def loaded_by_script(out: Path, files: Mapping[str, Path], expected: Areas, class_path: str) -> Areas:
    """Runs the documented script with stand-ins for QuPath; returns the expected areas where the counts agree."""
    if not Path(class_path.split(os.pathsep)[0]).is_file() or shutil.which("java") is None:
        raise Missing(f"{class_path}, or java")
    page = (Path(__file__).parents[1] / ".readme" / "nuclei.md").read_text(encoding="utf-8")
    script = page.partition("```groovy\n")[2].partition("```")[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("harness.groovy", "script.groovy", "names.txt")]
        texts = [
            GROOVY,
            script.replace("/path/to/found", str(out.absolute())),
            "\n".join(p.name for p in files.values()),
        ]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        command = ["java", "-cp", class_path, "groovy.ui.GroovyMain", *map(str, paths)]
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(ended.stderr[-500:])
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    loaded = {name: (int(count), saved) for name, (_, count, saved) in zip(files, rows, strict=True)}
    wrong = [name for name in files if loaded[name] != (len(expected[name]), "true")]
    if wrong:
        raise ValueError(f"{wrong[0]}: {loaded[wrong[0]]} instead of {len(expected[wrong[0]])} objects")
    return expected


if __name__ == "__main__":
    main(sys.argv[1:])
