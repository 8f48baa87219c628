"""Exported networks, read back, of every family."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest

from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.models import functionalize
from cervseg_jax.runs.weights import Contract, Network
from cervseg_jax.segmentation import export as export_model
from cervseg_jax.segmentation.export import FORMATS, export_network
from cervseg_jax.segmentation.postprocess import Postprocessing
from tests.models.test_models import SHAPE_CASES, build

# Keras' own reader of weights asks HDF5 in a way that NumPy is about to forget.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FIXED = {"deeplab_v3plus", "swin_unet", "trans_unet"}


def network(name, args, size=(32, 64)):
    apply, params, model_state = functionalize(build(name, args, size=size, num_maps=2))
    contract = Contract(
        model_name=name,
        model_args=args,
        image_size=size,
        heads=("mask", "distance"),
        preprocessing="RGB; the network scales inside",
        mask_rule="half_range",
        epoch=1,
        step=1,
        val_loss=None,
        version="",
        weights_file="",
        weights_sha256="",
    )
    return Network(contract, apply, params, model_state)


def export_to(folder, network, format_name):
    return export_network(network, folder, format_name, postprocessing=Postprocessing(threshold=0.3))


QUICK = ("unet-1",)
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "onnx", "onnxruntime", "onnxscript")),
    reason="needs the extra onnx",
)


def marks(case_id, format_name):
    is_onnx = format_name in ("onnx", "bioimageio")
    is_slow = not case_id.startswith(QUICK) or is_onnx
    return [mark for mark, applies in ((needs_onnx, is_onnx), (pytest.mark.slow, is_slow)) if applies]


CASES = [
    pytest.param(*case.values, format_name, id=f"{case.id}-{format_name}", marks=marks(case.id, format_name))
    for format_name in FORMATS
    for case in SHAPE_CASES
]


@pytest.mark.parametrize(("name", "args", "format_name"), CASES)
def test_every_family_comes_back_the_same(name, args, format_name, tmp_path):
    """The function compares with networks that it builds for each size; free sizes are told in the contract."""
    metadata = export_to(tmp_path, network(name, args), format_name)
    assert metadata["max_difference"] <= FORMATS[format_name].max_difference
    assert (metadata["divisor"] is None) == (name in FIXED)
    contract = json.loads((tmp_path / "contract.json").read_text())
    assert contract["export"] == metadata
    assert (tmp_path / metadata["file"]).stat().st_size == metadata["bytes"]


def test_the_contract_describes_the_exported_file(tmp_path):
    export_to(tmp_path, network("unet", {"base_filters": 4, "levels": 3}), "stablehlo")
    contract = json.loads((tmp_path / "contract.json").read_text())
    assert contract["preprocessing"] == "RGB; the network scales inside"
    assert "output" not in contract  # of the bare network: logits
    assert contract["export"]["output"].startswith("probabilities")
    assert contract["export"]["maps"] == ["mask", "distance"]
    assert contract["export"]["postprocessing"] == Postprocessing(threshold=0.3).to_json()
    assert "pip install jax flatbuffers" in (tmp_path / "example.py").read_text().splitlines()[0]


def test_the_comparison_uses_the_convolutions_of_the_exported_file(tmp_path, monkeypatch):
    """Those for CPUs round differently, by 4e-5 for the kernels of clustered.yaml."""
    backends, apply_for = [], Network.apply_for
    monkeypatch.setattr(
        Network, "apply_for", lambda self, backend: backends.append(backend) or apply_for(self, backend)
    )
    export_to(tmp_path, network("unet", {"base_filters": 4, "levels": 3}), "stablehlo")
    assert set(backends) == {"xla"}


def test_networks_that_pad_keep_their_size(tmp_path):
    metadata = export_to(tmp_path, network("unet", {"base_filters": 4, "levels": 3}, size=(30, 51)), "stablehlo")
    assert metadata["divisor"] is None


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    def write(network, path):
        reloaded, metadata = FORMATS["stablehlo"].write(network, path)
        return lambda images: np.asarray(reloaded(images)) + 2e-5, metadata

    monkeypatch.setattr(export_model, "FORMATS", {"wrong": FORMATS["stablehlo"]._replace(write=write)})
    with pytest.raises(CheckpointError, match=r"differs from the run by 2e-05"):
        export_to(tmp_path, network("unet", {"base_filters": 4, "levels": 3}), "wrong")
    with pytest.raises(ConfigError, match="onnx"):
        export_to(tmp_path, network("unet", {"base_filters": 4, "levels": 3}), "onnx")


def modules_in(config):
    """The modules that a Keras file names."""
    if isinstance(config, dict):
        own = {config["module"]} if isinstance(config.get("module"), str) else set()
        return own.union(*(modules_in(value) for value in config.values()))
    return set().union(*(modules_in(value) for value in config)) if isinstance(config, list) else set()


@pytest.mark.parametrize(
    ("name", "args"), [case for case in SHAPE_CASES if case.id.startswith(("unet-0", "swin_unet"))]
)
def test_a_keras_file_names_no_layer_of_this_package(name, args, tmp_path):
    export_to(tmp_path, network(name, args), "keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        modules = modules_in(json.loads(archive.read("config.json")))
    assert {name.split(".")[0] for name in modules} <= {"keras", "builtins"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_the_example_of_a_keras_file_runs_on_every_backend(backend, tmp_path):
    if find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    export_to(tmp_path, network("efficientnet_lite0_unet", {"filters": [4, 4, 8, 8, 8]}), "keras")
    code = "import sys; sys.modules['cervseg_jax'] = None; exec(open('example.py').read()); print(probabilities.shape)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert "(2, 32, 64, 2)" in done.stdout, done.stderr


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "swin_unet"])
def test_the_package_for_bioimage_io_passes_its_own_test(name, tmp_path):
    pytest.importorskip("bioimageio.core")
    args = next(case.values[1] for case in SHAPE_CASES if case.values[0] == name)
    export_to(tmp_path, network(name, args, size=(64, 64)), "bioimageio")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["passed"], done.stdout + done.stderr
