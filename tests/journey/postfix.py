"""A real Postfix of the test's own: another queue, another port, the Debian package's programs."""

from __future__ import annotations

import os
import signal
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.postgres import free_port, temporary_folder
from tests.support.waiting import until_now

PROGRAM = Path("/usr/sbin/postfix")

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.example.net
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
smtpd_peername_lookup = no
smtpd_recipient_restrictions = permit_mynetworks, reject
disable_dns_lookups = yes
smtp_host_lookup = native
local_header_rewrite_clients =
relayhost = [127.0.0.1]:{next_port}
message_size_limit = 100000000
notify_classes =
in_flow_delay = 0
"""

MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
"""


@contextmanager
def running_postfix(next_port: int) -> Iterator[int]:
    """
    A Postfix while the block runs; gives its port.

    Args:
        next_port: Of the server that it relays everything to.
    """
    if not PROGRAM.exists():
        pytest.skip("needs Debian's package postfix")
    if os.geteuid() != 0:
        pytest.skip("Debian's package postfix runs as root only")
    with temporary_folder() as folder:
        port = free_port()
        values = {"folder": folder, "port": port, "next_port": next_port}
        (folder / "conf").mkdir()
        (folder / "queue").mkdir()
        (folder / "conf/main.cf").write_text(MAIN_CF.format(**values))
        (folder / "conf/master.cf").write_text(MASTER_CF.format(**values))
        with (folder / "started").open("wb") as said:
            process = subprocess.Popen(
                [str(PROGRAM), "-c", str(folder / "conf"), "start-fg"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            until_now(lambda: _answers(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "started").read_text()
            yield port
        finally:
            _end(process, folder)


def _answers(port: int) -> bool:
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=5) as server:
            return server.noop()[0] == 250
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Its master ends its daemons; start-fg's shell ends with it."""
    pid_file = folder / "queue/pid/master.pid"
    if pid_file.exists() and process.poll() is None:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    try:
        process.wait(20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
