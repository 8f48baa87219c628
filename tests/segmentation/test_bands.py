"""Parts of a slide that several processes predict are the slide that one predicts, to the last bit."""

import numpy as np
import pytest

from cervseg_jax.schema import TiledConfig
from cervseg_jax.segmentation import bands as band_module
from cervseg_jax.segmentation.bands import Bands
from cervseg_jax.segmentation.maps import predict_bands, predict_maps
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.tiling import num_tile_rows, predict_tiled

SIZE, OVERLAP = (32, 48), 12


def predict(tiles):
    """Depends on the whole tile, with roundings."""
    values = np.sin(tiles.astype(np.float32)).cumsum(axis=1, dtype=np.float32)[..., :2]
    return values - values.mean(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("overlap_px", [0, 12, 25])
@pytest.mark.parametrize("height", [20, 150, 161])
@pytest.mark.parametrize("batch_size", [3, 8])
def test_rows_of_tiles_have_the_values_of_the_whole(rng, height, overlap_px, batch_size):
    image = rng.integers(0, 256, (height, 100, 3), np.uint8)
    predictor, options = Predictor(predict, SIZE, batch_size, ("mask", "boundary")), {"overlap_px": overlap_px}
    whole = list(predict_tiled(predictor, image, **options))
    count = num_tile_rows(height, SIZE[0], overlap_px)
    assert len(whole) == count
    assert sum(len(rows) for _, rows in whole) == height
    for start, stop in ((0, count), (0, 1), (count - 1, count), (count // 2, min(count, count // 2 + 2))):
        part = list(predict_tiled(predictor, image, tile_rows=range(start, stop), **options))
        assert [first for first, _ in part] == [first for first, _ in whole[start:stop]]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(part, whole[start:stop], strict=True))


@pytest.fixture
def slide(rng, tmp_path, monkeypatch):
    """Predicts parts of an image of eight bands into a folder; counts the rows of tiles that were predicted."""
    monkeypatch.setattr(band_module, "BAND_TILE_ROWS", 2)

    class Slide:
        image = rng.integers(0, 256, (310, 100, 3), np.uint8)
        predictor = Predictor(lambda tiles: self.counted(tiles), SIZE, 3, ("mask", "boundary"))
        tiled = TiledConfig(overlap_px=OVERLAP, blend_whole=False)
        num_calls = 0
        bands_folder = tmp_path / "bands"

        def counted(self, tiles):
            self.num_calls += 1
            return predict(tiles)

        def bands(self, version="1"):
            return Bands(self.bands_folder, [version, "2"])

        def part(self, part, num_parts, **options):
            predict_bands(
                self.predictor, self.tiled, self.image, self.bands(), part=part, num_parts=num_parts, **options
            )

        def whole(self, bands=None):
            ((_, found),) = predict_maps(self.predictor, self.tiled, [("a", self.image)], bands_of=lambda tag: bands)
            return found.prediction.maps

    self = Slide()
    return self


@pytest.mark.parametrize("num_parts", [1, 3, 40])
def test_parts_make_the_whole(slide, num_parts):
    expected = slide.whole()
    assert not slide.bands_folder.exists()
    for part in range(num_parts):
        slide.part(part, num_parts)
    slide.num_calls = 0
    assert np.array_equal(slide.whole(slide.bands()), expected)
    assert slide.num_calls == 0, "nothing was left to predict"


def test_bands_that_a_killed_process_left_are_kept_and_the_rest_is_predicted(slide):
    expected = slide.whole()
    full, slide.num_calls = slide.num_calls, 0

    def die():
        if slide.num_calls > full // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slide.part(1, 2, on_progress=die)
    assert any(slide.bands_folder.iterdir())
    slide.num_calls = 0
    assert np.array_equal(slide.whole(slide.bands()), expected)
    assert 0 < slide.num_calls < 1.6 * full  # each band that is made alone repeats the row of tiles above it


def test_bands_of_a_slide_that_has_changed_are_not_used(slide):
    slide.part(0, 1)
    slide.image = 255 - slide.image
    assert np.array_equal(slide.whole(slide.bands("another")), slide.whole())


def test_a_process_stops_where_another_one_has_been(slide, tmp_path):
    slide.part(0, 1)
    for path in list((tmp_path / "bands").iterdir())[1:4]:
        path.unlink()
    slide.num_calls = 0
    slide.part(0, 1)
    assert 0 < slide.num_calls < 3 * 4 * 3
    assert len(list((tmp_path / "bands").iterdir())) == 8
