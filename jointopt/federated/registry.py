"""Parts of the training loop by name, so that a plug-in is one call away."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from jointopt.errors import InputError, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, Callable[..., T]], Generic[T]):
    """Makers of one kind of part by name.

    Parameters
    ----------
    kind : str
        What an error calls the part, such as "clock".
    base : type
        What every part is an instance of.
    makers : callables
        Classes with a `name`.
    """

    def __init__(self, kind: str, base: type[Any], *makers: Any) -> None:
        self.kind, self._base = kind, base
        self._makers: dict[str, Callable[..., T]] = {maker.name: maker for maker in makers}

    def __getitem__(self, name: str) -> Callable[..., T]:
        return self._makers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def register(self, name: str, maker: Callable[..., T]) -> None:
        """Make a part known by name."""
        self._makers[name] = maker

    def make(self, which: Any) -> T:
        """Return a part by its name, or a mapping of "name" and options, or the part itself.

        Raises
        ------
        InputError
            There is no part of that name, or it does not take such options.
        """
        if isinstance(which, self._base):
            return which
        options: dict[str, Any] = {}
        name = which
        if isinstance(which, Mapping):
            options = {str(key): value for key, value in which.items() if key != "name"}
            name = which.get("name")
        if not isinstance(name, str) or name not in self._makers:
            raise InputError(f"{self.kind}: unknown {name!r}{nearest(str(name), self._makers)}")
        maker = self._makers[name]
        # of a class without a constructor the signature is that of `object`, which takes nothing
        parameters = inspect.signature(maker).parameters.values()
        known = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        for option in options:
            if option not in known:
                hint = nearest(option, known) if known else "; it takes none"
                raise InputError(f"{self.kind} '{name}': unknown option '{option}'{hint}")
        return maker(**options)
