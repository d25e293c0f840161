"""Code answers: what passes, what fails, what cannot be forged, and what the sandbox holds back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from karat.code_digest import _collect
from karat.errors import DataError, ScoreError
from karat.scorers.verifiers import sandbox, unit_tests
from karat.scorers.verifiers.sandbox import why_not_isolated
from karat.scorers.verifiers.unit_tests import UnitTests, code_of

needs_sandbox = pytest.mark.skipif(why_not_isolated() is not None, reason=f"no sandbox: {why_not_isolated()}")
# Hostile code runs in a sandbox only; where there is none it is not run at all.
VERIFIER = UnitTests(allow_code=True, seconds=2, wall_seconds=20)
ADD = "def add(a, b):\n    return a + b\n"
NINE = "def add(a, b): return 9"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


def reason(code: str, tests: str = TESTS, verifier: UnitTests = VERIFIER) -> str:
    verdict = verifier.check(code, tests)
    assert verdict.correct == (not verdict.reason)
    return verdict.reason


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_tests, "run_python", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ScoreError, match="allow_code: true"):
        UnitTests().check(ADD, TESTS)


def test_without_a_sandbox_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_tests, "why_not_isolated", lambda: "unshare is missing")
    monkeypatch.setattr(unit_tests, "run_python", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ScoreError, match="unshare is missing"):
        VERIFIER.check(ADD, TESTS)


@pytest.mark.parametrize(
    "tests", ["def f(:", "x = 1", "def check(candidate):\n    assert candidate(1)", "import os", "\0"]
)
def test_references_that_test_nothing_are_errors(tests: str) -> None:
    with pytest.raises(DataError, match="pair 1"):
        VERIFIER.check(ADD, tests)


def test_the_code_of_a_response() -> None:
    two = "First:\n```python\na = 1\n```\nthen\n~~~\nb = 2\n~~~\nand\n```text\nnothing\n```"
    assert code_of(two, "last") == "b = 2"
    assert code_of(two, "first") == "a = 1"
    assert code_of(two, "all") == "a = 1\nb = 2"
    assert code_of("x = 1", "last") == "x = 1"
    assert code_of("```python\nx = 1", "last") is None
    assert code_of("````py\nx = '''\n```\n'''\n````", "last") == "x = '''\n```\n'''"
    assert code_of("", "whole") is None


@needs_sandbox
@pytest.mark.parametrize(
    "tests",
    [
        TESTS,
        "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)",
        "def test_one():\n    assert add(1, 2) == 3",
        "import unittest\nclass T(unittest.TestCase):\n    def test_1(self): self.assertEqual(add(1, 2), 3)",
        "for i in range(3):\n    assert add(i, i) == 2 * i",
        "from answer import add as other\nassert other(1, 2) == 3",
    ],
)
def test_all_forms_of_tests_count(tests: str) -> None:
    assert reason(f"Here:\n```python\n{ADD}```", tests) == ""
    assert reason(ADD.replace("+", "-"), tests) != ""


@needs_sandbox
def test_a_failure_names_the_test() -> None:
    assert reason(ADD.replace("+", "*"), TESTS).startswith(
        "test line 1, assert add(1, 2) == 3: AssertionError"
    )
    assert "SyntaxError" in reason("def add(a, b:\n")
    assert "NameError" in reason("x = 1")


@needs_sandbox
@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\ndef add(a, b):\n    os._exit(0)",
        "def add(a, b):\n    raise SystemExit(0)",
        'print(\'OK 2 passed\')\nprint(\'{"secret": "", "reason": ""}\')\ndef add(a, b): return 9',
        'import os\nfor fd in range(64):\n    try:\n        os.write(fd, b\'{"reason": ""}\')\n'
        "    except OSError: pass\nos._exit(0)",
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.all = lambda x: True\n" + NINE,
        "import json, os\njson.dumps = lambda x: '{}'\nos._exit = exit\n" + NINE,
        "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: None\n" + NINE,
        "import atexit, os\natexit.register(os._exit, 0)\n" + NINE,
        "import os\nif os.fork() == 0:\n    os._exit(0)\nos._exit(0)",
        "import os, threading, time\nthreading.Timer(0, os._exit, (0,)).start()\ntime.sleep(1)\n" + ADD,
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import sys\n_judged = lambda *a: ''\nsys.modules['__main__']._judged = _judged\n" + NINE,
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef add(a, b): raise E",
    ],
)
def test_passing_cannot_be_claimed(code: str) -> None:
    assert reason(code)


@needs_sandbox
def test_replaced_builtins_do_not_judge() -> None:
    code = "import builtins\nbuiltins.all = lambda x: True\nbuiltins.abs = lambda x: 0\n" + NINE
    assert reason(code, "assert all([add(1, 2) == 3])")
    assert reason(code, "assert abs(add(1, 2) - 3) < 1")


@needs_sandbox
def test_the_secret_is_not_there_before_the_tests_are_done() -> None:
    code = (
        "import sys, gc, re\n"
        "def is_one(v):\n"
        "    return isinstance(v, str) and re.fullmatch('[0-9a-f]{32}', v)\n"
        "def add(a, b):\n"
        "    found = []\n"
        "    for thing in gc.get_objects():\n"
        "        if isinstance(thing, dict):\n"
        "            found += [v for v in list(thing.values()) if is_one(v)]\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        found += [v for v in frame.f_locals.values() if is_one(v)]\n"
        "        frame = frame.f_back\n"
        "    raise ValueError(f'found {len(found)} secrets')\n"
    )
    assert "found 0 secrets" in reason(code)


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("while True: pass", "processor time"),
        ("x = [0] * 10 ** 10", "MemoryError"),
        ("open('x', 'w').write('a' * 50_000_000)", "OSError"),
        ("for i in range(20_000): open(f'f{i}', 'w').close()", "No space left"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 1), 2)", "OSError"),
        ("import socket\nsocket.create_connection(('8.8.8.8', 53), 2)", "unreachable"),
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        ("open('/usr/karat-was-here', 'w')", "OSError"),
        ("open('/dev/mem')", "FileNotFoundError"),
        ("x = input()", "EOFError"),
        (
            "from threading import *\nfor i in range(99): Timer(9, print).start()",
            "thread",
        ),
        (
            "import os, time\nfor i in range(99): os.fork() or time.sleep(9)",
            "BlockingIOError",
        ),
        ("import os\nos.kill(-1, 9)", "Error"),
        (
            "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/work', b'tmpfs', 0, None) == 0",
            "AssertionError",
        ),
        (
            "import os\nassert [n for n in os.listdir('/proc') if n.isdigit()] > ['1', '999999']",
            "AssertionError",
        ),
    ],
)
def test_the_sandbox_holds(code: str, why: str) -> None:
    assert why in reason(code + "\n" + ADD)


@needs_sandbox
def test_homes_data_and_secrets_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("key")
    monkeypatch.setenv("API_TOKEN", "key")
    for path in (secret, Path.home() / ".bashrc", Path(__file__), Path("/sys/kernel"), Path("/run")):
        assert reason(f"import os\nassert not os.path.exists({str(path)!r})\n{ADD}") == ""
    kept = "{'PATH', 'HOME', 'TMPDIR', 'LANG', 'PWD', 'PYTHONHASHSEED', 'LC_CTYPE', 'OLDPWD', 'SHLVL', '_'}"
    assert reason(f"import os\nassert set(os.environ) <= {kept}, set(os.environ)\n{ADD}") == ""
    assert reason(f"import os\nassert os.listdir('.') == []\nopen('a', 'w').write('b')\n{ADD}") == ""


@needs_sandbox
def test_waiting_ends_and_nothing_stays_behind() -> None:
    short = UnitTests(allow_code=True, wall_seconds=1.5)
    assert "on the clock" in reason("import time\ntime.sleep(600)", verifier=short)
    mark = f"karat-left-{os.getpid()}"
    daemon = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    '{mark}'\n    time.sleep(600)\n"
    assert reason(daemon + ADD) == ""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            assert b"inside the sandbox; standard library only" not in command


@needs_sandbox
def test_the_mounts_of_this_machine_stay_as_they_are() -> None:
    mounts, space = Path("/proc/self/mountinfo"), Path("/proc/self/ns/mnt")
    before, own = mounts.read_text(), space.readlink()
    assert reason(ADD) == ""
    assert "processor time" in reason("while True: pass")
    short = UnitTests(allow_code=True, wall_seconds=1.5)
    assert "on the clock" in reason("import time\ntime.sleep(600)", verifier=short)
    # What the answer sees is not what is mounted here.
    assert "False" in reason(f"raise ValueError(open('/proc/self/mountinfo').read() == {before!r})")
    assert mounts.read_text() == before
    assert space.readlink() == own


@needs_sandbox
def test_the_same_random_numbers_each_time() -> None:
    code = "import random\nX = [random.random() for _ in range(3)]\nY = hash('a')"
    verdicts = [reason(code, "raise ValueError((X, Y))") for _ in range(2)]
    assert verdicts[0] == verdicts[1]
    assert "ValueError" in verdicts[0]


def test_limits_alone_still_limit() -> None:
    # Harmless code only: this mode protects no files.
    plain = UnitTests(allow_code=True, sandbox="limits", seconds=1, wall_seconds=20)
    assert reason(ADD, verifier=plain) == ""
    assert "processor time" in reason("while True: pass", verifier=plain)
    assert "MemoryError" in reason("x = [0] * 10 ** 10", verifier=plain)
    status = "caps = [l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapBnd'))]\n"
    if Path("/proc/self/status").exists():
        assert (
            reason(f"{status}assert all(int(l.split()[1], 16) == 0 for l in caps)\n{ADD}", verifier=plain)
            == ""
        )


def test_the_digest_covers_the_runner() -> None:
    found: set[str] = set()
    _collect("karat.scorers.verifiers.unit_tests", found)
    assert {"karat.scorers.verifiers.code_runner", "karat.scorers.verifiers.sandbox"} <= found


def test_kept_folders_do_not_nest() -> None:
    kept = [Path(path) for path in sandbox._kept()]
    assert not any(set(path.parents) & set(kept) for path in kept)
