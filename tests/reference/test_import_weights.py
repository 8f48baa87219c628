"""Every family against the reference's numbers, by the way that its users take: their config, their weights."""

import hashlib
import json

import h5py
import jax
import numpy as np
import pytest
import yaml

from cervseg_jax.errors import CheckpointError
from cervseg_jax.models import MODELS, build_abstract
from cervseg_jax.reference import hdf5
from cervseg_jax.reference.config import import_config
from cervseg_jax.reference.families import FAMILIES
from cervseg_jax.reference.hdf5 import read_layers
from cervseg_jax.reference.weights import import_weights
from cervseg_jax.schema import ModelConfig
from tests.helpers import refused, run

QUICK = (
    "TensorflowAttentionUNet",
    "TensorflowDeepLabV3Plus",
    "TensorflowMultiResUNet",
    "TensorflowSharpUNet",
    "TensorflowSwinUNet",
    "TensorflowTransUNet",
    "TensorflowU2Net",
    "TensorflowUNet",
    "TensorflowUNet3Plus",
    "TensorflowUNet_norm",
    "TensorflowXceptionLikeUNet",
)
LARGE = ("TensorflowBASNet", "TensorflowEfficientNetB7UNet", "TensorflowEfficientUNet")
CASES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def stored_arrays(folder):
    """The fixture's arrays in the order of its file; large ones are made again by the rule that stands beside them."""
    facts = json.loads((folder / "weights.json").read_text())
    small = np.load(folder / ("weights.npz" if (folder / "weights.npz").exists() else "weights_small.npz"))
    for fact in facts:
        rule = fact["rule"]
        if rule["kind"] == "uniform":
            random = np.random.RandomState((rule["seed"] * 1000003 + fact["index"]) % 2**32)  # noqa: NPY002
            array = ((random.random_sample(fact["shape"]) * 2.0 - 1.0) * float(rule["limit"])).astype(np.float32)
            array = (array + np.float32(rule["offset"])).astype(np.float32) if "offset" in rule else array
        else:
            array = small[fact["key"]]
        assert hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16] == fact["sha256_16"]
        yield fact, array


def hdf5_of(folder, tmp_path):
    """The fixture's file, or one written as Keras 2 does where the fixture is too large to carry one."""
    if (folder / "weights.h5").exists():
        return folder / "weights.h5"
    layers = {}
    for fact, array in stored_arrays(folder):
        layers.setdefault(fact["layer"], []).append((fact["name"], array))
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, weights in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight, _ in weights]
            for weight, array in weights:
                group.create_dataset(weight, data=array)
    return path


def model_of(folder):
    text, _ = import_config(folder / "train_eval_infer.config")
    return ModelConfig.model_validate(json.loads(json.dumps(yaml.safe_load(text)["model"])), strict=False)


@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal_the_references(golden, name, tmp_path):
    folder = golden / name
    model, facts = model_of(folder), json.loads((folder / "config.json").read_text())
    imported = import_weights(hdf5_of(folder, tmp_path), model)
    constants = 8400 if model.name == "swin_unet" else 0  # tables that follow from the window sizes
    assert sum(value.size for value in imported.values.values()) == facts["total_params"] - constants
    stored = np.load(folder / "io.npz")
    outputs = predict(model, imported.values, stored["x"])
    wanted = [stored[key] for key in sorted(stored.files) if key.startswith("y") and "mask" not in key]
    assert len(outputs) == len(wanted)
    for got, want in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)
    if model.name == "swin_unet":
        masked = model.model_copy(update={"args": {**model.args, "is_masked": True}})
        [got] = predict(masked, imported.values, stored["x"])
        np.testing.assert_allclose(got, stored["y_correct_mask"], atol=5e-5)
        assert np.abs(got - stored["y"]).max() > 0.1


def predict(model, values, images):
    apply, params, model_state = build_abstract(model.name, image_size=model.image_size, args=model.args)
    assert set(params) | set(model_state) == set(values)
    outputs, _ = jax.jit(apply)({path: values[path] for path in params}, {p: values[p] for p in model_state}, images)
    return [np.asarray(jax.nn.sigmoid(logits)) for logits in outputs]


def test_every_family_of_the_reference_has_a_fixture(golden):
    assert {name for name, _ in FAMILIES.values()} == set(MODELS) - {"efficientnet_lite0_unet"}
    assert {name.removesuffix("_norm") for name in (*QUICK, *LARGE)} == set(FAMILIES)


@pytest.fixture
def attention(golden):
    return golden / "TensorflowAttentionUNet"


def test_automatic_names_may_begin_anywhere_and_full_models_are_read(attention, tmp_path):
    path = tmp_path / "full.h5"
    with h5py.File(attention / "weights.h5") as source, h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"lambda": "never run"}})
        group = file.create_group("model_weights")
        for key, value in source.attrs.items():
            group.attrs[key] = value
        for name in source:
            source.copy(name, group)
    again = import_weights(path, model_of(attention))
    want = import_weights(attention / "weights.h5", model_of(attention))
    assert all(np.array_equal(again.values[name], value) for name, value in want.values.items())


def test_other_arguments_end_in_a_table(attention):
    model = model_of(attention)
    other = model.model_copy(update={"args": {**model.args, "base_filters": 16}})
    with pytest.raises(CheckpointError, match=r"encoder0_1_conv 3x3x3x16 \+ 16: conv2d has 3x3x3x8 \+ 8"):
        import_weights(attention / "weights.h5", other)
    deeper = model.model_copy(update={"args": {**model.args, "levels": 5}})
    with pytest.raises(CheckpointError, match="bottom_1_conv 3x3x64x128 .*: conv2d_8 has 1x1x64x32"):
        import_weights(attention / "weights.h5", deeper)
    flatter = model.model_copy(update={"args": {**model.args, "levels": 3}})
    with pytest.raises(CheckpointError, match="gate1_gating .*: conv2d_6 has 3x3x32x64"):
        import_weights(attention / "weights.h5", flatter)


def test_files_that_are_none(attention, tmp_path):
    (tmp_path / "text.h5").write_text("nothing")
    cut = (attention / "weights.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(cut[: len(cut) // 2])
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file.create_group("layers")
    for name, message in (
        ("none.h5", "no such file"),
        ("text.h5", "cannot be read as HDF5"),
        ("cut.h5", "cannot be read as HDF5"),
        ("new.h5", "is a Keras 3 file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_layers(tmp_path / name)


def test_files_on_which_the_library_hangs_or_crashes_are_one_message(attention, tmp_path, monkeypatch):
    program = tmp_path / "python"
    monkeypatch.setattr(hdf5.sys, "executable", str(program))
    monkeypatch.setattr(hdf5, "READ_SECONDS", 0.1)
    monkeypatch.setattr(hdf5, "BYTES_PER_SECOND", 1e12)
    for commands, message in (
        ("printf .; exec sleep 60", r"weights\.h5: is damaged: HDF5 cannot read it within 0 s"),
        ("printf .; kill -SEGV $$", r"weights\.h5: is damaged: HDF5 crashes .*signal 11"),
        ("sleep 0.3; printf .", None),  # a busy machine
    ):
        program.write_text(f"#!/bin/sh\n{commands}\n")
        program.chmod(0o755)
        if message is None:
            assert read_layers(attention / "weights.h5")
        else:
            with pytest.raises(CheckpointError, match=message):
                read_layers(attention / "weights.h5")


def test_an_imported_run_is_scored_infers_and_starts_a_training(golden, tiny_dataset, tmp_path):
    source, recipe, folder = golden / "TensorflowSharpUNet", tmp_path / "mine.yaml", tmp_path / "run"
    assert run("import-config", source / "train_eval_infer.config", "-o", recipe)[0] == 0
    code, stdout, stderr = run("import-weights", source / "weights.h5", "--config", recipe, "--out", folder)
    assert code == 0, stderr
    assert "layers, 88,553 weights" in stdout
    data = ("--set", f"data.root={tiny_dataset}")
    assert run("eval", folder, "--split", "valid", *data)[0] == 0
    images = tiny_dataset / "valid" / "images"
    assert run("infer", folder, "--images", images, "--out", tmp_path / "masks")[0] == 0
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == len(list(images.iterdir()))
    small = ("--set", "train.epochs=1", "--set", "train.steps_per_epoch=1")
    start = ("--set", f"train.init_from={folder}")
    code, _, stderr = run("train", recipe, "--run-dir", tmp_path / "more", *data, *small, *start)
    assert code == 0, stderr
    before, after = (
        np.load(next((root / "best").glob("*.npz")))["encoder0_1_conv/kernel"] for root in (folder, tmp_path / "more")
    )
    assert 0 < np.abs(before - after).max() < 1e-3  # one small step away
    assert "not an empty folder" in refused(
        2, "import-weights", source / "weights.h5", "--config", recipe, "--out", folder
    )
    assert "already exists" in refused(2, "import-config", source / "train_eval_infer.config", "-o", recipe)
