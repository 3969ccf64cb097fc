"""Hosts on one machine, each with a network, an address, processes and shared memory of its own.

Linux namespaces, held together by a first process per host: when it is killed, everything on the host is
gone, and so is the host. A bridge, in a namespace of its own too, connects them; nothing of this machine's
network is touched. Needs root, iproute2 and util-linux. The file system is shared, as if every host had
mounted the same one; only /dev/shm and what `private` names are each host's own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.processes import processes, wait_until

_PREFIX = "10.77.0."
_GATEWAY = f"{_PREFIX}254"  # the bridge: Ray finds its own address by asking for the way to the world
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount", "hostname")
# Whatever becomes of the process that made them, hosts do not outlive it.
_UNSHARE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child")
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
# A first process has to collect what its descendants leave behind; bash does.
_FIRST = "while :; do sleep 3600 & wait; done"


def why_not() -> str | None:
    """What keeps hosts from being made here; None if nothing does."""
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "ip", "link", "add", "try", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    if tried.returncode != 0:
        return f"namespaces cannot be made here: {tried.stderr.strip()}"
    return None


class Host:
    """A host that is up until `power_off`."""

    def __init__(
        self, name: str, address: str, folder: Path, private: Sequence[str], mounts: Mapping[str, Path]
    ) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self._made: list[Path] = []  # places to mount to, which this machine had not
        lines = ["mount -t tmpfs -o size=2g tmpfs /dev/shm"]
        own = {place: folder / "own" / place.strip("/").replace("/", "-") for place in private}
        for place, source in (own | dict(mounts)).items():
            source.mkdir(parents=True, exist_ok=True)
            if not Path(place).exists():
                Path(place).mkdir(parents=True)
                self._made.append(Path(place))
            lines.append(f"mount --bind {shlex.quote(str(source))} {shlex.quote(place)}")
        script = "; ".join([f"hostname {name}", "ip link set lo up", *lines, f"set +e; {_FIRST}"])
        self._holder = subprocess.Popen(
            [*_UNSHARE, *_NAMESPACES, "--fork", "--mount-proc", "bash", "-c", f"set -e; {script}"]
        )
        self.first = wait_until(self._find_first, 10, f"the first process of {name}")

    def _find_first(self) -> int | None:
        assert self._holder.poll() is None, f"{self.name} could not be made"
        found = [p.pid for p in processes() if p.parent == self._holder.pid]
        # Its last act before it waits: all mounts are there.
        asleep = [p for p in processes() if found and p.parent == found[0] and p.command.startswith("sleep")]
        return found[0] if asleep else None

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` on this host."""
        return [
            "nsenter",
            "--target",
            str(self.first),
            "--net",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            *command,
        ]

    def start(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process that stays, with its output in a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.enter(*command),
                env={**env, "HOME": str(self.home)},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(
        self, command: Sequence[str], env: Mapping[str, str], timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; raises CalledProcessError with its output as a note."""
        # Through a file: what the command leaves running would keep a pipe open.
        output = self.folder / "output"
        with output.open("w+", encoding="utf-8") as file:
            code = subprocess.run(
                self.enter(*command),
                env={**env, "HOME": str(self.home)},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
            ).returncode
        text = output.read_text(encoding="utf-8", errors="replace")
        if code != 0:
            error = subprocess.CalledProcessError(code, command, text)
            error.add_note(f"on {self.name}:\n{text[-4000:]}")
            raise error
        return subprocess.CompletedProcess(command, code, text)

    def unplug(self) -> None:
        """Take the host off the network; everything on it runs on, and hears and is heard of nothing."""
        self.run(["ip", "link", "set", "eth0", "down"], {"PATH": os.environ["PATH"]})

    def plug_in(self) -> None:
        """Put the host on the network, for the first time or again."""
        self.run(["ip", "link", "set", "eth0", "up"], {"PATH": os.environ["PATH"]})
        self.run(["ip", "route", "add", "default", "via", _GATEWAY], {"PATH": os.environ["PATH"]})

    def power_off(self) -> None:
        """End every process on the host, and the host."""
        if self._holder.poll() is None:
            self._holder.kill()  # and with it the first process, and with that all others
            self._holder.wait(10)
        for place in self._made:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                place.rmdir()


class Network:
    """A bridge that hosts are plugged into."""

    def __init__(self, folder: Path) -> None:
        self.hosts: list[Host] = []
        self._folder = folder
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        )
        # Before it has left this machine's network, the bridge would be made there.
        wait_until(self._apart, 5, "a network of its own")
        for command in (
            "link add bridge type bridge",
            "link set bridge up",
            f"addr add {_GATEWAY}/24 dev bridge",
        ):
            self._ip(*command.split())
        # What hosts look for in the world, such as name servers, is said to be away at once.
        self._enter("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def host(
        self, name: str, number: int, private: Sequence[str] = (), mounts: Mapping[str, Path] | None = None
    ) -> Host:
        """A new host with the address 10.77.0.`number`; `mounts`: folders by where they are found there.

        `private` folders are empty at first, and the host's own.
        """
        host = Host(name, f"{_PREFIX}{number}", self._folder / name, private, mounts or {})
        self.hosts.append(host)
        ends = ("type", "veth", "peer", "name", "eth0", "netns", str(host.first))
        self._ip("link", "add", name, *ends)
        self._ip("link", "set", name, "master", "bridge", "up")
        host.run(["ip", "addr", "add", f"{host.address}/24", "dev", "eth0"], {"PATH": os.environ["PATH"]})
        host.plug_in()
        return host

    def close(self) -> None:
        for host in self.hosts:
            host.power_off()
        self._holder.kill()
        self._holder.wait(10)

    def _apart(self) -> bool:
        own, theirs = (os.stat(f"/proc/{pid}/ns/net") for pid in ("self", self._holder.pid))
        return own.st_ino != theirs.st_ino

    def _ip(self, *arguments: str) -> None:
        self._enter("ip", *arguments)

    def _enter(self, *command: str) -> None:
        into = ["nsenter", "--target", str(self._holder.pid), "--net"]
        done = subprocess.run([*into, *command], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network whose hosts are switched off on the way out."""
    made = Network(folder)
    try:
        yield made
    finally:
        made.close()
