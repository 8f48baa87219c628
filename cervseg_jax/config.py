"""The config of a recipe: frozen sections, defaults, and every check that needs no data.

All defaults of the program live here or in the signature of a named component.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cervseg_jax.components import bind, lookup, nearest
from cervseg_jax.errors import ConfigError
from cervseg_jax.yaml12 import load_yaml, parse_yaml

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, values not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """What network is built."""

    name: str
    image_size: tuple[Positive, Positive]
    """Height and width of the network's input, in pixels."""
    args: dict[str, Any] = {}
    """Arguments of the model's builder; `cervseg-jax models NAME` lists them."""


class SyntheticConfig(Section):
    """Dataset of drawn cells, made on first use under `data.root`."""

    train: Positive
    valid: Positive
    test: Positive
    size: tuple[Annotated[int, Field(ge=64)], Annotated[int, Field(ge=64)]] = (512, 512)
    """Height and width of the drawn images."""
    seed: Count = 0


class SplitConfig(Section):
    """How a folder with only `images` and `masks` is divided: whole groups, never single files."""

    valid: Fraction = 0.2
    test: Fraction = 0.2
    seed: Count = 0
    group_pattern: str | None = None
    """Regular expression searched in the file stem; its first group names the source. None: each stem is its own."""


class DataConfig(Section):
    """Where the images are and how they are read."""

    root: Path
    """Folder with `{train,valid,test}/{images,masks}`, or with `images` and `masks` if `split` is given."""
    synthetic: SyntheticConfig | None = None
    split: SplitConfig | None = None
    origin: str | None = None
    """Where to get the data; shown when `data.root` is missing."""
    mask_rule: Literal["half_range", "any_nonzero"] = "half_range"
    on_bad_file: Literal["fail", "skip"] = "fail"
    threads: Positive = 2
    """Threads that decode and augment."""
    prefetch_batches: Positive = 4


class OperationConfig(Section):
    """One augmentation, applied to a sample with a probability."""

    name: str
    probability: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    args: dict[str, Any] = {}


class AugmentConfig(Section):
    """Augmentation of the training part, in order."""

    operations: tuple[OperationConfig, ...] = ()


class PlateauConfig(Section):
    """Learning-rate reduction when `val_loss` stops improving (rules of Keras' ReduceLROnPlateau)."""

    factor: Probability = 0.3
    patience: Positive = 4
    min_delta: Annotated[float, Field(ge=0.0)] = 1e-4
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 0.0


class TrainConfig(Section):
    """How the network is trained."""

    epochs: Positive
    batch_size: Positive
    """Images per optimizer update, over all devices and hosts."""
    steps_per_epoch: Positive | None = None
    """Updates between two evaluations; None: one pass over the training images."""
    learning_rate: Annotated[float, Field(gt=0.0)]
    clip_value: Annotated[float, Field(gt=0.0)] | None = None
    """Each gradient element is clipped to [-clip_value, clip_value]."""
    loss: str = "bce_soft_dice"
    metrics: tuple[str, ...] = ("dice_coef", "dice_mean")
    """Columns of metrics.csv: `dice_coef` or any `<pixel score>_mean|_pooled`."""
    plateau: PlateauConfig | None = PlateauConfig()
    early_stop_patience: Positive | None = 10
    """Epochs without a lower `val_loss` after which training ends; None: never."""
    seed: Count = 0
    keep_checkpoints: Positive = 2


class EvalConfig(Section):
    """How `eval` scores."""

    batch_size: Positive = 4
    threshold: Probability = 0.5
    num_example_images: Count = 4
    """How many of the worst and of the best images become pictures."""


class InferConfig(Section):
    """How masks are made, by `infer` and for the previews of training."""

    batch_size: Positive = 4
    threshold: Probability = 0.5
    num_infer_images: Count = 6
    """Validation images whose masks are written after every epoch."""


class MeshConfig(Section):
    """Devices along the batch and along the rows of an image."""

    data: Positive = 1
    spatial: Positive = 1


class RuntimeConfig(Section):
    """Where and how precisely the program computes."""

    precision: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig | None = None
    """None: as many devices along `data` as divide the batch."""
    require: Literal["any", "cpu", "gpu", "tpu"] = "any"


class Config(Section):
    """One complete recipe."""

    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    infer: InferConfig = InferConfig()
    runtime: RuntimeConfig = RuntimeConfig()


PATH_KEYS: tuple[tuple[str, str], ...] = (("data", "root"),)
"""Keys that hold paths: relative to the config file, or to the current folder when given with `--set`."""


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Loads a recipe, applies overrides and checks everything that needs no data.

    Args:
      path: a YAML file.
      overrides: `section.key=value` items; values are read as YAML.

    Returns:
      The config, with absolute paths and all defaults filled in.

    Raises:
      ConfigError: naming the key, the received value and the allowed ones.
    """
    path = Path(path)
    raw = load_yaml(path)
    _resolve_paths(raw, path.absolute().parent)
    for override in overrides:
        _apply_override(raw, override)
    config = _validate(raw, source=str(path))
    return _with_checked_components(config)


def dump_config(config: Config) -> str:
    """Returns the config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def config_differences(old: Config, new: Config) -> list[str]:
    """Lists the keys whose values differ, as `section.key: old -> new`."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, missing) != after.get(key, missing)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _resolve_paths(raw: Mapping[str, Any], base: Path) -> None:
    for section, key in PATH_KEYS:
        values = raw.get(section)
        if isinstance(values, dict) and isinstance(values.get(key), str):
            values[key] = str((base / Path(values[key]).expanduser()).resolve())


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    keys = name.strip().split(".")
    if not separator or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, for example train.epochs=5")
    value = parse_yaml(text, source=f"--set {override}")
    if tuple(keys) in PATH_KEYS and isinstance(value, str):
        value = str(Path(value).expanduser().resolve())
    node = raw
    for key in keys[:-1]:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {key!r} holds a single value, not keys")
        node = child
    node[keys[-1]] = value


def _validate(raw: Mapping[str, Any], *, source: str) -> Config:
    try:
        return Config.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        messages = [_explain(problem) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(messages)) from None


def _explain(problem: Any) -> str:
    location = problem["loc"]
    name = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name}{_nearest_key(location)}"
    if problem["type"] == "missing":
        return f"the key {name} is required"
    return f"{name}: {problem['msg']}, got {problem['input']!r}"


def _nearest_key(location: Sequence[Any]) -> str:
    """Names the known key that was probably meant, in the same section first, then in the others."""
    word, section = str(location[-1]), ".".join(str(part) for part in location[:-1])
    known = [key.rpartition(".") for key in _known_keys(Config)]
    in_section = [(prefix, name) for prefix, _, name in known if prefix == section]
    for candidates in (in_section, [(prefix, name) for prefix, _, name in known]):
        guess = nearest(word, {name for _, name in candidates})
        if guess:
            keys = [f"{prefix}.{name}".lstrip(".") for prefix, name in candidates if name == guess]
            return f"; did you mean {' or '.join(keys)}?"
    return f"; keys of {section or 'a config'}: {', '.join(sorted(name for _, name in in_section))}" if in_section else ""


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for nested in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(nested, type) and issubclass(nested, BaseModel):
                keys += _known_keys(nested, f"{prefix}{name}.")
    return keys


def _with_checked_components(config: Config) -> Config:
    """Binds every named component's `args` to its signature and checks values across sections."""
    # Imported here because models load Keras, which commands without a config should not wait for.
    from cervseg_jax.data.augment import AUGMENTATIONS
    from cervseg_jax.losses import LOSSES
    from cervseg_jax.metrics.pixel import SUMMARY_NAMES
    from cervseg_jax.models import check_model_args

    model_args = check_model_args(config.model.name, config.model.image_size, config.model.args)
    lookup(LOSSES, config.train.loss, key="train.loss")
    for name in config.train.metrics:
        lookup(dict.fromkeys(("dice_coef", *SUMMARY_NAMES)), name, key="train.metrics")
    operations = []
    for index, operation in enumerate(config.augment.operations):
        key = f"augment.operations[{index}]"
        function = lookup(AUGMENTATIONS, operation.name, key=key)
        args = bind(function, operation.args, key=f"{key}.args", reserved=("sample", "rng"))
        operations.append(operation.model_copy(update={"args": args}))
    _check_mesh(config)
    _check_split(config)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"args": model_args}),
            "augment": config.augment.model_copy(update={"operations": tuple(operations)}),
        }
    )


def _check_mesh(config: Config) -> None:
    mesh = config.runtime.mesh
    if mesh is None:
        return
    for key, batch_size in (
        ("train.batch_size", config.train.batch_size),
        ("eval.batch_size", config.eval.batch_size),
        ("infer.batch_size", config.infer.batch_size),
    ):
        if batch_size % mesh.data:
            rounded = math.ceil(batch_size / mesh.data) * mesh.data
            raise ConfigError(
                f"{key}: must be a multiple of runtime.mesh.data ({mesh.data}), got {batch_size}; {rounded} would fit"
            )
    height = config.model.image_size[0]
    if height % mesh.spatial:
        raise ConfigError(
            f"runtime.mesh.spatial: must divide the rows of model.image_size ({height}), got {mesh.spatial}"
        )


def _check_split(config: Config) -> None:
    split = config.data.split
    if split is None:
        return
    if config.data.synthetic is not None:
        raise ConfigError("data.split: not together with data.synthetic, which comes already divided")
    if split.valid == 0 or split.valid + split.test >= 1:
        raise ConfigError(
            "data.split: valid must be above 0 and valid + test below 1, "
            f"got valid {split.valid} and test {split.test}"
        )
    if split.group_pattern is not None:
        try:
            groups = re.compile(split.group_pattern).groups
        except re.error as error:
            raise ConfigError(f"data.split.group_pattern: not a regular expression: {error}") from None
        if groups < 1:
            raise ConfigError(
                "data.split.group_pattern: needs one (group) that names the source, "
                f"got {split.group_pattern!r}; for example '([0-9]+)$'"
            )
