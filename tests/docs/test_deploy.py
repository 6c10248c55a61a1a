"""What is in the repository to put postroom to work with."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import httpx
import pytest

from tests.docs.samples import samples_of
from tests.support.pgbouncer import started
from tests.support.postgres import free_port
from tests.support.waiting import until_now

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    """As systemd itself reads it, with programs in the place of those that are not here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs Debian's package systemd")
    unit = re.sub(
        r"/opt/postroom/bin/postroom\b.*", "/bin/true", (ROOT / "deploy/postroom.service").read_text()
    )
    (tmp_path / "postroom.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "postroom.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_is_made_of_what_the_repository_has() -> None:
    """Each file that the Dockerfile copies is there and let in, and nothing else is."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    named = [name for line in copied for name in line.split()]
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert named
    assert sorted(named) == sorted(let_in)
    for name in named:
        assert (ROOT / name).exists(), name
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")


def test_the_image_has_the_versions_that_are_tested() -> None:
    """All that postroom and its extras need is in deploy/requirements.lock, as it is in requirements.lock."""
    tested, deployed = _locked("requirements.lock"), _locked("deploy/requirements.lock")
    extras = ("alerts", "otel", "psycopg")
    needed = [
        *PROJECT["dependencies"],
        *(one for extra in extras for one in PROJECT["optional-dependencies"][extra]),
    ]
    assert {_name(one) for one in needed} <= deployed.keys()
    assert "psycopg-binary" in deployed  # the image has no libpq
    assert {name: tested.get(name) for name in deployed} == deployed


def test_the_image_starts_a_command_that_there_is() -> None:
    """Its entry point is the package's program, and what it says by default one of its commands."""
    from postroom.cli.main import app

    entry = re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    command = re.search(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)
    assert entry is not None
    assert command is not None
    assert json.loads(entry[1])[0] in PROJECT["scripts"]
    assert json.loads(command[1])[0] in {one.name for one in app.registered_commands}


def test_the_image_asks_its_door_whether_it_is_well() -> None:
    """Its health check is content with a door that answers, and not with one that does not."""
    found = re.search(r"^HEALTHCHECK .*?CMD (.+)$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "POSTROOM_PORT": str(port),
    }
    with http.server.HTTPServer(("127.0.0.1", port), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert subprocess.run(["sh", "-c", found[1]], env=environment, check=False).returncode == 0
        server.shutdown()
    down = subprocess.run(["sh", "-c", found[1]], env=environment, capture_output=True, check=False)
    assert down.returncode == 1


def test_the_poolers_file_is_one_for_every_pgbouncer() -> None:
    """The page's pgbouncer.ini starts Debian 12's, which knows less than newer ones."""
    port = free_port()
    (ini,) = (one.text for one in samples_of(ROOT / "docs/how-to/pgbouncer.md") if one.language == "ini")
    for said, instead in {
        "db.example.com": "127.0.0.1",
        "0.0.0.0": "127.0.0.1",
        "6432": str(port),
        "/etc/pgbouncer/userlist.txt": "users\nunix_socket_dir =",
    }.items():
        assert said in ini
        ini = ini.replace(said, instead)
    with started(ini, users='"app" "secret"\n') as failed:
        until_now(lambda: _listens(port) or bool(failed()))
        assert not failed()


def test_the_proxy_passes_events_as_they_came(tmp_path: Path) -> None:
    """The page's lines for nginx: 9 MiB and an odd path arrive to the byte, what is not named does not."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        pytest.skip("needs Debian's package nginx-light")
    port, upstream = free_port(), free_port()
    (lines,) = (one.text for one in samples_of(ROOT / "docs/how-to/deploy.md") if one.language == "nginx")
    lines = lines.replace("127.0.0.1:8400", f"127.0.0.1:{upstream}").replace("10.0.0.0/8", "127.0.0.0/8")
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; daemon off; master_process off; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path};\n"
        f"fastcgi_temp_path {tmp_path}; uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};\n"
        f"server {{ listen 127.0.0.1:{port};\n{lines}\n}} }}\n"
    )
    command = [program, "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    proxy = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until_now(lambda: _listens(port) or proxy.poll() is not None)
        with http.server.HTTPServer(("127.0.0.1", upstream), _Echo) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            body = os.urandom(9 << 20)
            odd = "/webhooks/stripe?a=%2F+%20&b=//c"
            sent = httpx.post(f"http://127.0.0.1:{port}{odd}", content=body, headers={"X-Sign": "a=b, c"})
            assert sent.json() == [odd, hashlib.sha256(body).hexdigest(), "a=b, c"]
            assert httpx.get(f"http://127.0.0.1:{port}/dashboard/login").json()[0] == "/dashboard/login"
            assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 404
            server.shutdown()
    finally:
        proxy.kill()
        proxy.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class _Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        said = json.dumps([self.path, hashlib.sha256(body).hexdigest(), self.headers.get("x-sign")]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _locked(file: str) -> dict[str, str]:
    """The versions of a lock file by the packages' names."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", (ROOT / file).read_text(), re.MULTILINE))


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0].lower().replace("_", "-")
