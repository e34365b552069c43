"""A bar that says how far long work is; it draws on standard error, or does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


def _silent(done: int, words: str) -> None:
    """Draw nothing."""


@contextmanager
def progress_bar(show: bool, label: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yield a function that is told how much is done, and what to say beside the bar."""
    if not show:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done)

        def tell(done: int, words: str) -> None:
            bar.update(task, completed=done, description=f"{label}{words}")

        yield tell
