"""A process that uses an embedded database, for tests that kill it: python -m … FOLDER."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from postroom.database import embedded

ROOT = Path(__file__).parents[2]


class EmbeddedUser:
    """Such a process, seen from the test: `url` once it has joined."""

    def __init__(self, data_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.embedded_user", str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def joined(self) -> str:
        """Wait until it has joined; its database's address."""
        assert self._process.stdout is not None
        url = self._process.stdout.readline().strip()
        assert url.startswith("postgresql://"), self._process.wait(60)
        return url

    def leave(self) -> None:
        """Let it end well, and wait for it."""
        self._process.communicate("\n", timeout=60)
        assert self._process.returncode == 0

    def kill(self) -> None:
        """kill -9."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.communicate(timeout=60)


def main() -> None:
    with embedded.joined(Path(sys.argv[1])) as url:
        print(url, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
