"""UnitTests: code answers pass the reference's tests, in a sandbox, and only if the user asks for it."""

from __future__ import annotations

import ast
import json
import platform
import re
import secrets
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from karat.errors import ScoreError
from karat.scorers.verifiers.answering import PairVerifier
from karat.scorers.verifiers.sandbox import Ended, Limits, run_python, why_not_isolated
from karat.verifier import Verdict

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)")
_RUNNER = Path(__file__).with_name("code_runner.py")
_LONGEST = 200_000


class UnitTests(PairVerifier):
    """Right where the response's Python code passes the reference's tests.

        correct = every statement and every test of the reference ends without an exception

    The reference is Python that runs after the answer's code and sees its names: assert lines (MBPP), check
    functions with their call (HumanEval's `check(candidate)` needs its `check(name)`), functions test_* and
    unittest.TestCase classes, which are run. The answer's code is its last block in ``` (python, or unnamed),
    or the whole response where there is no block; `code` changes that.

    **It runs code that a model wrote, so it refuses unless `allow_code` is true.** What the sandbox
    prevents: the network, other processes, homes and data (only /usr, the libraries and the running Python
    are there, read-only), variables of the environment, writing anywhere but in one empty folder in memory,
    and use beyond the limits below; everything ends with the test. Where the machine does not give such a
    sandbox it refuses, unless `sandbox: limits` asks for the resource limits alone, with which code can read,
    write and delete files and use the network as the user can, and leave processes behind (as root, without
    limit of number): for a throw-away container or machine only.
    What is never prevented: a hole in the kernel, reading the Python installation, the sum of the memory of
    all `processes`. Run it in a virtual machine if the model may be hostile.

    Passing takes a result with a secret that enters the process after the last test. So sys.exit(0),
    os._exit(0), printed claims, a traced or replaced `assert`, changed builtins and names in sys.modules do
    not pass. Answer and tests do share one process: an object that equals everything (`__eq__`), a change
    to a library that the tests use, or code written for this very program, which looks for its pipes, can still.

    The time limit is processor time, so a busy machine changes no verdict; `wall_seconds` is only for code
    that waits. Random numbers of `random` start from 0, hashes of strings too; code that uses the clock or
    the system's randomness may get another verdict each time.

    Raises ScoreError where it may not or cannot run; DataError for a reference that is no Python, that tests
    nothing, or that defines check() without a call.
    """

    summary: ClassVar[str] = "code answers pass the reference's tests, in a sandbox; off unless allowed"
    formula: ClassVar[str] = "every statement and every test of the reference ends without an exception"
    paper: ClassVar[str] = "Chen et al. 2021, HumanEval, arXiv 2107.03374, section 2.1"
    neutral: ClassVar[frozenset[str]] = frozenset({"workers", "allow_code"})

    allow_code: bool = Field(default=False, description="whether code that a model wrote may run here at all")
    sandbox: Literal["isolated", "limits"] = Field(
        default="isolated",
        description="namespaces and limits, or limits alone (no protection of files and network)",
    )
    code: Literal["last", "first", "all", "whole"] = Field(
        default="last",
        description="which ``` blocks of the response are the code; whole: the response itself",
    )
    seconds: int = Field(default=10, ge=1, le=3600, description="processor time of each process, in seconds")
    wall_seconds: float = Field(default=120, gt=0, description="time on the clock, for code that waits")
    megabytes: int = Field(default=1024, ge=128, description="memory of each process, in MiB")
    file_megabytes: int = Field(default=16, ge=1, description="files it may write, in MiB")
    processes: int = Field(default=16, ge=1, le=1024, description="processes and threads at the same time")
    workers: int = Field(default=1, ge=1, le=256, description="answers that are tested at the same time")

    def environment(self) -> dict[str, str]:
        """The Python that runs the code."""
        return {"python": platform.python_version(), "system": platform.system()}

    def read_reference(self, reference: str, place: int) -> str:
        """The tests, checked to be Python that tests something."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(reference)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.unreadable(f"the tests are no Python: {error}", place) from error
        if not _tests_something(tree):
            hint = "write assert lines, functions test_*, a unittest.TestCase, or a call such as check(name)"
            raise self.unreadable("the reference tests nothing: no answer could fail it", place, hint)
        return reference

    def judge_all(self, pairs: list[tuple[str, Any]]) -> list[Verdict]:
        """Each pair in a sandbox of its own."""
        if not pairs:
            return []
        self._refuse()
        if self.workers == 1:
            return [self._judge(response, tests) for response, tests in pairs]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda pair: self._judge(*pair), pairs))

    def _refuse(self) -> None:
        if not self.allow_code:
            raise ScoreError(
                "running code that a model wrote is off",
                where=self.kind,
                hint="set allow_code: true if you have read what the sandbox does and does not prevent",
            )
        if self.sandbox == "isolated" and (why := why_not_isolated()):
            raise ScoreError(
                f"this machine gives no sandbox without network and files: {why}",
                where=self.kind,
                hint="allow user namespaces, or run in a throw-away machine with `sandbox: limits`",
            )

    def _judge(self, response: str, tests: str) -> Verdict:
        code = code_of(response, self.code)
        if code is None:
            return Verdict(False, None, "the response has no code")
        if len(code) > _LONGEST:
            return Verdict(False, None, f"the code is longer than {_LONGEST:,} characters")
        secret = secrets.token_hex(16)
        parts = (json.dumps(self._numbers()), code, tests, secret)
        given = b"".join(
            b"%d\n%s" % (len(raw), raw) for raw in (part.encode("utf-8", "replace") for part in parts)
        )
        limits = Limits(self.seconds, self.wall_seconds, self.megabytes, self.file_megabytes, self.processes)
        ended = run_python(_RUNNER.read_text(encoding="utf-8"), given, limits, self.sandbox == "isolated")
        reason = self._why(ended, secret)
        return Verdict(not reason, code, reason)

    def _numbers(self) -> dict[str, int]:
        files = self.file_megabytes * 2**20
        memory = self.megabytes * 2**20
        return {
            "CPU": self.seconds,
            "AS": memory,
            "FSIZE": files,
            "NPROC": self.processes,
            "CORE": 0,
            "NOFILE": 256,
        }

    def _why(self, ended: Ended, secret: str) -> str:
        if ended.code is None:
            return f"took longer than {self.wall_seconds:g} s on the clock"
        try:
            result = json.loads(ended.said)
        except ValueError:
            result = None
        if isinstance(result, dict) and secrets.compare_digest(str(result.get("secret")), secret):
            return str(result.get("reason", "no result"))
        if ended.code in (-9, 137, -24, 152):
            return f"took longer than {self.seconds} s of processor time, or was killed"
        return f"the code ended the process before its tests were done (exit code {ended.code})"


def code_of(response: str, which: Literal["last", "first", "all", "whole"]) -> str | None:
    """The code of a response; None where there is none, as in a block that never closes."""
    if which == "whole" or ("```" not in response and "~~~" not in response):
        return response if response.strip() else None
    blocks = [block for name, block in _blocks(response) if name in ("", "py", "python", "python3")]
    chosen = {"last": blocks[-1:], "first": blocks[:1], "all": blocks}[which]
    code = "\n".join(chosen)
    return code if code.strip() else None


def _blocks(response: str) -> list[tuple[str, str]]:
    """Name and text of the fenced blocks that close."""
    blocks, fence, name, lines = [], "", "", list[str]()
    for line in response.split("\n"):
        match = _FENCE.match(line)
        if not fence and match:
            fence, name, lines = match[1], match[2].lower(), []
        elif fence and match and match[1].startswith(fence) and line.strip() == match[1]:
            blocks.append((name, "\n".join(lines)))
            fence = ""
        else:
            lines.append(line)
    return blocks


def _tests_something(tree: ast.Module) -> bool:
    nodes = list(ast.walk(tree))
    names = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            if node.name.startswith("test") and not node.args.args:
                return True
        elif isinstance(node, ast.ClassDef):
            if any("TestCase" in ast.dump(base) for base in node.bases):
                return True
        elif any(isinstance(inner, ast.Assert | ast.Raise) for inner in ast.walk(node)):
            return True
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return bool(defined & names)
