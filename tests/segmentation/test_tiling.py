"""Tiles: stitched together they are the whole, whatever the size."""

import numpy as np
import pytest

from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.tiling import fade, predict_tiled, tile_starts


def stitched(predict, image, *, tile_size=(32, 48), overlap_px=8, batch_size=3):
    parts = list(predict_tiled(Predictor(predict, tile_size, batch_size, ("mask",)), image, overlap_px=overlap_px))
    firsts = [first for first, _ in parts]
    assert firsts == np.cumsum([0, *[len(rows) for _, rows in parts[:-1]]]).tolist()
    return np.concatenate([rows for _, rows in parts])


@pytest.mark.parametrize("shape", [(1, 1), (5, 200), (32, 48), (33, 49), (100, 77), (24, 40), (130, 131)])
@pytest.mark.parametrize("overlap_px", [0, 8, 15])
def test_a_function_of_pixels_is_stitched_exactly(shape, overlap_px, rng):
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    seen = []

    def predict(tiles):
        assert len(tiles) <= 3 and tiles.shape[1:] == (32, 48, 3)
        seen.append(len(tiles))
        return (tiles / 255).astype(np.float32)

    got = stitched(predict, image, overlap_px=overlap_px)
    np.testing.assert_allclose(got, image / 255, atol=1e-6)
    assert seen


def test_a_local_function_sees_true_context_at_seams_and_mirrors_at_borders(rng):
    """A mean over 5 x 5 pixels is exact where tiles overlap by more than its reach on both sides of a seam."""
    from scipy.ndimage import uniform_filter

    image = rng.integers(0, 256, (90, 110, 3), np.uint8)

    def predict(tiles):
        return np.stack([uniform_filter(tile[..., :1].astype(np.float32), (5, 5, 1)) for tile in tiles])

    # What a tile's border spoils fades out: weights there are small, and zero is never reached.
    want = uniform_filter(image[..., :1].astype(np.float32), (5, 5, 1), mode="mirror")
    got = stitched(predict, image, overlap_px=16)
    assert np.abs(got - want)[2:-2, 2:-2].mean() < 0.6
    assert np.median(np.abs(got - want)) < 1e-4


def test_weights_of_neighbors_add_up_to_one():
    weights, step = fade(32, 8), 24
    both = weights[step:] + weights[: 32 - step]
    np.testing.assert_allclose(both, 1)
    assert weights.min() > 0


@pytest.mark.parametrize(("length", "tile", "overlap"), [(1000, 64, 16), (64, 64, 16), (1, 64, 16), (97, 32, 15)])
def test_tiles_cover_everything_with_context(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert starts[0] <= 0
    assert starts[-1] + tile >= length + overlap // 2
    assert np.diff(starts).tolist() == [tile - overlap] * (len(starts) - 1)


def test_a_nucleus_on_any_seam_is_one_nucleus_of_the_same_area():
    """Every position over a seam and a corner of four tiles, with a predictor that knows nothing beyond its tile."""
    tile, overlap, radius = 32, 8, 7
    rows, columns = np.mgrid[:80, :80]
    areas = []
    for shift in range(0, 24, 3):
        for other in (0, shift):
            inside = np.hypot(rows - 34 - shift, columns - 34 - other) <= radius
            image = np.where(inside[..., None], np.uint8([90, 40, 120]), np.uint8([230, 220, 235]))

            def predict(tiles):
                return (tiles[..., :1] < 150).astype(np.float32)

            maps = stitched(predict, image, tile_size=(tile, tile), overlap_px=overlap)
            labels = label_instances(maps, maps[..., 0] >= 0.5, ("mask",), PostprocessingConfig(min_area_px=5))
            assert labels.max() == 1, (shift, other)
            areas.append(int((labels == 1).sum()))
    assert max(areas) - min(areas) <= 0.02 * np.mean(areas)
