"""The edge functions, as files: each hands its requests over to postroom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from postroom.errors import PostroomError

MARK = "// Written by `postroom migrate --export`."
"""The first line of what is ours: such a file may be written anew."""

KEPT = ".before-postroom"


@dataclass(frozen=True)
class WrittenFile:
    """
    A file that was written.

    Attributes:
        kept: Where the project's own file is now that had its name.
    """

    path: Path
    kept: Path | None = None


def export_functions(folder: Path) -> list[WrittenFile]:
    """
    Write the functions, and keep a function of the project's own beside ours.

    Args:
        folder: `supabase/functions`; made where it is missing.

    Returns:
        The files that were written; one that is there already is not among them.

    Raises:
        PostroomError: A file would have to be kept under a name that is taken.
    """
    sources = {folder / name: source.read_text(encoding="utf-8") for name, source in _sources()}
    to_keep = [path for path, text in sources.items() if path.exists() and not _is_ours(path, text)]
    for path in to_keep:
        if _kept(path).exists():
            raise PostroomError(
                f"{path} is no file of postroom's, and {_kept(path)} is taken: move one of them"
            )
    written = []
    for path, text in sources.items():
        if path in to_keep:
            path.rename(_kept(path))
        elif path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(WrittenFile(path, _kept(path) if path in to_keep else None))
    return written


def _sources() -> Iterator[tuple[str, Traversable]]:
    for function in (files("postroom") / "supabase" / "functions").iterdir():
        for source in function.iterdir():
            yield f"{function.name}/{source.name}", source


def _is_ours(path: Path, text: str) -> bool:
    found = path.read_text(encoding="utf-8", errors="replace")
    return found == text or found.startswith(MARK)


def _kept(path: Path) -> Path:
    return path.with_name(path.name + KEPT)
