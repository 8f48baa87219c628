"""Access to the entries of a reference config that records how each key was used."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cervseg_jax.components import nearest
from cervseg_jax.reference.ini import Entry

NOT_READ = (
    "model.base_dilation model.dice_loss model.model_compile model.kernel_size model.ksize model.sharp_ksize "
    "model.decoder_channels model.freeze_enc_cnn model.grid model.hidden_size model.hybrid model.mlp_dim "
    "model.num_skip model.pretrain dataset.image_format dataset.input_normalize dataset.sharpening train.show_history "
    "eval.output_dir tiledinfer.debug tiledinfer.mask_colorize infer.algorithm infer.threshold segmentation.blursize "
    "distortion.gaussian_filter_sigma"
).split()
"""Keys that occur in real configs but that the reference itself does not read."""

REPLACED = {
    "train.model_dir": "the run folder, --run-dir",
    "train.eval_dir": "the run folder, --run-dir",
    "train.save_weights_only": "runs keep the best weights and resumable checkpoints",
    "train.best_model_file": "RUN/best",
    "train.create_backup": "runs are never overwritten",
    "train.metrics": "metrics.csv records every metric of model.metrics",
    "train.epoch_change_infer": "RUN/previews",
    "train.epoch_change_infer_dir": "RUN/previews",
    "infer.images_dir": "infer --images",
    "infer.output_dir": "infer --out",
    "infer.merged_dir": "overlays are always written",
    "tiledinfer.images_dir": "infer --images",
    "tiledinfer.output_dir": "infer --out",
    "tiledinfer.merged_dir": "overlays are always written",
    "tiledinfer.split_size": "tiles have the network's size, at the image's original scale",
    "tiledinfer.background": "tiles cover the whole image",
    "train.epoch_change_tiledinfer": "RUN/previews",
    "train.epoch_change_tiledinfer_dir": "RUN/previews",
    "infer.mask_colorize": "infer --output color",
    "segmentation.colorize": "infer --output color",
    "model.show_summary": "cervseg-jax models NAME",
    "model.image_channels": "images are RGB",
    "model.num_classes": "one class, nucleus",
    "generator.debug": "cervseg-jax stats shows samples",
}
"""Keys without a config counterpart, with what replaces them."""


class Note(NamedTuple):
    """How one key was handled."""

    key: str
    status: str
    """One of "kept", "renamed", "repaired" and "ignored"."""
    message: str


class Reader:
    """Returns entries by key and records a note for each."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        """Creates a reader over `entries`, without notes."""
        self.entries = entries
        self.notes: dict[str, Note] = {}

    def get(self, key: str, default: Any = None, *, to: str, kind: type | tuple[type, ...] = (int, float)) -> Any:
        """Returns the value of a key and notes its new name.

        Args:
          key: `section.key` in the reference.
          default: returned if the key is missing, empty, or not of `kind`.
          to: config key that takes the value.
          kind: accepted types; bool does not count as a number.
        """
        entry = self.entries.get(key)
        if entry is None:
            return default
        value = entry.value
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            message = f"invalid value {value!r}; using the reference's default {default!r}"
            self.notes[key] = Note(key, "repaired", message)
            return default
        status = (
            "repaired" if entry.repairs else "kept" if key.rpartition(".")[2] == to.rpartition(".")[2] else "renamed"
        )
        self.notes[key] = Note(key, status, "; ".join([*entry.repairs, f"{to} = {value!r}"]))
        return default if value is None else value

    def report(self) -> list[Note]:
        """Returns one note per key of the file."""
        for key, entry in self.entries.items():
            if key in self.notes:
                continue
            if key in REPLACED:
                self.notes[key] = Note(key, "ignored", f"in this package: {REPLACED[key]}")
            elif key in NOT_READ:
                self.notes[key] = Note(key, "ignored", "not read by the reference either")
            else:
                guess = nearest(key, self.notes)
                hint = f"; did you mean {guess}?" if guess and guess not in self.entries else ""
                self.notes[key] = Note(key, "ignored", f"no counterpart for {entry.value!r} in this recipe{hint}")
        return [self.notes[key] for key in self.entries]
