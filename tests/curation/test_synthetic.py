import json

import cv2
import numpy as np
import pytest
from scipy import ndimage

from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.curation.dataset_folder import ensure_synthetic_dataset, write_scenes
from cervseg_jax.curation.synthetic import STAINS, draw_scene
from cervseg_jax.errors import ConfigError
from cervseg_jax.schema import SyntheticConfig

SCENES = [draw_scene(shape=(256, 256), seed=0, index=index) for index in range(24)]


def test_a_scene_is_a_function_of_its_seed():
    again = draw_scene(shape=(256, 256), seed=0, index=3)
    np.testing.assert_array_equal(again.image, SCENES[3].image)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(again.outlines, SCENES[3].outlines, strict=True))
    assert not np.array_equal(draw_scene(shape=(256, 256), seed=1, index=3).image, SCENES[3].image)


def test_nuclei_are_dark_varied_and_clustered():
    contrast, touching, sizes, counts = [], [], [], []
    for scene in SCENES:
        labels = draw_instances(scene.outlines, shape=(256, 256))
        gray = scene.image.mean(axis=2)
        contrast.append(gray[labels == 0].mean() - gray[labels > 0].mean())
        counts.append(len(scene.outlines))
        sizes += [int((labels == number).sum()) for number in range(1, len(scene.outlines) + 1)]
        components, _ = ndimage.label(labels > 0)
        owners = [
            len(np.unique(labels[(components == part) & (labels > 0)])) for part in range(1, components.max() + 1)
        ]
        touching.append(sum(owner for owner in owners if owner > 1) / len(scene.outlines))
    assert min(contrast) > 25
    assert np.mean(touching) > 0.6  # most nuclei touch another one
    assert min(sizes) > 0  # none is hidden completely
    assert max(sizes) > 8 * np.percentile(sizes, 10)
    assert min(counts) >= 3
    assert {scene.stain for scene in SCENES} == set(STAINS)


def test_rectangles_and_the_smallest_size():
    assert draw_scene(shape=(96, 200), seed=5).image.shape == (96, 200, 3)
    with pytest.raises(ValueError, match="at least 64x64, got 40x64"):
        draw_scene(shape=(40, 64), seed=0)


def test_smears_have_dark_nuclei_at_their_outlines_and_no_others():
    scenes = [draw_scene(shape=(192, 256), seed=0, index=index, kind="smear") for index in range(16)]
    again = draw_scene(shape=(192, 256), seed=0, index=3, kind="smear")
    np.testing.assert_array_equal(again.image, scenes[3].image)
    contrast, counts = [], []
    for scene in scenes:
        labels = draw_instances(scene.outlines, shape=(192, 256))
        assert set(np.unique(labels[labels > 0])) == set(range(1, len(scene.outlines) + 1))
        gray = scene.image.mean(axis=2)
        for number in range(1, len(scene.outlines) + 1):
            ring = ndimage.binary_dilation(labels == number, iterations=5) & (labels == 0)
            contrast.append(gray[ring].mean() - gray[labels == number].mean())
        counts.append(len(scene.outlines))
    assert np.mean(np.array(contrast) > 10) > 0.95  # beside cytoplasm that may be as dark, and granules
    assert max(counts) > 4 * max(1, min(counts))
    lights = np.array([np.percentile(scene.image, 95, axis=(0, 1)) for scene in scenes])
    assert np.ptp(lights, axis=0).min() > 20  # slides of many colors


def test_a_smear_may_show_no_nucleus():
    scene = draw_scene(shape=(64, 64), seed=1, index=14, kind="smear")
    assert scene.outlines == []
    assert not draw_instances(scene.outlines, shape=(64, 64)).any()


def test_groups_are_crowded_with_cytoplasm_nearly_as_dark_as_nuclei():
    scenes = [draw_scene(shape=(192, 256), seed=0, index=index, kind="groups") for index in range(16)]
    np.testing.assert_array_equal(draw_scene(shape=(192, 256), seed=0, index=3, kind="groups").image, scenes[3].image)
    shares, contrasts = [], []
    for scene in scenes:
        is_nucleus = draw_instances(scene.outlines, shape=(192, 256)) > 0
        absorbance = -np.log(np.maximum(scene.image, 1) / np.percentile(scene.image, 95, axis=(0, 1))).mean(axis=2)
        ring = ndimage.binary_dilation(is_nucleus, iterations=3) & ~is_nucleus
        shares.append(np.median(absorbance[ring]) / np.median(absorbance[is_nucleus]))
        contrasts.append(scene.image[ring].mean() - scene.image[is_nucleus].mean())
    assert np.mean(shares) > 0.55  # in clusters 0.39
    assert np.min(contrasts) > 10


@pytest.mark.parametrize("kind", ["clusters", "smear", "groups"])
def test_written_truth_agrees(tmp_path, kind):
    write_scenes(tmp_path / "s", num_images=3, seed=4, size=(96, 128), kind=kind)
    names = sorted(path.stem for path in (tmp_path / "s" / "images").iterdir())
    assert len(names) == 3
    for name in names:
        document = json.loads((tmp_path / "s" / "labelme" / f"{name}.json").read_text())
        polygons = [[np.array(shape["points"])] for shape in document["shapes"]]
        labels = cv2.imread(str(tmp_path / "s" / "instances" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint16
        redrawn = draw_instances(polygons, shape=(96, 128))
        assert (redrawn != labels).mean() < 1e-3  # corners are stored with two decimals
        assert (tmp_path / "s" / "labelme" / document["imagePath"]).resolve().is_file()
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_scenes(tmp_path / "s", num_images=1, seed=4, size=(96, 128))


def test_dataset_is_made_once_and_never_replaced(tmp_path):
    wanted = SyntheticConfig(train=3, valid=1, test=2, size=(64, 64), seed=9)
    root = tmp_path / "d"
    assert ensure_synthetic_dataset(root, wanted)
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    assert len(before) == 3 * 6
    assert not ensure_synthetic_dataset(root, wanted)
    with pytest.raises(ConfigError, match="holds another dataset"):
        ensure_synthetic_dataset(root, wanted.model_copy(update={"seed": 10}))
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before
    images = [path.read_bytes() for path in root.rglob("images/*.png")]
    assert len(set(images)) == len(images)  # no image is in two splits
