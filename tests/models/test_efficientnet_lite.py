import importlib.util
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from cervseg_jax.errors import ConfigError
from cervseg_jax.files import sha256_of
from cervseg_jax.models import build_model
from cervseg_jax.models.efficientnet_lite import assign_torch_weights, efficientnet_lite0
from cervseg_jax.models.encoders import LITE0_FILE, LITE0_PACKAGE, LITE0_SHA256
from cervseg_jax.models.torch_file import MAGIC, PROTOCOL, read_torch_file

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(LITE0_PACKAGE) is None, reason="the package of the weights is not installed"
)
ARGS = {"filters": [4, 4, 8, 8, 8], "encoder_weights": "imagenet"}


@pytest.fixture(scope="module")
def state():
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    return read_torch_file(Path(spec.origin).parent / "models" / LITE0_FILE, sha256=LITE0_SHA256)


@needs_package
@pytest.mark.slow
def test_published_weights_classify_photographs(state):
    model = efficientnet_lite0(include_top=True, weights=None, input_shape=(224, 224, 3))
    assign_torch_weights(model, state)
    num_used = len(model.weights)
    assert num_used == len([name for name in state if not name.endswith("num_batches_tracked")])
    for name, classes in (("chelsea", {281, 282, 285}), ("coffee", {967})):
        picture = getattr(skimage.data, name)()
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = cv2.resize(picture[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
        logits = np.asarray(model((square[None].astype(np.float32) - 127) / 128, training=False))[0]
        assert int(logits.argmax()) in classes, name


@needs_package
def test_a_network_starts_from_the_installed_weights(state):
    model = build_model("efficientnet_lite0_unet", image_size=(32, 64), args=ARGS)
    kernels = {variable.path: np.asarray(variable.value) for variable in model.variables}
    stem = kernels["encoder_stem_conv/kernel"]
    np.testing.assert_array_equal(stem, state["_conv_stem.weight"].transpose(2, 3, 1, 0))
    depthwise = kernels["encoder_block3b_dwconv/kernel"]
    np.testing.assert_array_equal(depthwise, state["_blocks.4._depthwise_conv.weight"].transpose(2, 3, 0, 1))


def test_other_encoders_have_no_package():
    with pytest.raises(ConfigError, match="efficientnet_lite0 only; for efficientnet_b0 give the path"):
        build_model("efficient_unet", image_size=(32, 32), args={"encoder_weights": "imagenet"})


def stored(*values):
    return b"".join(pickle.dumps(value, protocol=2) for value in values)


class Evil:
    def __reduce__(self):
        return Path.mkdir, (Path("/tmp/never"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no pickle at all", "not a PyTorch weights file"),
        (stored(1, 2), "unknown format"),
        (stored(MAGIC, PROTOCOL, {}, Evil()), r"names pathlib.Path.mkdir|not a plain array"),
        (stored(MAGIC, PROTOCOL, {}, {"a": 1}, ["1"]), "not a PyTorch weights file"),
    ],
)
def test_files_that_hold_anything_else_are_refused(tmp_path, data, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_torch_file(path, sha256=sha256_of(data))


def test_a_wrong_checksum_and_a_missing_file_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_torch_file(path, sha256="0")
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="expected the SHA-256"):
        read_torch_file(path, sha256="0" * 64)
