"""The count of steps."""

from typing import Any

import keras
import torch


class Iterations(keras.Variable):  # type: ignore[misc]
    """Keras' count of steps, which the host knows as long as it is only added to.

    To read one on a GPU waits for all steps before, and so does Keras' own way to add a number.
    """

    # The tensor, its version and memory, and the count in it.
    _known: tuple[Any, int, int, int] = (None, 0, 0, 0)

    def count(self) -> int:
        """Return it, read where others have written it."""
        now = self.value
        tensor, version, address, count = self._known
        if now is not tensor or now._version != version or now.data_ptr() != address:
            count = int(now)
            self._known = (now, now._version, now.data_ptr(), count)
        return count

    def assign_add(self, value: Any) -> Any:
        """Add a number in place."""
        if not isinstance(value, int):
            return super().assign_add(value)
        count, now = self.count() + value, self.value
        with torch.no_grad():
            now.add_(value)
        self._known = (now, now._version, now.data_ptr(), count)
        return now
