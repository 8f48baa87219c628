"""`bench` measures what it says, beside the same work in other programs."""

import importlib.util
import json

import numpy as np
import pytest

from cervseg_jax.bench import baselines
from cervseg_jax.bench.baselines import torch_unet
from cervseg_jax.bench.subject import random_batch
from cervseg_jax.bench.timing import product_call, time_in_turns
from cervseg_jax.config import load_config
from cervseg_jax.models import build_model, check_model_args, functionalize
from tests.helpers import run


def test_everything_is_called_in_turns():
    order = []
    times = time_in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert "".join(order) == "ab" + "abab"
    assert [len(timing.seconds) for timing in times.values()] == [2, 2]
    assert min(times["a"].seconds) <= times["a"].median <= max(times["a"].seconds)


def test_the_ceiling_counts_its_operations():
    call, operations = product_call("float32")
    call()
    assert operations == 2 * 2048**3


def test_the_table_and_the_json_say_the_same(tiny_config, tmp_path):
    path = tmp_path / "bench.json"
    code, stdout, stderr = run(
        "bench", tiny_config, "--rounds", 1, "--precision", "float32", "--against", "keras", "--json", path
    )
    assert code == 0, stderr
    facts = json.loads(path.read_text())
    names = set(facts["rows"])
    assert {
        "train step, float32",
        "forward, float32",
        "input alone, from files",
        "input alone, from memory",
        "train step with input, float32",
    } < names
    assert {"train step, keras", "forward, keras"} < names
    for name, row in facts["rows"].items():
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert f"| {name} | {row['seconds']:.4f} |" in stdout
    step, product = facts["rows"]["train step, float32"], facts["rows"]["matrix product, float32"]
    assert step["images_per_second"] == pytest.approx(facts["batch_size"] / step["seconds"])
    assert step["flops_per_second"] * step["seconds"] == pytest.approx(facts["compiled"]["float32"]["step_flops"])
    assert step["share_of_ceiling"] == pytest.approx(step["flops_per_second"] / product["flops_per_second"])
    assert facts["peak_memory_bytes"] > 1e8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "tensorflow"), "--against: unknown name 'tensorflow'"),
        (("--precision", "float16"), "--precision: unknown name 'float16'"),
        (("--set", "model.nme=unet"), "model.nme"),
        (("--infer", "images", "--against", "keras"), "--infer cannot be used with --against or --precision"),
    ],
)
def test_wrong_wishes_are_named(arguments, message):
    code, stdout, stderr = run("bench", *arguments)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert stderr.count("\n") <= 2


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_programs_that_are_not_installed_are_named():
    code, _, stderr = run("bench", "--against", "torch")
    assert code == 2
    assert "bench --against torch: is not installed: pip install torch" in stderr


def test_keras_trains_the_same_network(tiny_config, monkeypatch):
    """A step of `fit` changes its weights; its input is the recipe's batch."""
    config = load_config(tiny_config)
    models = []
    original = baselines.configured_model
    monkeypatch.setattr(baselines, "configured_model", lambda config: models.append(original(config)) or models[0])
    baseline = baselines.prepare_keras(config)
    baseline.forward()
    before = [np.array(variable.value) for variable in models[0].trainable_variables]
    baseline.step()
    after = [np.asarray(variable.value) for variable in models[0].trainable_variables]
    assert max(np.abs(new - old).max() for new, old in zip(after, before, strict=True)) > 1e-4
    assert baseline.num_batches == 3
    batch = random_batch(config)
    assert np.asarray(batch.image).shape == (config.train.batch_size, *config.model.image_size, 3)
    assert 0.2 < np.asarray(batch.mask).mean() < 0.5


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_twin_in_pytorch_is_the_same_network(batch_norm, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    given = {"base_filters": 4, "levels": 3, "kernel_size": 7, "dilation": 2, "batch_norm": batch_norm}
    args = check_model_args("unet", (32, 48), given)
    twin = torch_unet(args).eval()
    apply, params, model_state = functionalize(build_model("unet", image_size=(32, 48), args=given))
    convs = [path.removesuffix("/kernel") for path in params if path.endswith("/kernel")]
    wanted = [module for module in twin.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    names = {id(module): name for name, module in twin.named_modules()}
    for module in wanted:
        kind, _, rest = names[id(module)].partition(".")
        level = rest.partition(".")[0]
        siblings = [other for other in wanted if names[id(other)].startswith(f"{kind}.{level}.")]
        path = {
            "encoder": f"encoder{level}_conv{1 + (siblings.index(module) if siblings else 0)}",
            "decoder": f"decoder{level}_conv{1 + (siblings.index(module) if siblings else 0)}",
            "up": f"decoder{level}_up",
            "head": "head",
        }[kind]
        assert path in convs
        kernel = np.asarray(params[f"{path}/kernel"])
        # Keras: [k, k, c, f], and [k, k, f, c] where it is transposed; PyTorch: [f, c, k, k] and [c, f, k, k].
        module.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        module.bias.data = torch.tensor(np.asarray(params[f"{path}/bias"]).copy())
    images = rng.integers(0, 256, (2, 32, 48, 3), np.uint8)
    (logits,), _ = apply(params, model_state, images)
    with torch.inference_mode():
        found = twin(torch.tensor(images).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4 * float(np.abs(logits).max()))


def test_inference_on_a_folder_is_timed_by_stage(finished, tmp_path):
    config, folder, _ = finished
    images, path = config.parent / "data" / "test" / "images", tmp_path / "rates.json"
    code, stdout, stderr = run("bench", folder, "--infer", images, "--rounds", 2, "--json", path)
    assert code == 0, stderr
    facts = json.loads(path.read_text())
    assert len(facts["rounds"]) == 2
    for row in facts["rounds"]:
        assert (row["num_images"], row["num_failed"]) == (5, 0)
        assert row["megapixels"] == pytest.approx(5 * 48 * 40 / 1e6)
        assert row["images_per_second"] == pytest.approx(5 / row["seconds"])
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert min(row["shares"].values()) > 0
        assert f"| {row['seconds']:.1f} | {row['images_per_second']:.2f} |" in stdout
