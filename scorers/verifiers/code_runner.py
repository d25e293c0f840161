"""The program that runs an answer and then its tests, inside the sandbox; standard library only.

stdin holds four parts, each a decimal length, a newline and so many bytes: limits (JSON), the answer's code, the
tests, and a secret. Each part is read when it is needed: the secret is in the process only after every test is
done. stdout is the result channel: one JSON object with the secret; without it a result counts as none.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import random
import resource
import sys
import types
import unittest
from typing import Any, NoReturn

_SHOWN = 300


def main() -> NoReturn:
    """Run the parts in order and report once."""
    channel, source = os.dup(1), os.dup(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    # What the result depends on is kept here, out of the reach of an answer that replaces modules' names.
    write, read, dumps, leave = os.write, os.read, json.dumps, os._exit

    def part() -> str:
        length = b""
        while not length.endswith(b"\n"):
            length += read(source, 1)
        missing, pieces = int(length), []
        while missing:
            pieces.append(read(source, missing))
            missing -= len(pieces[-1]) or leave(3)  # the other end is gone
        return b"".join(pieces).decode("utf-8", "surrogatepass")

    _limit(json.loads(part()))
    _drop_privileges() or leave(4)
    reason = _judged(part(), part)
    secret = part()
    write(channel, dumps({"secret": secret, "reason": reason[:_SHOWN]}).encode())
    leave(0)


def _limit(limits: dict[str, int]) -> None:
    os.chdir(os.environ["HOME"])
    random.seed(0)
    for name in ("CPU", "AS", "FSIZE", "NPROC", "CORE", "NOFILE"):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limits[name], limits[name]))


def _drop_privileges() -> bool:
    """Give up every capability, for good: root without them can neither mount nor trace; False if it failed."""
    if not sys.platform.startswith("linux"):
        return os.geteuid() != 0
    library = ctypes.CDLL(None)
    library.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    for capability in range(64):
        library.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    return library.capset(header, none) == 0


def _judged(code: str, part: Any) -> str:
    """Why the answer failed; empty where every test passed. Reads the tests when the answer has run."""
    space, update = vars(builtins), dict.update
    given = dict(space)
    answer = types.ModuleType("answer")
    sys.modules["answer"] = answer
    run, compiled, format_error = exec, compile, _told
    try:
        run(compiled(code, "answer", "exec", dont_inherit=True), vars(answer))
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a stranger's code
        part()
        return "the code fails before its tests: " + format_error(error, "")
    # An answer that has replaced len or all must not choose how it is tested.
    update(space, given)
    tests = part()
    # What the tests see by themselves comes from the answer, except its changes to what every module has.
    names = vars(answer)
    known = set(names)
    try:
        run(compiled(tests, "tests", "exec", dont_inherit=True), names)
        return _defined_tests({name: value for name, value in names.items() if name not in known}, names)
    except BaseException as error:  # noqa: BLE001
        return format_error(error, tests)


def _defined_tests(new: dict[str, Any], names: dict[str, Any]) -> str:
    for name, value in new.items():
        if name.startswith("test") and isinstance(value, types.FunctionType):
            try:
                value()
            except BaseException as error:  # noqa: BLE001
                return f"{name}: {_told(error, '')}"
    cases = [
        value for value in new.values() if isinstance(value, type) and issubclass(value, unittest.TestCase)
    ]
    for case in cases:
        outcome = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(outcome)
        for test, text in [*outcome.failures, *outcome.errors]:
            return f"{test}: {text.strip().splitlines()[-1]}"
        if outcome.unexpectedSuccesses:
            return f"{outcome.unexpectedSuccesses[0]}: succeeds where a failure was expected"
    return ""


def _told(error: BaseException, tests: str) -> str:
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 - an exception of the answer's own making
        said = "?"
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    lines, step = tests.splitlines(), error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "tests" and 0 < step.tb_lineno <= len(lines):
            return f"test line {step.tb_lineno}, {lines[step.tb_lineno - 1].strip()[:120]}: {text}"
        step = step.tb_next
    return text


if __name__ == "__main__":
    main()
