"""Which checkpoints are kept when a new one is saved."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any


class Retention:
    """Keeps the newest checkpoints, and those whose metadata say so. A preservation policy of Orbax."""

    def __init__(self, keep: int, keeps_forever: Callable[[dict[str, Any]], bool] | None) -> None:
        """Creates the policy.

        Args:
          keep: number of newest checkpoints to keep.
          keeps_forever: whether to keep a checkpoint with this metadata in addition to the newest ones.
        """
        self._keep = keep
        self._keeps_forever = keeps_forever
        self._is_kept: dict[int, bool] = {}

    def prepare(
        self, number: int, meta: dict[str, Any], others: Iterable[int], read_meta: Callable[[int], dict[str, Any]]
    ) -> None:
        """Reads the metadata that the next decision needs.

        Args:
          number: the checkpoint that is about to be saved.
          meta: its metadata.
          others: the checkpoints on disk.
          read_meta: reads the metadata of one of them; called at most once for each.
        """
        if self._keeps_forever is None:
            return
        self._is_kept[number] = self._keeps_forever(meta)
        for old in sorted({*others, number})[: -self._keep]:
            if old not in self._is_kept:
                try:
                    self._is_kept[old] = self._keeps_forever(read_meta(old))
                except Exception:  # noqa: BLE001 (damage surfaces as almost any type)
                    self._is_kept[old] = True  # never delete what cannot be read

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each checkpoint, given in order of their numbers, whether to keep it."""
        first_new = len(checkpoints) - self._keep
        return [
            index >= first_new or self._is_kept.get(checkpoint.step, False)
            for index, checkpoint in enumerate(checkpoints)
        ]
