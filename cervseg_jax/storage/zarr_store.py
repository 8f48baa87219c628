"""Zarr's view of a folder at an address: chunks are fetched once, checked and kept as other files are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cached import read_file


def zarr_source(folder: Path) -> Any:
    """Returns what `zarr.open_array` takes for a folder: a read-only store for an address, else the path.

    Raises:
      ImportError: if the extra `slides` is not installed.
    """
    if not isinstance(folder, Address):
        return folder
    from zarr.abc.store import Store  # pyright: ignore[reportMissingImports]

    class AddressStore(Store):
        supports_writes = supports_deletes = supports_listing = False  # pyright: ignore

        def __init__(self) -> None:
            super().__init__(read_only=True)

        def __eq__(self, other: object) -> bool:
            return self is other

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            data = await asyncio.to_thread(_read, folder / key, byte_range)
            return None if data is None else prototype.buffer.from_bytes(data)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
            return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

        async def exists(self, key: str) -> bool:
            return await asyncio.to_thread((folder / key).is_file)

        async def set(self, key: str, value: Any) -> None:
            raise NotImplementedError

        async def delete(self, key: str) -> None:
            raise NotImplementedError

        def list(self) -> AsyncIterator[str]:
            raise NotImplementedError

        def list_prefix(self, prefix: str) -> AsyncIterator[str]:
            raise NotImplementedError

        def list_dir(self, prefix: str) -> AsyncIterator[str]:
            raise NotImplementedError

    return AddressStore()


def _read(path: Address, part: Any) -> bytes | None:
    """Returns a file, or a part of it; None if there is none, as chunks that are not there have the fill value."""
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest  # pyright: ignore[reportMissingImports]

    try:
        size = path.entry().size
    except FileNotFoundError:
        return None
    if part is None:
        return read_file(path)
    if isinstance(part, RangeByteRequest):
        return path.read_range(part.start, part.end)
    if size is None:
        size = path.entry(refresh=True).size or 0
    start = part.offset if isinstance(part, OffsetByteRequest) else max(0, size - part.suffix)
    return path.read_range(start, size)
