"""Exported networks, read back, of every family."""

import json

import numpy as np
import pytest

from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.models import functionalize
from cervseg_jax.runs.weights import Contract, Network
from cervseg_jax.segmentation import export as export_model
from cervseg_jax.segmentation.export import FORMATS, export_network
from cervseg_jax.segmentation.postprocess import Postprocessing
from tests.models.test_models import SHAPE_CASES, build

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
CASES = [
    pytest.param(
        *case.values,
        format_name,
        id=f"{case.id}-{format_name}",
        marks=() if case.id.startswith(QUICK) else pytest.mark.slow,
    )
    for format_name in FORMATS
    for case in SHAPE_CASES
]


# Keras' own reader of weights asks HDF5 in a way that NumPy is about to forget.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "args", "format_name"), CASES)
def test_every_family_comes_back_the_same(name, args, format_name, tmp_path):
    """The function compares with networks that it builds for each size; free sizes are told in the contract."""
    metadata = export_to(tmp_path, network(name, args), format_name)
    assert metadata["max_difference"] <= 1e-5
    assert (metadata["divisor"] is None) == (format_name == "keras" or name in FIXED)
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
