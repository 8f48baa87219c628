import unicodedata

import cv2
import numpy as np
import pytest

from cervseg_jax.config import load_config
from cervseg_jax.data.checks import check_pairs
from cervseg_jax.data.pairs import find_pairs, list_images, scan_folder
from cervseg_jax.data.resize import resize_image, resize_mask
from cervseg_jax.data.samples import load_sample
from cervseg_jax.data.split import split_groups
from cervseg_jax.errors import ConfigError, DataError
from tests.helpers import draw_discs


def data_of(tiny_config, *overrides):
    return load_config(tiny_config, overrides).data


def test_pairs_are_found_by_stem(tiny_config, tiny_dataset):
    folder = tiny_dataset / "train"
    (folder / "masks" / "disc_000.png").rename(folder / "masks" / "disc_000.bmp")  # another suffix
    (folder / "images" / "notes.txt").write_text("not an image")
    found, problems = find_pairs(data_of(tiny_config))
    assert {split: len(pairs) for split, pairs in found.items()} == {"train": 6, "valid": 3, "test": 5}
    assert all(pair.image_path.stem == pair.mask_path.stem for pair in found["train"])
    assert problems == []


def test_images_without_mask(tiny_config, tiny_dataset):
    (tiny_dataset / "train" / "masks" / "disc_003.png").unlink()
    with pytest.raises(DataError, match="1 of 6 images have no mask .*disc_003.png"):
        find_pairs(data_of(tiny_config))
    found, problems = find_pairs(data_of(tiny_config, "data.on_bad_file=skip"))
    assert len(found["train"]) == 5
    assert "disc_003.png: has no mask" in problems[0]


def test_folders_that_are_missing_or_empty(tiny_config, tiny_dataset, tmp_path):
    with pytest.raises(ConfigError, match="data.root: no such folder"):
        find_pairs(data_of(tiny_config, f"data.root={tmp_path / 'nowhere'}"))
    with pytest.raises(ConfigError, match="has no folder train; it has images and masks without splits"):
        find_pairs(data_of(tiny_config, f"data.root={tiny_dataset / 'test'}"))
    (tmp_path / "e" / "train" / "images").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no folder valid; expected are train, valid and test"):
        find_pairs(data_of(tiny_config, f"data.root={tmp_path / 'e'}"))
    (tmp_path / "e" / "valid").mkdir()
    with pytest.raises(ConfigError, match="no such folder: .*masks"):
        find_pairs(data_of(tiny_config, f"data.root={tmp_path / 'e'}"))
    (tmp_path / "e" / "train" / "masks").mkdir()
    with pytest.raises(DataError, match="no images"):
        find_pairs(data_of(tiny_config, f"data.root={tmp_path / 'e'}"))


def test_two_images_of_one_stem(tiny_config, tiny_dataset):
    folder = tiny_dataset / "train" / "images"
    (folder / "disc_001.jpg").write_bytes((folder / "disc_001.png").read_bytes())
    with pytest.raises(DataError, match="disc_001.jpg and disc_001.png share a stem"):
        find_pairs(data_of(tiny_config))


def test_bad_files_are_named_or_skipped(tiny_config, tiny_dataset):
    folder = tiny_dataset / "train"
    (folder / "images" / "disc_001.png").write_bytes(b"")
    whole = (folder / "masks" / "disc_002.png").read_bytes()
    (folder / "masks" / "disc_002.png").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(folder / "masks" / "disc_004.png"), np.zeros((20, 20), np.uint8))
    data = data_of(tiny_config)
    pairs = find_pairs(data)[0]["train"]
    with pytest.raises(DataError, match="3 of 6 pairs cannot be used") as caught:
        check_pairs(pairs, data)
    message = str(caught.value)
    assert "disc_001.png: is empty" in message
    assert "disc_002.png: is cut short" in message
    assert "disc_004.png: is 40x48, its mask" in message
    checked = check_pairs(pairs, data_of(tiny_config, "data.on_bad_file=skip"))
    assert [pair.stem for pair in checked.pairs] == ["disc_000", "disc_003", "disc_005"]
    assert len(checked.problems) == 3


def test_noisy_masks_are_counted(tiny_config, tiny_dataset):
    folder = tiny_dataset / "train" / "masks"
    mask = cv2.imread(str(folder / "disc_000.png"), cv2.IMREAD_GRAYSCALE)
    (folder / "disc_000.png").unlink()
    cv2.imwrite(str(folder / "disc_000.jpg"), mask)
    data = data_of(tiny_config)
    assert check_pairs(find_pairs(data)[0]["train"], data).num_noisy_masks == 1


def test_samples_have_the_networks_size_and_binary_masks(tiny_config):
    data = data_of(tiny_config)
    pair = find_pairs(data)[0]["train"][0]
    sample = load_sample(pair, image_size=(32, 48), mask_rule="half_range")
    assert sample.image.shape == (32, 48, 3)
    assert sample.mask.shape == (32, 48)
    assert set(np.unique(sample.mask)) == {0, 1}


def test_resizing_averages_images_and_keeps_mask_values(rng):
    image = rng.integers(0, 256, (8, 12, 3), np.uint8)
    want = image.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_image(image, (4, 6)), want, atol=0.51)
    mask = rng.integers(0, 2, (8, 12), np.uint8)
    np.testing.assert_array_equal(resize_mask(mask, (16, 24)), mask.repeat(2, axis=0).repeat(2, axis=1))


def test_split_keeps_groups_together(tiny_config, tmp_path):
    root = tmp_path / "flat"
    draw_discs(root, count=12)
    for folder in ("images", "masks"):
        for path in sorted((root / folder).iterdir()):
            path.rename(path.with_name(f"variant_{int(path.stem[-3:]) % 2}_{int(path.stem[-3:]) // 2}.png"))
    data = data_of(tiny_config, f"data.root={root}", "data.split={valid: 0.2, test: 0.2, group_pattern: '([0-9]+)$'}")
    found, _ = find_pairs(data)
    groups = {split: {pair.group for pair in pairs} for split, pairs in found.items()}
    assert sum(len(group) for group in groups.values()) == 6
    assert not groups["train"] & groups["valid"]
    assert not (groups["train"] | groups["valid"]) & groups["test"]
    assert all(len(pairs) == 2 * len(groups[split]) for split, pairs in found.items())


def test_split_does_not_depend_on_order():
    names = [f"s{i}" for i in range(40)]
    first = split_groups(names, valid=0.15, test=0.1, seed=7)
    assert first == split_groups(names[::-1], valid=0.15, test=0.1, seed=7)
    assert first != split_groups(names, valid=0.15, test=0.1, seed=8)
    counts = [list(first.values()).count(part) for part in ("train", "valid", "test")]
    assert counts == [30, 6, 4]
    with pytest.raises(ValueError, match="2 sources are too few"):
        split_groups(["a", "b"], valid=0.2, test=0.2, seed=0)
    assert split_groups(["a", "b"], valid=0.2, test=1.0, seed=0) == {"a": "test", "b": "test"}


def test_hidden_files_are_no_images_and_others_are_counted(tmp_path):
    for name in ("a.png", "b.SVS", "._a.png", ".DS_Store", "Thumbs.db", "c.jp2", "d.jfif", "e.jp2", "README"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    scan = scan_folder(tmp_path)
    assert [path.name for path in scan.images] == ["a.png"] == [path.name for path in list_images(tmp_path)]
    assert scan.left_out_text() == "1 without suffix, 1 .jfif, 2 .jp2, 1 .svs"
    scan = scan_folder(tmp_path, with_slides=True)
    assert [path.name for path in scan.images] == ["a.png", "b.SVS"]
    assert scan.left_out == {"": 1, ".jfif": 1, ".jp2": 2}


@pytest.mark.parametrize("name", ["zelle_\u00e4{}", "\u1ec7{}", "\ud55c\uae00{}"])  # two marks; Hangul
def test_names_pair_up_however_letters_are_composed(tmp_path, tiny_config, name):
    for split in ("train", "valid"):
        draw_discs(tmp_path / split, count=2, seed=1)
        for form, folder in (("NFD", "images"), ("NFC", "masks")):
            for index, path in enumerate(sorted((tmp_path / split / folder).iterdir())):
                path.rename(path.with_name(unicodedata.normalize(form, name.format(index)) + path.suffix))
    found, problems = find_pairs(data_of(tiny_config, f"data.root={tmp_path}"))
    assert problems == [] and [len(pairs) for pairs in found.values()] == [2, 2]
    assert found["train"][0].stem == unicodedata.normalize("NFC", name.format(0))
    assert found["train"][0].image_path.is_file()
