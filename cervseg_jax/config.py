"""Loads a config and checks everything that needs no data."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cervseg_jax.components import bind, lookup, nearest
from cervseg_jax.data.split import compile_group_pattern
from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import needs_instances
from cervseg_jax.packaged_recipes import find_recipe
from cervseg_jax.pretrained_weights import pretrained_names
from cervseg_jax.renamed_keys import drop_old_default_thresholds, rename_keys, renamed_assignments
from cervseg_jax.schema import Config
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.yaml12 import load_yaml, parse_yaml

_LOGGER = logging.getLogger("cervseg_jax")

PATH_KEYS: tuple[tuple[str, ...], ...] = (
    ("data", "root"),
    ("train", "init_from"),
    ("model", "args", "encoder_weights"),
)
"""Keys that hold paths: relative to the config file, or to the current folder if set with `--set`."""

NAMES = frozenset({"imagenet", *pretrained_names()})
"""Values of `PATH_KEYS` that are names and no paths."""


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Loads a config, applies overrides and checks everything that needs no data.

    Args:
      path: a YAML file, or the name of a packaged recipe.
      overrides: `section.key=value` items; values are read as YAML.

    Returns:
      The config, with absolute paths and all defaults filled in.

    Raises:
      ConfigError: naming the key, the received value and the allowed ones.
    """
    recipe = find_recipe(path)
    return build_config(load_yaml(recipe.path), overrides, folder=recipe.base, source=str(path))


def build_config(raw: dict[str, Any], overrides: Sequence[str], *, folder: Path, source: str) -> Config:
    """Builds a config from values that are not in a file.

    Args:
      raw: the sections; modified in place.
      overrides: see `load_config`.
      folder: base of relative paths.
      source: name of the config in messages.

    Returns:
      The config, with absolute paths and all defaults filled in.

    Raises:
      ConfigError: naming the key, the received value and the allowed ones.
    """
    _resolve_paths(raw, folder)
    drop_old_default_thresholds(raw)
    _notify(source, rename_keys(raw))
    _notify("--set", [names for override in overrides for names in _apply_override(raw, override)])
    return _with_checked_components(_validate(raw, source=source))


def dump_config(config: Config) -> str:
    """Serializes a config as YAML; `load_config` reads it back as an equal config."""
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


def _notify(source: str, renamed: Sequence[tuple[str, str]]) -> None:
    """Logs a notice of renamed keys."""
    if renamed:
        _LOGGER.warning(
            "%s uses old names, which release 0.3 will refuse: %s",
            source,
            ", ".join(f"{old} is now {new}" for old, new in renamed),
        )


def _resolve_paths(raw: Mapping[str, Any], base: Path) -> None:
    for *sections, key in PATH_KEYS:
        values: Any = raw
        for section in sections:
            values = values.get(section) if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(values.get(key), str) and values[key] not in NAMES:
            values[key] = _absolute(values[key], base)


def _absolute(text: str, base: Path) -> str:
    path = as_path(Path(text).expanduser())
    return text if isinstance(path, Address) else str((base / path).resolve())


def _apply_override(raw: dict[str, Any], override: str) -> list[tuple[str, str]]:
    """Sets the value of a `section.key=value` item, in place; returns the old and new names of renamed keys."""
    name, separator, text = override.partition("=")
    keys = name.strip().split(".")
    if not separator or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, for example train.epochs=5")
    value = parse_yaml(text, source=f"--set {override}")
    if tuple(keys) in PATH_KEYS and isinstance(value, str) and value not in NAMES:
        value = _absolute(value, Path.cwd())
    assignments, renamed = renamed_assignments(".".join(keys), value)
    for new_name, new_value in assignments:
        *sections, last = new_name.split(".")
        node = raw
        for key in sections:
            child = node.get(key)
            if child is None:
                child = node[key] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {key!r} is a single value and has no keys")
            node = child
        node[last] = new_value
    return renamed


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
    """Suggests the nearest known key, from the same section if possible, else from the others."""
    word, section = str(location[-1]), ".".join(str(part) for part in location[:-1])
    known = [key.rpartition(".") for key in _known_keys(Config)]
    in_section = [(prefix, name) for prefix, _, name in known if prefix == section]
    for candidates in (in_section, [(prefix, name) for prefix, _, name in known]):
        guess = nearest(word, {name for _, name in candidates})
        if guess:
            keys = [f"{prefix}.{name}".lstrip(".") for prefix, name in candidates if name == guess]
            return f"; did you mean {' or '.join(keys)}?"
    return (
        f"; keys of {section or 'a config'}: {', '.join(sorted(name for _, name in in_section))}" if in_section else ""
    )


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for nested in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(nested, type) and issubclass(nested, BaseModel):
                keys += _known_keys(nested, f"{prefix}{name}.")
    return keys


def _with_checked_components(config: Config) -> Config:
    """Binds the `args` of each named component to its signature and checks constraints between sections."""
    # Imported here because models import Keras, which is slow; commands without a config do not need it.
    from cervseg_jax.data.augment import AUGMENTATIONS
    from cervseg_jax.losses import LOSSES, SUPPLIED
    from cervseg_jax.metrics.pixel import SUMMARY_NAMES
    from cervseg_jax.models import check_model_args

    model_args = check_model_args(config.model.name, config.model.image_size, config.model.args)
    loss = lookup(LOSSES, config.train.loss, key="train.loss")
    loss_args = bind(loss, config.train.loss_args, key="train.loss_args", reserved=SUPPLIED)
    heads = config.model.heads
    if heads[:1] != ("mask",) or len(set(heads)) < len(heads):
        raise ConfigError(
            f"model.heads: the first head must be mask and each head may occur only once, got {list(heads)}"
        )
    if "rays" in heads and heads[-1] != "rays":
        raise ConfigError(f"model.heads: rays must be the last head, got {list(heads)}")
    if config.train.touching_weight and not needs_instances(heads):
        raise ConfigError(
            "train.touching_weight: needs instance labels; add boundary, distance, hover or rays to model.heads"
        )
    if config.train.cosine is not None and config.train.plateau is not None:
        raise ConfigError("train.cosine: cannot be combined with train.plateau; set train.plateau to null")
    for name in config.train.metrics:
        lookup(dict.fromkeys(("dice_coef", *SUMMARY_NAMES)), name, key="train.metrics")
    _check_validation(config)
    _check_nuclei_left_out(config)
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
            "train": config.train.model_copy(update={"loss_args": loss_args}),
        }
    )


def _check_validation(config: Config) -> None:
    train = config.train
    if train.init_share and train.init_from is None:
        raise ConfigError("train.init_share: needs the weights of train.init_from")
    if config.data.train_on_valid and (train.plateau is not None or train.early_stop_patience is not None):
        raise ConfigError(
            "data.train_on_valid: leaves no validation images for train.plateau and train.early_stop_patience; "
            "set both to null"
        )


def _check_nuclei_left_out(config: Config) -> None:
    keys = [key for key in ("min_probability", "precision", "recall") if getattr(config.infer, key) is not None]
    if len(keys) > 1:
        raise ConfigError(
            f"infer.{keys[-1]}: cannot be combined with infer.{keys[0]}; set infer.{keys[0]} to null to use it"
        )


def _check_mesh(config: Config) -> None:
    batch_size, grad_accum_steps = config.train.batch_size, config.train.grad_accum_steps
    if batch_size % grad_accum_steps:
        raise ConfigError(
            f"train.grad_accum_steps: must divide train.batch_size ({batch_size}), got {grad_accum_steps}"
        )
    mesh = config.runtime.mesh
    if mesh is None:
        return
    shards = mesh.data * mesh.fsdp * grad_accum_steps
    if batch_size % shards:
        rounded = math.ceil(batch_size / shards) * shards
        raise ConfigError(
            "train.batch_size: must be a multiple of runtime.mesh.data x runtime.mesh.fsdp x train.grad_accum_steps "
            f"({mesh.data} x {mesh.fsdp} x {grad_accum_steps}), got {batch_size}; the next valid size is {rounded}"
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
        raise ConfigError("data.split: cannot be combined with data.synthetic, which is already split")
    if split.valid == 0 or split.valid + split.test >= 1:
        raise ConfigError(
            f"data.split: valid must be positive and valid + test less than 1, got {split.valid} and {split.test}"
        )
    if split.group_pattern is not None:
        compile_group_pattern(split.group_pattern, key="data.split.group_pattern")
