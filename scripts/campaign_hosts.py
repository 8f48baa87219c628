"""Processes of the kill campaigns: on this machine, or each in a network namespace of its own, like hosts.

A namespace has its own loopback device, host name and `/etc/hosts`, and one address, by which the others reach it over
a bridge; nothing else is reached from it. The disk is shared.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

PROGRAM = Path(sys.executable).with_name("cervseg-jax")
_NETWORK = "10.213.0"
"""The first three bytes of the hosts' addresses; the network has no way out, so that it collides with no other."""
_NAMED = 'hostname "$0" && exec "$@"'


class Hosts:
    """Starts commands on up to `count` hosts."""

    def __init__(self, count: int, *, with_namespaces: bool) -> None:
        """Nothing is made yet; see `__enter__`."""
        self._count = count
        self._with_namespaces = with_namespaces
        self._name = f"cs{os.getpid()}"
        self._stack = ExitStack()

    def __enter__(self) -> "Hosts":
        """Makes the namespaces, and ends the program with one line if it may not."""
        if self._with_namespaces:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the namespaces are removed
            with ExitStack() as stack:
                self._make(stack)
                self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the namespaces."""
        self._stack.close()

    def _make(self, stack: ExitStack) -> None:
        bridge = self._name
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("link", "set", bridge, "up")
        names = [f"{self._address(index)} {self._host(index)}" for index in range(self._count)]
        for index in range(self._count):
            host, port, table = self._host(index), f"{self._name}p{index}", Path("/etc/netns") / self._host(index)
            _ip("netns", "add", host)
            stack.callback(_ip, "netns", "del", host)
            table.mkdir(parents=True)
            stack.callback(shutil.rmtree, table)
            (table / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("link", "set", port, "master", bridge, "up")
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", host, "addr", "add", f"{self._address(index)}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")

    def _host(self, index: int) -> str:
        return f"{self._name}h{index}"

    def _address(self, index: int) -> str:
        return f"{_NETWORK}.{index + 1}"

    def connected(self, count: int) -> list[list[str]]:
        """Returns the options by which each of several processes finds the others."""
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        host = self._address(0) if self._with_namespaces else "localhost"
        together = ["--coordinator", f"{host}:{port}", "--num-processes", str(count), "--process-id"]
        return [[*together, str(index)] for index in range(count)]

    def launch(self, out: Path, name: str, command: Sequence[str], *, host: int = 0) -> subprocess.Popen[bytes]:
        """Starts a command of cervseg-jax on a host, in the folder `out`; it adds to the log `name`.

        The process is the command itself, so that signals reach it.
        """
        inside: list[str] = []
        if self._with_namespaces:
            named = ["unshare", "--uts", "sh", "-c", _NAMED, self._host(host)]
            inside = ["ip", "netns", "exec", self._host(host), *named]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        with (out / f"{name}.log").open("ab") as log:
            return subprocess.Popen([*inside, str(PROGRAM), *command], env=environment, cwd=out, stdout=log, stderr=log)

    def run(self, out: Path, *command: str) -> int:
        """Runs a command to its end and returns its exit code."""
        return end([self.launch(out, command[0], command)])[0]


def end(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Waits for processes and returns their exit codes; 128 + signal number for killed ones, as in a shell."""
    codes = [process.wait() for process in processes]
    return [code if code >= 0 else 128 - code for code in codes]


def _ip(*arguments: str) -> None:
    """Calls `ip`; ends the program with one line if that fails."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)  # noqa: S603, S607
        problem = done.stderr.strip().partition("\n")[0] if done.returncode else ""
    except FileNotFoundError:
        problem = "there is no such program"
    if problem:
        sys.exit(f"--namespaces: needs root and iproute2; `ip {' '.join(arguments)}`: {problem}")
