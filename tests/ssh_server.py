"""An ssh server of the tests' own on the loopback address: as the user who runs them, with keys and folders of their
own, so that nothing of the machine's or the user's is touched."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: sshd wants to be called by its whole path, and often lies where users' PATH does not lead.
_SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


class SshServer:
    """A server that can be stopped, cut off and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host_key", "user_key", "other_key"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
        (folder / "authorized").write_text((folder / "user_key.pub").read_text())
        (folder / "authorized").chmod(0o600)
        key = (folder / "host_key.pub").read_text()
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}")
        self.write_server()
        self.config = self.write_config("config", "user_key", "known")
        self._process: subprocess.Popen[bytes] | None = None
        self.device = f"ssh:{getpass.getuser()}@127.0.0.1:{self.port}"

    def write_server(self, **environment: str) -> None:
        """The server's configuration. environment: set for whatever it runs."""
        setenv = " ".join(f'"{name}={value}"' for name, value in environment.items())
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            + (f"SetEnv {setenv}\n" if setenv else "")
        )

    def write_config(self, name: str, key: str, known: str) -> Path:
        """A configuration for the client."""
        path = self.folder / name
        path.write_text(
            f"Host *\n  IdentityFile {self.folder}/{key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/{known}\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )
        return path

    def start(self) -> None:
        if os.geteuid() == 0:  # where sshd drops its privileges to
            os.makedirs("/run/sshd", exist_ok=True)
        command = [str(_SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        self.stop()
        pytest.skip(f"sshd does not start here: {(self.folder / 'log').read_text()[-300:]}")

    def stop(self) -> None:
        """Takes no new connections; those that there are go on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def cut(self) -> int:
        """Kills the processes that serve connections, as a lost network would end them; returns how many."""
        assert self._process is not None
        children = descendants(self._process.pid, "sshd")
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(children)


def descendants(pid: int, name: str) -> list[int]:
    """Processes of that name below pid; Linux alone tells."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            parents[int(fields["Pid"])] = (int(fields["PPid"]), fields["Name"])
    found = []
    for one, (parent, called) in parents.items():
        while parent not in (0, pid):
            parent = parents.get(parent, (0, ""))[0]
        if parent == pid and called.startswith(name):
            found.append(one)
    return found


@pytest.fixture(scope="module")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A running server; skips, saying so, where there is none to run."""
    missing = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None] + ["sshd"] * (_SSHD is None)
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; install openssh-client and openssh-server")
    server = SshServer(tmp_path_factory.mktemp("sshd"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
