"""Trained weights on disk, together with the contract of how images must be prepared for them.

A folder holds `contract.json` and the weights file that it names, with its checksum. The contract is replaced
last and in one move, so a reader always finds a matching pair.
"""

import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cervseg_jax import __version__
from cervseg_jax.choices import BitDepth, MaskRule
from cervseg_jax.errors import CervsegError, CheckpointError
from cervseg_jax.files import make_folder, sha256_of, write_bytes, write_text
from cervseg_jax.heads import Head, num_maps
from cervseg_jax.models import Apply, Backend, build_abstract
from cervseg_jax.schema import Config
from cervseg_jax.typing import ModelState, Params

PREPROCESSING = (
    "RGB, 0..255 (16-bit files scaled from bit_depth), EXIF orientation applied; resized to image_size by area "
    "averaging where it shrinks, else bilinearly; the network scales inside; its output are logits"
)


POSTPROCESSING_FILE = "postprocessing.json"
"""Beside the weights: threshold and watershed parameters tuned for them."""
OLD_POSTPROCESSING_FILE = "separation.json"
"""Its name in release 0.1; still read."""


class Contract(BaseModel):
    """What a weights file is and how to use it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str
    model_args: dict[str, Any]
    image_size: tuple[int, int]
    heads: tuple[Head, ...] = ("mask",)
    """What the network's maps are."""
    preprocessing: str
    mask_rule: MaskRule
    bit_depth: BitDepth = 16
    """Bits of 16-bit images, see `data.bit_depth`; contracts of earlier versions have none and mean 16."""
    epoch: int
    step: int
    val_loss: float | None
    """None for weights that come from elsewhere."""
    version: str
    weights_file: str
    weights_sha256: str


class Network:
    """A network that is ready to use: the pure function, its values, and the contract."""

    def __init__(
        self,
        contract: Contract,
        apply: Apply,
        params: Params,
        model_state: ModelState,
        *,
        precision: str = "float32",
    ) -> None:
        """Keeps the parts together.

        Args:
          contract: how to use the network.
          apply: the network, built for the backend "xla".
          params: trainable variables.
          model_state: BatchNorm statistics.
          precision: "float32" or "bfloat16" compute, as of `apply`.
        """
        self.contract = contract
        self.apply = apply
        self.params = params
        self.model_state = model_state
        self.precision = precision
        self._applies: dict[Backend, Apply] = {"xla": apply}

    def apply_for(self, backend: Backend) -> Apply:
        """Returns the network as a pure function built for a backend; it takes the same values."""
        if backend not in self._applies:
            self._applies[backend], _, _ = _build(self.contract, self.precision, backend)
        return self._applies[backend]


def _build(contract: Contract, precision: str, backend: Backend) -> tuple[Apply, Params, ModelState]:
    return build_abstract(
        contract.model_name,
        image_size=contract.image_size,
        args=contract.model_args,
        dtype=precision,
        num_maps=num_maps(contract.heads),
        backend=backend,
    )


def save_weights(
    folder: Path,
    config: Config,
    params: Params,
    model_state: ModelState,
    *,
    epoch: int,
    step: int,
    val_loss: float | None,
) -> None:
    """Writes weights and contract; replaces those that are there.

    Args:
      folder: made where missing.
      config: the recipe.
      params: trainable variables.
      model_state: BatchNorm statistics.
      epoch: 1-based epoch that they come from; 0 for weights that come from elsewhere.
      step: optimizer updates before.
      val_loss: its validation loss; None where it is unknown.

    Raises:
      CheckpointError: if the disk is full or not writable; what was there stays usable.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{path: np.asarray(value) for path, value in (params | model_state).items()})  # pyright: ignore
    data = buffer.getvalue()
    contract = Contract(
        model_name=config.model.name,
        model_args=config.model.args,
        image_size=config.model.image_size,
        heads=config.model.heads,
        preprocessing=PREPROCESSING,
        mask_rule=config.data.mask_rule,
        bit_depth=config.data.bit_depth,
        epoch=epoch,
        step=step,
        val_loss=val_loss,
        version=__version__,
        weights_file=f"weights_epoch_{epoch:04d}.npz",
        weights_sha256=sha256_of(data),
    )
    make_folder(folder)
    try:
        write_bytes(folder / contract.weights_file, data)
        for name in (POSTPROCESSING_FILE, OLD_POSTPROCESSING_FILE):
            (folder / name).unlink(missing_ok=True)  # it was tuned for the previous weights
        write_text(folder / "contract.json", contract.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{folder}: the best weights could not be saved: {error.strerror}") from None
    for path in folder.glob("weights_epoch_*.npz"):
        if path.name != contract.weights_file:
            path.unlink()


def read_contract(folder: Path) -> Contract:
    """Reads a contract.

    Raises:
      CheckpointError: if there is none, or it is no contract.
    """
    path = folder / "contract.json"
    try:
        return Contract.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: holds no trained weights (no contract.json); has the run finished its first epoch?"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged: {error.errors()[0]['msg']}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def load_network(folder: Path, *, precision: str = "float32") -> Network:
    """Builds the contract's network and loads its weights.

    Args:
      folder: written by `save_weights`.
      precision: "float32" or "bfloat16" compute.

    Returns:
      The network.

    Raises:
      CheckpointError: if a file is missing or damaged, or the weights belong to another network.
    """
    contract = read_contract(folder)
    arrays = _read_arrays(folder, contract)
    try:
        apply, params, model_state = _build(contract, precision, "xla")
    except CervsegError as error:
        raise CheckpointError(f"{folder / 'contract.json'}: names a network that cannot be built: {error}") from None
    fitted = _fitted(arrays, params, model_state, source=folder / contract.weights_file)
    return Network(contract, apply, *fitted, precision=precision)


def load_arrays(folder: Path, params: Params, model_state: ModelState) -> tuple[Params, ModelState]:
    """Reads stored weights for a network.

    Args:
      folder: written by `save_weights`.
      params: the network's trainable variables.
      model_state: its other variables.

    Returns:
      The same with the stored values.

    Raises:
      CheckpointError: if a file is missing or damaged, or the weights belong to another network.
    """
    contract = read_contract(folder)
    arrays = _read_arrays(folder, contract)
    return _fitted(arrays, params, model_state, source=folder / contract.weights_file)


def _read_arrays(folder: Path, contract: Contract) -> dict[str, np.ndarray]:
    path = folder / Path(contract.weights_file).name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if sha256_of(data) != contract.weights_sha256:
        raise CheckpointError(f"{path}: is damaged (its checksum differs from the one in contract.json)")
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _fitted(
    arrays: dict[str, np.ndarray], params: Params, model_state: ModelState, *, source: Path
) -> tuple[Params, ModelState]:
    check_arrays(arrays, params | model_state, source=source)
    return (
        {name: jnp.asarray(arrays[name], value.dtype) for name, value in params.items()},
        {name: jnp.asarray(arrays[name], value.dtype) for name, value in model_state.items()},
    )


def check_arrays(arrays: dict[str, np.ndarray], expected: dict[str, Any], *, source: Path) -> None:
    """Compares names and shapes of stored arrays with those of a network.

    Raises:
      CheckpointError: naming the first array that differs.
    """
    for name in sorted(arrays.keys() | expected.keys()):
        if name not in expected or name not in arrays:
            where = "has an array that the network lacks" if name in arrays else "lacks an array of the network"
            raise CheckpointError(f"{source}: {where}: {name}; it was trained with another config")
        if arrays[name].shape != tuple(expected[name].shape):
            raise CheckpointError(
                f"{source}: {name} has the shape {list(arrays[name].shape)}, "
                f"the network needs {list(expected[name].shape)}; it was trained with another config"
            )
