"""A Supabase project around postroom: its functions under deno, its callers by supabase-js, its database."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from postroom import Room
from postroom.supabase.functions import export_functions
from tests.conftest import DEBIAN_15
from tests.http.conftest import Served, serving, settings_of
from tests.schedule.test_pg_cron import CONTROL
from tests.supabase.projects import (
    CRON_DATABASE,
    PRELOADED,
    SupabaseProject,
    supabase_project,
    supabase_server,
)
from tests.support.node import Driver, NodeTools, node_tools, running_driver
from tests.support.postgres import PostgresServer, free_port
from tests.support.waiting import until_now

HERE = Path(__file__).parent
STRIPE_SECRET = "whsec_of_the_tests"


@pytest.fixture(scope="session")
def tools() -> NodeTools:
    """Node, deno, the Supabase CLI and the libraries."""
    return node_tools()


@pytest.fixture(scope="session")
def js(tools: NodeTools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A program that calls supabase-js and Stripe's library."""
    with running_driver(tools, HERE / "driver.mjs", tmp_path_factory.mktemp("js")) as driver:
        yield driver


@dataclass
class Edge:
    """
    The functions of a project, each in a process of its own, as the export has written them.

    Attributes:
        ports: Where each is, by name.
    """

    tools: NodeTools
    folder: Path
    house_url: str
    ports: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def serving(self, *names: str, house_url: str | None = "") -> Iterator[None]:
        """
        Run some of them while the block does.

        Args:
            house_url: POSTROOM_PUBLIC_URL; "" is the house's own address, None leaves it unset.
        """
        processes = [self._start(name, self.house_url if house_url == "" else house_url) for name in names]
        try:
            for name in names:
                until_now(lambda name=name: self._answers(name))  # type: ignore[misc]
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.wait()

    def url(self, name: str) -> str:
        """As the gateway calls it."""
        return f"http://127.0.0.1:{self.ports[name]}/{name}"

    def _start(self, name: str, house_url: str | None) -> subprocess.Popen[bytes]:
        self.ports[name] = free_port()
        environment = self.tools.environment | {"DENO_SERVE_ADDRESS": f"tcp:127.0.0.1:{self.ports[name]}"}
        if house_url is not None:
            environment["POSTROOM_PUBLIC_URL"] = house_url
        script = self.folder / name / "index.ts"
        flags = ("--no-prompt", "--no-remote", "--allow-net", "--allow-env")
        return subprocess.Popen([str(self.tools.deno), "run", *flags, str(script)], env=environment)

    def _answers(self, name: str) -> bool:
        try:
            return httpx.options(self.url(name), trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """The doors of a house, with Stripe as a source; callers show keys of their own."""
    settings = settings_of(database_url, tmp_path, stripe_webhook_secret=STRIPE_SECRET)
    async with Room(**settings) as room, serving(room, key=None) as served:
        yield served


@pytest.fixture
def edge(tools: NodeTools, house: Served, tmp_path: Path) -> Edge:
    """The exported functions, to be served before the house."""
    folder = tmp_path / "functions"
    export_functions(folder)
    return Edge(tools, folder, house.url)


@pytest.fixture(scope="module")
def new_server() -> Iterator[PostgresServer]:
    """Supabase's roles on the newest PostgreSQL; pg_cron cannot be had there."""
    with supabase_server() as server:
        yield server


@pytest.fixture(scope="module")
def server_with_pg_cron() -> Iterator[PostgresServer]:
    """Supabase's roles on PostgreSQL 15, and pg_cron for one database."""
    if not (DEBIAN_15 / "initdb").exists() or not CONTROL.exists():
        pytest.skip("needs Debian's package postgresql-15-cron")
    with supabase_server(DEBIAN_15, PRELOADED) as server:
        yield server


@pytest.fixture(params=["postgresql 18", "postgresql 15, pg_cron not enabled"])
def project(request: pytest.FixtureRequest) -> Iterator[SupabaseProject]:
    """An empty project."""
    name = "new_server" if request.param == "postgresql 18" else "server_with_pg_cron"
    with supabase_project(request.getfixturevalue(name), CRON_DATABASE) as one:
        yield one
