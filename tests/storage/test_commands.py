"""Commands on data in a bucket: the same results as on a folder, and one line for each mistake."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cervseg_jax.data.pixel_size import pixel_size_um
from cervseg_jax.data.slides import Slide
from cervseg_jax.segmentation.notes import file_stamp
from cervseg_jax.storage.address import as_path
from cervseg_jax.storage.retrying import StoreError
from tests.helpers import (
    COMMAND,
    ENVIRONMENT,
    TINY_CONFIG,
    assert_same_run,
    draw_discs,
    refused,
    run,
    run_process,
)
from tests.runtime.test_distributed import end_of, start
from tests.slide_files import write_ome_zarr

OUTPUTS = "masks,overlays,instances,nuclei,geojson,coco,labelme,rois,probabilities"


def upload(bucket, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes(), {})


def files_in(bucket, prefix: str) -> dict[str, bytes]:
    names = sorted(name for name in bucket.objects if name.startswith(f"{prefix}/"))
    return {name.removeprefix(f"{prefix}/"): bucket.objects[name].data for name in names}


def results_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_places(files: dict[str, bytes], start: str) -> dict[str, bytes]:
    """Results without what differs by place: the folder of the images, and their version in the notes."""
    kept = {}
    for name, data in files.items():
        if name.endswith(".started"):
            continue  # stays beside the row of a complete image where a process was killed between the two
        if name.startswith(".done/") and name.endswith(".csv"):
            row = next(csv.reader(io.StringIO(data.decode())))
            data = ",".join(row[:-2]).encode()
        if name.startswith("labelme/"):
            document = json.loads(data)
            document["imagePath"] = Path(document["imagePath"]).name
            data = json.dumps(document).encode()
        kept[name] = data.replace(f"{start}/".encode(), b"")
    return kept


def failing(bucket, *, every: int) -> None:
    """Lets some requests fail, in turn in each way."""
    count = 0

    def fault(method, target):
        nonlocal count
        count += 1
        return ("503", "cut", "reset")[count // every % 3] if count % every == 0 else ""

    bucket.fault = fault


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw_discs(folder, count=7, seed=9)
    return folder / "images"


@pytest.fixture(scope="module")
def local(finished, images, tmp_path_factory):
    """What `infer` writes from a folder to a folder."""
    out = tmp_path_factory.mktemp("local") / "out"
    code, _, stderr = run("infer", finished[1], "--images", images, "--out", out, "--output", OUTPUTS)
    assert code == 0, stderr
    return out


def test_infer_from_a_bucket_to_a_bucket(finished, images, local, store, tmp_path):
    upload(store, images, "slides")
    failing(store, every=10)
    given = ("infer", finished[1], "--images", "gs://mine/slides", "--out", "gs://mine/out", "--output", OUTPUTS)
    code, stdout, stderr = run(*given)
    assert code == 0, stderr
    assert "images.csv in gs://mine/out" in stdout
    expected = without_places(results_in(local), str(images))
    assert without_places(files_in(store, "out"), "gs://mine/slides") == expected
    assert not (Path.cwd() / "gs:").exists()

    before = dict(store.objects)
    assert "holds results already" in refused(2, *given)
    reads = []
    store.watch = lambda method, request: reads.append(request) if b"slides%2F" in request else None
    assert run(*given, "--resume")[0] == 0
    assert not reads, "finished images are not read again"
    assert {name: stored.data for name, stored in store.objects.items()} == {
        name: stored.data for name, stored in before.items()
    }
    store.put("slides/disc_002.png", store.objects["slides/disc_003.png"].data, {})
    del store.objects["out/masks/disc_005.png"]
    code, _, stderr = run(*given, "--resume")
    assert code == 0
    assert "1 images have changed and are done again: disc_002" in stderr
    assert store.objects["out/masks/disc_002.png"].data == (local / "masks" / "disc_003.png").read_bytes()
    assert store.objects["out/masks/disc_005.png"].data == (local / "masks" / "disc_005.png").read_bytes()
    code, _, stderr = run(*given, "--overwrite")
    assert code == 0, stderr
    store.put("slides/disc_002.png", (images / "disc_002.png").read_bytes(), {})
    assert run(*given, "--resume")[0] == 0
    assert without_places(files_in(store, "out"), "gs://mine/slides") == expected


def test_zarr_in_a_bucket_is_that_of_a_folder(store, tmp_path, rng):
    """Whole chunks, parts of shards, and chunks that are not there; a tenth of the requests fails."""
    zarr = pytest.importorskip("zarr", reason="the extra `slides` is not installed")
    image = rng.integers(0, 256, (3, 300, 260), np.uint8)
    image[:, :130, :130] = 0  # chunks that only have the fill value are not stored
    write_ome_zarr(tmp_path / "slides" / "a.zarr", image, mpp=0.5)
    write_ome_zarr(tmp_path / "slides" / "b.zarr", image, version="0.4")
    write_ome_zarr(tmp_path / "slides" / "s.zarr", image, num_levels=1)
    group = zarr.open_group(tmp_path / "slides" / "s.zarr", mode="r+")
    options = {"shape": image.shape, "dtype": image.dtype, "overwrite": True}
    group.create_array("0", chunks=(1, 64, 64), shards=(3, 128, 128), **options)[...] = image
    upload(store, tmp_path / "slides", "slides")
    failing(store, every=10)
    for name in "abs":
        address, folder = as_path(f"gs://mine/slides/{name}.zarr"), tmp_path / "slides" / f"{name}.zarr"
        there, here = Slide(address), Slide(folder)
        for window in (np.s_[10:200, 63:130], np.s_[0:300, 0:260], np.s_[299:300, 5:6]):
            np.testing.assert_array_equal(there[window], here[window])
            np.testing.assert_array_equal(there[window], image[:, *window].transpose(1, 2, 0))
        assert pixel_size_um(address) == pixel_size_um(folder)
        stamp = file_stamp(address)
        assert file_stamp(address) == stamp
        chunk = next(key for key in store.objects if key.startswith(f"slides/{name}.zarr/0/") and "json" not in key)
        store.put(chunk, store.objects[chunk].data, {})
        assert file_stamp(as_path(f"gs://mine/slides/{name}.zarr")) != stamp
    store.fault = lambda method, target: "403" if "zarr%2F0" in target else ""
    with pytest.raises(StoreError, match="no permission"):
        Slide(as_path("gs://mine/slides/b.zarr"))


@pytest.mark.slow
def test_infer_reads_zarr_from_a_bucket(finished, store, tmp_path, rng):
    pytest.importorskip("zarr", reason="the extra `slides` is not installed")
    image = rng.integers(0, 256, (3, 200, 180), np.uint8)
    write_ome_zarr(tmp_path / "slides" / "a.zarr", image)
    upload(store, tmp_path / "slides", "slides")
    for images, out in ((tmp_path / "slides", tmp_path / "out"), ("gs://mine/slides", "gs://mine/out")):
        code, stdout, stderr = run("infer", finished[1], "--images", images, "--out", out, "--tiled")
        assert code == 0, stderr
        assert "pixel size: 0.25 micrometers" in stdout
    expected = without_places(results_in(tmp_path / "out"), str(tmp_path / "slides"))
    assert without_places(files_in(store, "out"), "gs://mine/slides") == expected
    given = ("--images", "gs://mine/slides/a.zarr", "--out", tmp_path / "again", "--tiled")
    assert run("infer", finished[1], *given)[0] == 0
    assert (tmp_path / "again" / "masks" / "a.png").read_bytes() == expected["masks/a.png"]


@pytest.mark.slow
def test_shards_in_a_bucket_are_merged(finished, images, local, store):
    upload(store, images, "slides")
    given = ("infer", finished[1], "--images", "gs://mine/slides", "--output", OUTPUTS, "--quiet")
    for number in (1, 2):
        assert run(*given, "--out", "gs://mine/out", "--shard", f"{number}/2")[0] == 0
        assert run(*given, "--out", f"gs://mine/part_{number}", "--shard", f"{number}/2")[0] == 0
    tables = {name: data for name, data in files_in(store, "out").items() if "/" not in name}
    assert tables.keys() == {"images.csv", "nuclei.csv", "coco.json"}
    assert tables["nuclei.csv"] == (local / "nuclei.csv").read_bytes()
    assert json.loads(tables["coco.json"]) == json.loads((local / "coco.json").read_bytes())
    code, stdout, stderr = run("merge", "gs://mine/part_1", "gs://mine/part_2", "--out", "gs://mine/merged")
    assert code == 0, stderr
    assert files_in(store, "merged") == tables
    first = next(name for name in store.objects if re.fullmatch(r"part_2/\.done/disc_.*\.csv", name))
    del store.objects[first]
    assert "images have no result yet" in refused(3, "merge", "gs://mine/part_1", "gs://mine/part_2", "--out", "x")


def test_one_image_that_is_missing_or_damaged_fails_alone(finished, images, store):
    upload(store, images, "slides")
    store.put("slides/damaged.png", b"no picture", {})
    store.stale["slides/"] = dict(store.objects)
    del store.objects["slides/disc_003.png"]
    code, _, stderr = run("infer", finished[1], "--images", "gs://mine/slides", "--out", "gs://mine/out")
    assert code == 1
    assert "warning: gs://mine/slides/disc_003.png: no such file\n" in stderr
    failed = store.objects["out/failed.csv"].data.decode().splitlines()
    assert len(failed) == 3 and len(files_in(store, "out/masks")) == 6


def test_addresses_that_cannot_be_used(finished, images, tiny_config, store, monkeypatch):
    upload(store, images, "slides")
    monkeypatch.setattr("cervseg_jax.storage.retrying.RETRY_SECONDS", 0.2)
    given = ("infer", finished[1], "--out", "gs://mine/out", "--images")
    assert "gs://other: no such bucket" in refused(2, *given, "gs://other/slides")
    assert refused(2, *given, "gs://mine/none") == "error: --images: no such file or folder: gs://mine/none\n"
    assert "az:// addresses are not read" in refused(2, *given, "az://mine/slides")
    out = ("infer", finished[1], "--images", "gs://mine/slides", "--out")
    assert "is on a web server, where files cannot be written" in refused(2, *out, "http://127.0.0.1:9/out")
    assert "gs://mine/slides is a folder of input images" in refused(2, *out, "gs://mine/slides")
    store.is_writable = False
    assert re.search(r"gs://mine/out/.* cannot be written: no permission", refused(2, *out, "gs://mine/out"))
    root = ("train", tiny_config, "--set", "data.root=gs://mine/none", "--run-dir", tiny_config.parent / "run")
    assert refused(2, *root).startswith("error: data.root: no such folder: gs://mine/none")
    assert "is not on this machine" in refused(2, "synth", "gs://mine/new", "--images", "1")
    assert "is not on this machine" in refused(2, "prepare", images, "--out", "gs://mine/new")
    store.fault = lambda method, target: "reset"
    assert "is this machine online, and the store up?" in refused(2, *given, "gs://mine/slides")
    store.fault = lambda method, target: "403"
    assert "no permission" in refused(2, "audit", "gs://mine/data")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Synthetic images with annotations, and the dataset that `prepare` makes of them."""
    folder = tmp_path_factory.mktemp("source")
    assert run("synth", folder / "source", "--images", "8", "--size", "64", "64")[0] == 0
    assert run("prepare", folder / "source", "--out", folder / "dataset", "--quiet")[0] == 0
    return folder


def test_prepare_audit_and_stats(source, store, tmp_path):
    upload(store, source / "source", "source")
    failing(store, every=10)
    code, _, stderr = run("prepare", "gs://mine/source", "--out", tmp_path / "dataset", "--quiet")
    assert code == 0, stderr
    made, expected = results_in(tmp_path / "dataset"), results_in(source / "dataset")
    told = json.loads(made.pop("dataset.json"))
    assert told["source"] == "gs://mine/source"
    assert told | {"source": ""} == json.loads(expected.pop("dataset.json")) | {"source": ""}
    made.pop("overview.html"), expected.pop("overview.html")
    assert made == expected

    upload(store, source / "dataset", "data")
    code, stdout, stderr = run("audit", "gs://mine/data")
    shutil.copytree(source / "dataset", tmp_path / "copy")
    local = run("audit", tmp_path / "copy")
    assert (code, stdout.splitlines()[:-1]) == (local[0], local[1].splitlines()[:-1])
    audit = json.loads(store.objects["data/audit.json"].data)
    assert audit["findings"] == json.loads((tmp_path / "copy" / "audit.json").read_text())["findings"]
    assert run("stats", "gs://mine/data")[0] == 0
    assert store.objects["data/stats.json"].data == (source / "dataset" / "stats.json").read_bytes()
    assert {"data/overview.html", "data/train_images_sample.png", "data/data_statistics.png"} <= store.objects.keys()
    assert run("stats", "gs://mine/data", "--out", tmp_path / "stats")[0] == 0
    assert (tmp_path / "stats" / "stats.json").read_bytes() == store.objects["data/stats.json"].data


def test_training_reads_what_it_needs_when_it_needs_it(source, store, tmp_path):
    """With the manifest of `prepare`, images are read when their turn comes, and the run is that of a folder."""
    upload(store, source / "dataset", "data")
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY_CONFIG.replace("root: data", f"root: {source / 'dataset'}"))
    assert run("train", config, "--run-dir", tmp_path / "local", "--set", "train.epochs=2")[0] == 0
    failing(store, every=10)
    reads = []
    store.watch = lambda method, request: reads.append(request) if b"alt=media" in request else None
    remote = ("--set", "data.root=gs://mine/data", "--set", "train.epochs=2")
    code, stdout, stderr = run("train", config, "--run-dir", tmp_path / "remote", *remote)
    assert code == 0, stderr
    assert "data: gs://mine/data" in stdout
    assert_same_run(tmp_path / "remote", tmp_path / "local")
    assert b"manifest.csv" in reads[0]
    assert not any(b"test%2F" in request for request in reads), "no image of another split is read"
    again = len(reads)
    assert run("eval", tmp_path / "remote")[0] == 0
    assert any(b"test%2Fimages" in request for request in reads[again:])
    scores = [(tmp_path / name / "eval" / "test" / "evaluation.csv") for name in ("remote", "local")]
    assert run("eval", tmp_path / "local")[0] == 0
    assert scores[0].read_text() == scores[1].read_text()


@pytest.mark.slow
def test_training_without_a_manifest_reads_all_files_first(tiny_dataset, tiny_config, finished, store, tmp_path):
    upload(store, tiny_dataset, "data")
    code, _, stderr = run("train", tiny_config, "--run-dir", tmp_path / "remote", "--set", "data.root=gs://mine/data")
    assert code == 0, stderr
    assert_same_run(tmp_path / "remote", finished[1])
    store.put("data/train/masks/disc_001.png", b"damaged", {})
    given = ("train", tiny_config, "--set", "data.root=gs://mine/data", "--run-dir", tmp_path / "bad")
    assert re.search("1 of 6 pairs cannot be used; .*gs://mine/data/train/masks/disc_001.png", refused(3, *given), re.S)


@pytest.mark.slow
def test_two_hosts_share_nothing_but_the_bucket(finished, images, store, tmp_path):
    """Images and the tiles of a slide are divided; the second host is killed, and one host alone does the rest."""
    import tifffile

    rng = np.random.default_rng(5)
    (tmp_path / "slides").mkdir()
    for path in images.iterdir():
        shutil.copy(path, tmp_path / "slides")
    tifffile.imwrite(
        tmp_path / "slides" / "slide.tif", rng.integers(90, 255, (900, 200, 3), np.uint8), bigtiff=True, tile=(64, 64)
    )
    upload(store, tmp_path / "slides", "slides")
    options = ("--tiled", "--output", OUTPUTS, "--quiet")
    local = run_process("infer", finished[1], "--images", tmp_path / "slides", "--out", tmp_path / "out", *options)
    assert local[0] == 0, local[2]
    given = ("infer", finished[1], "--images", "gs://mine/slides", "--out", "gs://mine/out", *options)
    machines = [store.environment | {"CERVSEG_CACHE_DIR": str(tmp_path / f"cache_{number}")} for number in range(2)]
    processes = start(*given, num_devices=1, more=machines[0])

    def kill(method, request):
        if b".done%2Fdisc_005.csv" in request or b"out/.done/disc_005.csv" in request:
            processes[1].kill()

    store.watch = kill
    for code, _, stderr in end_of(processes):
        assert code in (0, -9), stderr
    store.watch = lambda method, request: None
    environment = ENVIRONMENT | machines[1]
    command = [*COMMAND, *map(str, given), "--resume"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    expected = without_places(results_in(tmp_path / "out"), str(tmp_path / "slides"))
    found = without_places(files_in(store, "out"), "gs://mine/slides")
    assert found.keys() == expected.keys()
    different = [name for name in found if found[name] != expected[name] and name != ".done/plan.json"]
    assert not different
