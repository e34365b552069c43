"""What the command shows: text, progress, files written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from jointopt.errors import InputError

__all__ = ["err", "escape", "out", "plots", "progress", "save_figure", "show", "written"]

out = Console()
err = Console(stderr=True)


def escape(text: str) -> str:
    """Return text in which nothing is taken for markup."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def progress(label: str, total: int) -> Iterator[Any]:
    """Show a bar on standard error; what is given is called after each step, with a description if there is one."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda description=None, total=None: progress.update(
            task, advance=1, description=description or label, total=total
        )


def show(text: str) -> None:
    """Print text as it is."""
    out.print(escape(text), highlight=False, soft_wrap=True)


def plots() -> Any:
    """Return `jointopt.plot`, which loads matplotlib."""
    from jointopt import plot

    return plot


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, as PNG where the path says nothing else."""
    if not path.suffix:
        path = path.with_suffix(".png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error})") from None
    written(path)


def written(path: Path) -> None:
    """Say that a file was written."""
    out.print(f"written: {escape(str(path))}", highlight=False, soft_wrap=True)
