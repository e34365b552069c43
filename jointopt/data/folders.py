"""Where the files of a data set are."""

from __future__ import annotations

import os
from pathlib import Path

from jointopt.errors import DataError, InputError

__all__ = ["FOLDER_VARIABLE", "data_folder"]

FOLDER_VARIABLE = "JOINTOPT_DATA"
"""The environment variable that names the folder when the caller does not."""


def data_folder(name: str, folder: str | os.PathLike[str] | None, default: str | None = None) -> tuple[Path, str]:
    """Return the folder of a data set, and in words who named it; it need not exist.

    The caller's folder goes before the environment variable, and that before the default.

    Raises
    ------
    InputError
        The folder is not a path.
    DataError
        Nobody named a folder.
    """
    if folder is not None:
        if not isinstance(folder, str | os.PathLike):
            raise InputError(f"folder must be a path, found {folder!r}")
        return Path(folder), "the folder given"
    if os.environ.get(FOLDER_VARIABLE):
        return Path(os.environ[FOLDER_VARIABLE]), f"from {FOLDER_VARIABLE}"
    if default is not None:
        return Path(default), "where Debian's package puts them"
    raise DataError(
        f"{name}: its files are read from a local folder and never downloaded; "
        f"name the folder in load(..., folder=...) or in the environment variable {FOLDER_VARIABLE}"
    )
