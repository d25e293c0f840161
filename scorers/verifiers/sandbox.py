"""A sandbox for programs that a model wrote, made of Linux namespaces and resource limits.

What it gives, with `isolated` (Linux, with unshare, mount and setpriv of util-linux; as root, or as a user
where user namespaces are allowed):
- a file system of its own that holds /usr, /bin, /lib*, /etc/ld.so.cache and the running Python, read-only,
  and one empty writable folder in memory; homes, data, /tmp, /run, /sys and devices other than null, zero and
  urandom are not there;
- no network, not even loopback; no sight of other processes; no System V memory of others;
- no set-uid programs; as root it runs as a user id of its own;
- everything in it ends with it.
In both modes: limits of processor time, wall time, memory of each process, size of each file and number of
processes; no core dumps; no capabilities (root can neither mount nor trace); standard input, output and error
on /dev/null; no variable of the environment but PATH, HOME, TMPDIR, LANG, PWD and PYTHONHASHSEED.

What it does not give: the kernel is shared, so a hole in it is a way out; /usr and the Python installation
can be read; memory is limited for each process, not for their sum. Without `isolated` the program can read,
write and delete what its user can, use the network, and leave processes behind that outlive it (setsid); as
root the number of its processes has no limit then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

_ROOT_SCRIPT = """
set -e
root=$1 size=$2 files=$3 user=$4; shift 4
mount -t tmpfs -o size=1m,mode=755,nosuid,nodev none "$root"
for path in /bin /sbin /lib /lib32 /lib64 /libx32 /usr /nix/store /etc/ld.so.cache "$@"; do
  [ "$path" = -- ] && break
  if [ -L "$path" ] && [ "${path#/*/}" = "$path" ]; then
    ln -s "$(readlink "$path")" "$root$path"
    continue
  fi
  if [ -d "$path" ]; then mkdir -p "$root$path"
  elif [ -f "$path" ]; then mkdir -p "$root$(dirname "$path")"; : > "$root$path"
  else continue; fi
  mount --bind "$path" "$root$path"
  mount -o remount,bind,ro,nosuid,nodev "$root$path"
done
while [ "$1" != -- ]; do shift; done; shift
mkdir "$root/dev" "$root/proc" "$root/work"
for device in null zero urandom; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc -o ro,nosuid,nodev,noexec none "$root/proc"
mount -t tmpfs -o "size=${size}m,nr_inodes=$files,mode=777,nosuid,nodev" none "$root/work"
mount -o remount,bind,ro,nosuid,nodev "$root"
drop="--no-new-privs --inh-caps=-all --bounding-set=-all"
[ "$user" = 0 ] || drop="$drop --reuid $user --regid $user --clear-groups"
# Not exec: as process 1 Python would hide from unshare that a limit has killed it.
set +e
chroot "$root" setpriv $drop -- "$@"
exit $?
"""
_FILES = 10_000
"""Files and folders in the writable folder: empty ones take the kernel's memory and none of its size."""
_USERS = count(1)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: int
    """Processor time of each process."""
    wall_seconds: float
    megabytes: int
    """Address space of each process."""
    file_megabytes: int
    """The writable folder (isolated), and each file."""
    processes: int


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    said: bytes
    """What it wrote to its result channel, 64 KiB at most."""
    code: int | None
    """Exit code; negative for a signal; None where the wall time ran out."""


def run_python(program: str, given: bytes, limits: Limits, isolated: bool) -> Ended:
    """Run a Python program that reads `given` on stdin and writes its result to stdout."""
    # Not -I: it would leave out PYTHONHASHSEED, and with it the order of sets; the environment is clean.
    python = [sys.executable, "-P", "-s", "-B", "-c", program]
    with tempfile.TemporaryDirectory(prefix="karat-code-") as folder, tempfile.TemporaryFile() as channel:
        work = "/work" if isolated else folder
        process = subprocess.Popen(  # noqa: S603 - the program is foreign, which is what the sandbox is for
            _isolating(folder, limits, _variant(), python) if isolated else python,
            stdin=subprocess.PIPE,
            stdout=channel,
            stderr=subprocess.DEVNULL,
            env={**_ENVIRONMENT, "HOME": work, "TMPDIR": work},
            cwd=folder,
            start_new_session=True,
        )
        try:
            code = _wait(process, given, limits)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin:
                with suppress(OSError):
                    process.stdin.close()
        channel.seek(0)
        return Ended(channel.read(65_536), code)


def why_not_isolated() -> str | None:
    """Why this machine gives no isolated sandbox; None where it does."""
    return _probe()[1]


def _wait(process: subprocess.Popen[bytes], given: bytes, limits: Limits) -> int | None:
    def feed() -> None:
        with suppress(OSError):
            if process.stdin:
                process.stdin.write(given)
                process.stdin.close()

    # The program may never read; a thread that is stuck ends when the process does.
    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        return process.wait(limits.wall_seconds)
    except subprocess.TimeoutExpired:
        return None


def _isolating(folder: str, limits: Limits, variant: str, python: Sequence[str]) -> list[str]:
    user = 0
    namespaces = ["--net", "--ipc", "--uts", "--pid", "--mount", "--fork", "--kill-child"]
    if variant == "user":
        namespaces = ["--user", "--map-root-user", *namespaces]
    else:  # a user id that nobody else has, so that its processes can be counted
        user = 2_000_000_000 + (os.getpid() * 1_000 + next(_USERS) % 1_000) % 100_000_000
    script = [
        "sh",
        "-c",
        _ROOT_SCRIPT,
        "sandbox",
        folder,
        str(limits.file_megabytes),
        str(_FILES),
        str(user),
        *_kept(),
        "--",
    ]
    return ["unshare", *namespaces, *script, *python]


def _kept() -> list[str]:
    """The folders that the running Python needs, outside /usr, each once and none within another."""
    folders = {
        sys.prefix,
        sys.base_prefix,
        str(Path(sys.executable).parent),
        str(Path(sys.executable).resolve().parent),
    }
    folders |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    paths = sorted({Path(folder) for folder in folders if folder and not folder.startswith("/usr/")})
    return [str(path) for path in paths if path.is_dir() and not set(path.parents) & set(paths)]


def _variant() -> str:
    return _probe()[0]


@cache
def _probe() -> tuple[str, str | None]:
    if not sys.platform.startswith("linux"):
        return "", "it needs Linux namespaces"
    limits = Limits(seconds=10, wall_seconds=60, megabytes=512, file_megabytes=1, processes=8)
    why = ""
    for variant in ("root", "user") if os.geteuid() == 0 else ("user",):
        with tempfile.TemporaryDirectory(prefix="karat-probe-") as folder:
            command = _isolating(folder, limits, variant, [sys.executable, "-I", "-c", "print('ready')"])
            try:
                done = subprocess.run(  # noqa: S603
                    command,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                    cwd=folder,
                    env=_ENVIRONMENT,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                why = str(error)
                continue
        if done.returncode == 0 and done.stdout.strip() == "ready":
            return variant, None
        why = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
    return "", why
