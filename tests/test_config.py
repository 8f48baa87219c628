import pytest
import yaml

from cervseg_jax.config import config_differences, dump_config, load_config
from cervseg_jax.errors import ConfigError
from cervseg_jax.renamed_keys import RENAMED_KEYS
from cervseg_jax.yaml12 import parse_yaml
from tests.helpers import ROOT, TINY_CONFIG


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load_and_round_trip(path, tmp_path):
    config = load_config(path)
    text = path.read_text()
    head = text[: text.index("model:\n")].splitlines()
    assert head[1].startswith(f"# Command:  cervseg-jax train {path.stem}")
    assert [line.split()[1] for line in head if line.startswith("# ") and line.split()[1].endswith(":")] == [
        "Command:", "Data:", "Hardware:", "Time:", "Score:",
    ]  # fmt: skip
    assert not any(old.rpartition(".")[2] + ":" in text for old in RENAMED_KEYS)
    (tmp_path / "copy.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "copy.yaml") == config


def test_clustered_is_the_published_experiment():
    config = load_config(ROOT / "configs" / "clustered.yaml")
    assert config.model.image_size == (512, 512)
    assert config.model.args == {
        "base_filters": 16,
        "levels": 8,
        "kernel_size": 9,
        "dilation": 3,
        "dropout_rate": 0.05,
        "activation": "relu",
        "batch_norm": False,
        "input_range": "raw",
    }
    train = config.train
    assert (train.learning_rate, train.clip_value, train.batch_size, train.epochs) == (7e-5, 0.5, 2, 100)
    assert train.plateau is not None
    assert (train.plateau.factor, train.plateau.patience, train.plateau.min_delta) == (0.3, 4, 1e-4)
    assert (train.early_stop_patience, train.loss, config.infer.num_infer_images) == (10, "bce_dice", 6)
    assert config.eval.batch_size == 4


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_overrides_are_yaml_and_win(tmp_path):
    path = write(tmp_path, TINY_CONFIG)
    config = load_config(path, ["train.learning_rate=1e-4", "model.args.levels=2", "train.plateau=null"])
    assert config.train.learning_rate == 1e-4
    assert config.model.args["levels"] == 2
    assert config.train.plateau is None


def test_paths_are_relative_to_the_config_and_overrides_to_the_current_folder(tmp_path, monkeypatch):
    path = write(tmp_path, TINY_CONFIG)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(path).data.root == tmp_path / "data"
    assert load_config(path, ["data.root=here"]).data.root == tmp_path / "elsewhere" / "here"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key train.epoch; did you mean train.epochs\?"),
        ("train.base_filters=3", "unknown key train.base_filters"),
        ("model.threshold=0.5", r"unknown key model.threshold; did you mean infer.threshold"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, got 0"),
        ("train.epochs='3'", "train.epochs: Input should be a valid integer, got '3'"),
        ("train.epochs=2.5", "train.epochs: .*got 2.5"),
        ("train.learning_rate=.nan", "train.learning_rate: .*finite"),
        ("train.learning_rate=no", "train.learning_rate: .*got 'no'"),
        ("train.metrics=[dice_men]", "train.metrics: unknown name 'dice_men'; did you mean 'dice_mean'"),
        ("train.loss=focl", "train.loss: unknown name 'focl'; did you mean 'focal'"),
        ("model.name=unett", "model.name: unknown name 'unett'; did you mean 'unet'"),
        ("model.args.filters=3", "model.args: unknown key 'filters'"),
        ("model.args.kernel_size=big", "model.args.kernel_size: .*got 'big'"),
        ("model.args.dropout_rate=0.6", "model.args: the dropout rate of the bottom level"),
        ("model.image_size=[2, 48]", r"multiples of 4; \[2, 48\] is too small to be padded to \[4, 48\]"),
        ("train.cosine={final_factor: 0.1}", "train.cosine: cannot be combined with train.plateau"),
        ("train.loss_args={gamma: 2.0}", "train.loss_args: unknown key 'gamma'; known: dice_share, smooth"),
        ("train.ema_decay=1.5", "train.ema_decay: .*less than 1"),
        ("model.image_size=48", "model.image_size"),
        (
            "runtime.mesh={data: 3}",
            r"train.batch_size: must be a multiple of .* \(3 x 1 x 1\), got 4; the next valid size is 6",
        ),
        ("train.grad_accum_steps=3", r"train.grad_accum_steps: must divide train.batch_size \(4\), got 3"),
        ("runtime.mesh={spatial: 5}", "runtime.mesh.spatial: must divide the rows"),
        ("data.split={valid: 0.7, test: 0.4}", "data.split: valid must be positive"),
        ("data.split={group_pattern: '('}", "data.split.group_pattern: not a regular expression"),
        ("data.split={group_pattern: '[0-9]'}", "data.split.group_pattern: needs one .group"),
        ("augment.operations=[{name: flop}]", "augment.operations.0.: unknown name 'flop'; did you mean 'flip'"),
        ("augment.operations=[{name: blur, args: {sigma: 1}}]", "augment.operations.0..args: unknown key 'sigma'"),
        ("train=3", "expected section.key=value"),
        ("train.epochs", "expected section.key=value"),
        ("train.epochs.more=3", "is a single value and has no keys"),
        ("data.split={valid: 0.2, test: 0.2}", None),
    ],
)
def test_wrong_values_are_named(tmp_path, override, message):
    path = write(tmp_path, TINY_CONFIG)
    if message is None:
        load_config(path, [override])
        return
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_only_one_rule_leaves_nuclei_out(tmp_path):
    path = write(tmp_path, TINY_CONFIG)
    load_config(path, ["infer.min_probability=0.4"])
    with pytest.raises(ConfigError, match="infer.recall: cannot be combined with infer.min_probability; set infer.min"):
        load_config(path, ["infer.recall=0.9", "infer.min_probability=0.4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {name: unet", r"c.yaml:1:19: not valid YAML"),
        ("- a\n- b", "top level must be a mapping of sections"),
        ("train: {epochs: 1, epochs: 2}", "duplicate key 'epochs'"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['touch /tmp/canary']", "not valid YAML"),
        ("[" * 3000 + "]" * 3000, "nesting is too deep"),
        ("a: " + "x" * 70000, "at most 64 KiB"),
        ("", "the key model is required"),
        ("1: {}", "keys must be text, got 1"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_bad_files_are_one_message(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_missing_folder_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("012", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("True", True),
        ("-.inf", float("-inf")),
        ("'1'", "1"),
        ("1_000", "1_000"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    got = parse_yaml(text, source="t")
    assert got == value
    assert type(got) is type(value)


def test_dumped_text_means_the_same_to_a_yaml_1_1_reader(tmp_path):
    path = write(tmp_path, TINY_CONFIG)
    text = dump_config(load_config(path, ["model.args.activation=mish"]))
    assert yaml.safe_load(text) == parse_yaml(text, source="t")


def test_differences_name_the_keys(tmp_path):
    path = write(tmp_path, TINY_CONFIG)
    other = load_config(path, ["train.epochs=9", "model.args.levels=2", "train.plateau=null"])
    found = config_differences(load_config(path), other)
    assert "train.epochs: 3 -> 9" in found
    assert "model.args.levels: 3 -> 2" in found
    assert any(line.startswith("train.plateau") for line in found)
    assert config_differences(other, other) == []


def test_configs_are_frozen(tmp_path):
    config = load_config(write(tmp_path, TINY_CONFIG))
    with pytest.raises(Exception, match="frozen"):
        config.train.epochs = 5  # pyright: ignore
