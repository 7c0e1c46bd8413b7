"""What a run hangs on its model, so that copies of the model do not carry it away."""

from collections.abc import Callable
from typing import Any


class RunListener:
    """A forward hook that belongs to the run: `copy.deepcopy` and pickling of the model leave a deaf one behind.

    A bound method would take its object along, and with it the Runner, its loggers and its loaders.

    Args:
        listen: called as torch calls the hook; None hears nothing.
    """

    def __init__(self, listen: Callable | None) -> None:
        self.listen = listen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Pass the call on."""
        return None if self.listen is None else self.listen(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> 'RunListener':
        """Deaf."""
        return RunListener(None)

    def __reduce__(self) -> tuple:
        """Deaf as well."""
        return RunListener, (None,)
