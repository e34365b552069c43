"""Bars that say how far long work is and how long it will still take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["counting_bar", "progress_bar"]


@contextmanager
def progress_bar(show: bool, rounds: int, done: int = 0) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that is told the row of every round; it draws on standard error, or does nothing."""
    if not show:
        yield lambda row: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    accuracy = ""
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=rounds, completed=done)

        def tell(row: Mapping[str, Any]) -> None:
            nonlocal accuracy
            if row["test_accuracy"] is not None:
                accuracy = f", accuracy {row['test_accuracy']:.3f}"
            loss = "" if row["train_loss"] is None else f" loss {row['train_loss']:.3g}"
            bar.update(task, completed=row["round"], description=f"training:{loss}{accuracy}")

        yield tell


@contextmanager
def counting_bar(show: bool, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many are done; it draws on standard error, or does nothing."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
