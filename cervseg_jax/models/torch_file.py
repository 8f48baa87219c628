"""PyTorch weight files read as data: arrays by name, without PyTorch and without executing anything."""

import collections
import hashlib
import io
import pickle  # noqa: S403 (only the classes of `_ALLOWED` are ever looked up)
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.errors import ConfigError

MAGIC = 0x1950A86A20F9469CFC6C
"""First number of files that `torch.save` wrote before PyTorch 1.6."""
PROTOCOL = 1001


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: tuple[Any, ...]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    **{("torch", name): name for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """Knows the classes of `_ALLOWED` and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is not a plain array") from None

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_torch_file(path: Path, *, sha256: str) -> dict[str, np.ndarray]:
    """Reads the arrays of a file that `torch.save` wrote in its format before PyTorch 1.6.

    Args:
      path: the file.
      sha256: the checksum that it must have, as hexadecimal text.

    Returns:
      Arrays by name, in the file's order.

    Raises:
      ConfigError: if the file cannot be read, has another checksum, or holds anything but arrays.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise ConfigError(f"{path}: expected the SHA-256 {sha256[:12]}..., got {actual[:12]}...; install it again")
    try:
        return _parse(data)
    except (pickle.UnpicklingError, ValueError, KeyError, TypeError, EOFError, IndexError, AttributeError) as error:
        raise ConfigError(f"{path}: is not a PyTorch weights file: {error}") from None


def _parse(data: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(data)
    if (_Unpickler(file).load(), _Unpickler(file).load()) != (MAGIC, PROTOCOL):
        raise ValueError("unknown format")
    _Unpickler(file).load()  # sizes of C types
    tensors = _Unpickler(file).load()
    storages = {}
    dtypes = {tensor.storage[2]: _DTYPES[tensor.storage[1]] for tensor in tensors.values()}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        dtype = dtypes[key]
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: _view(tensor, storages[tensor.storage[2]]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """Returns a tensor's values, contiguous; views that leave their storage are refused."""
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if (
        min(tensor.shape, default=1) < 1
        or tensor.offset < 0
        or min(tensor.strides, default=0) < 0
        or last >= len(storage)
    ):
        raise ValueError("a tensor does not fit its storage")
    strides = [step * storage.itemsize for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view)
