"""What a benchmark says: one table on the terminal, and one line of JSON in bench/.results."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).with_name(".results")


@dataclass
class Result:
    """
    The answer to one question.

    Attributes:
        columns: The table's head.
        rows: Its cells, as people read them.
        settings: What was measured, with which settings: name to value.
        measured: Every single measurement, by contender, for the JSON.
        notes: What must be said beside the table, such as where we lose.
    """

    name: str
    question: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    measured: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table, with its settings and notes under it."""
        widths = [
            max(len(cells[place]) for cells in [self.columns, *self.rows])
            for place in range(len(self.columns))
        ]
        lines = [f"{self.name}: {self.question}", ""]
        for cells in [self.columns, ["-" * width for width in widths], *self.rows]:
            padded = [
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            lines.append("  " + "  ".join(padded).rstrip())
        lines.append("")
        lines += [f"  {name}: {value}" for name, value in self.settings.items()]
        lines += [f"  * {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path = RESULTS) -> Path:
        """Append it as one line of JSON, with the time and the machine."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.name}.jsonl"
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), **asdict(self)}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return path


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(*packages: str) -> str:
    """Name and version of each package that is installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median with the lowest and the highest, such as `4100 (3900-4300)`."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def ratio(ours: float, other: float) -> str:
    """How many times as good, such as `6.1x`."""
    return f"{ours / other:.1f}x"


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
