"""Config keys of earlier releases, read under their new names."""

from collections.abc import Mapping, Sequence
from typing import Any

RENAMED_KEYS: Mapping[str, str] = {
    "train.rate_factors": "train.lr_multipliers",
    "train.accumulate": "train.grad_accum_steps",
    "train.side_loss_weight": "train.deep_supervision_weight",
    "train.norm_warmup": "train.batch_norm_warmup",
    "runtime.recompute": "runtime.remat",
    "infer.colours": "infer.colors",
    "infer.separation": "infer.postprocessing",
    "infer.postprocessing.min_depth": "infer.postprocessing.min_saddle_depth",
    "infer.postprocessing.threshold": "infer.threshold",
    "eval.threshold": "infer.threshold",
}
"""Keys of release 0.1 and their names now; read with a notice, in order, until 0.3."""

OLD_DEFAULT_THRESHOLD = 0.5
"""Default of `eval.threshold` and `infer.threshold` in release 0.1, whose run folders store every default."""


def drop_old_default_thresholds(raw: dict[str, Any]) -> None:
    """Removes thresholds that a run folder of release 0.1 stores although nobody set them, in place.

    Such a folder has `eval.threshold`, `infer.threshold` and the threshold of the label maps, which was tuned and is
    stored with the weights. As settings, the defaults of the first two would replace the tuned one.
    """
    evaluation, infer = _section(raw, ["eval"]), _section(raw, ["infer"])
    if evaluation is None or "threshold" not in evaluation:
        return
    separation = _section(raw, ["infer", "separation"])
    if infer is not None and (
        infer.get("threshold") == OLD_DEFAULT_THRESHOLD or (separation is not None and "threshold" in separation)
    ):
        infer.pop("threshold", None)
    if evaluation["threshold"] == OLD_DEFAULT_THRESHOLD:
        evaluation["threshold"] = None


def rename_keys(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """Moves values from `RENAMED_KEYS` to their new names, in place; a value under the new name wins.

    Returns:
      The old and new names that were found.
    """
    found = []
    for old, new in RENAMED_KEYS.items():
        *old_path, old_key = old.split(".")
        *new_path, new_key = new.split(".")
        source = _section(raw, old_path)
        if len(new_path) == 1:
            raw.setdefault(new_path[0], {})
        target = _section(raw, new_path)
        if source is None or target is None or old_key not in source:
            continue
        value = source.pop(old_key)
        if target.get(new_key) is None:
            target[new_key] = value
        found.append((old, new))
    return found


def _section(raw: dict[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    node: Any = raw
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def renamed_assignments(name: str, value: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, str]]]:
    """Translates an override: its own name, and old names within a value that is a section.

    Returns:
      Names and values to set, and the old and new names of renamed keys.
    """
    assignments, renamed = [(name, value)], []
    for old, new in RENAMED_KEYS.items():
        for index, (own, own_value) in enumerate(assignments):
            inner = old.removeprefix(f"{own}.")
            if f"{own}.".startswith(f"{old}."):
                assignments[index] = (new + own.removeprefix(old), own_value)
            elif inner != old and isinstance(own_value, dict) and inner in own_value:
                rest = {key: kept for key, kept in own_value.items() if key != inner}
                assignments[index] = (own, rest)
                assignments.append((new, own_value[inner]))
            else:
                continue
            renamed.append((old, new))
            break
    return assignments, renamed
