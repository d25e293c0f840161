"""The process that compares formulas: it forks for every pair, so no pair sees what another left behind.

Run as `python -m karat.scorers.verifiers.math_worker`. One JSON object per line on stdin: `answer`,
`reference` (LaTeX), `digits`, `seconds`, `megabytes`; one per line on stdout. The child of a pair has a limit
of processor time (a timer of the kernel that ends it, inside compiled code as well) and of memory.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

# Parsing and simplifying load a good deal when they are first used: once here, rather than in every child.
_WARM = (
    (r"\frac{1}{2}", "0.5"),
    ("x+7", "2+x"),
    ("(1,2]", r"x^2+\sqrt{3}"),
    (r"\{1,2\}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"(-\infty,2)\cup(3,\infty)", "x>3"),
    (r"\begin{pmatrix}1&2\\3&x\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\sin^2 x+\cos x", r"1-\tan(x)"),
    (r"\frac{x^2-1}{x-1}", r"\frac{x+2}{3\sqrt{x}}"),
    (r"3\sqrt{2}+\pi", r"\frac{\log_2 8}{e^{2}}"),
    (r"2\pi", "6.28"),
    ("y=2x+3", "y=3x"),
    ("1<x<2", "(1,2)"),
    (r"2\pm\sqrt{3}", r"\{1,\sqrt{3}\}"),
    ("x=1, x=2", r"(1,\frac{\pi}{2})"),
    (r"5!+\binom{5}{2}", r"2^{10}+i"),
    (r"50\%", r"\frac{x}{3}\%"),
)


def compare(answer: str, reference: str, digits: int) -> dict[str, Any]:
    """Whether two formulas are equal, or which cannot be read."""
    from math_verify import verify

    read = {"reference": _parsed(reference), "answer": _parsed(answer)}
    for name, expression in read.items():
        if expression is None:
            return {"unreadable": name}
    gold, given = read["reference"], read["answer"]
    close = _close(given, gold, digits)
    if close is not None:
        return {"correct": close}
    equal = verify(gold, given, float_rounding=digits, allow_set_relation_comp=True, timeout_seconds=None)
    return {"correct": bool(equal)}


def _parsed(text: str) -> Any:
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    # Plain expressions would go through Python's eval there; LaTeX goes through a grammar.
    found = parse(
        f"\\boxed{{{text}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # type: ignore[arg-type]
    )
    return found[0] if found else None


def _close(given: Any, gold: Any, digits: int) -> bool | None:
    """Numbers of which one is decimal, to significant digits; None where this is not the case."""
    from sympy import Expr, Float, I

    if not all(isinstance(side, Expr) and side.is_number for side in (given, gold)):
        return None
    if not (given.has(Float) or gold.has(Float)) or given.has(I) or gold.has(I):
        return None
    x, y = (side.doit().evalf(digits + 15) for side in (given, gold))
    if not (x.is_Float or x.is_Integer or x.is_Rational) or not (y.is_Float or y.is_Integer or y.is_Rational):
        return None
    return bool(abs(x - y) <= abs(y) * Float(10) ** -digits)


def _limit(seconds: float, megabytes: int) -> None:
    # SIGPROF's own action ends the process; no handler of ours has to get a turn.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = Path("/proc/self/statm")
    if own.exists():
        used = int(own.read_text().split()[0]) * resource.getpagesize()
        limit = used + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _child(request: dict[str, Any], out: int) -> None:
    answer: dict[str, Any]
    try:
        _limit(request["seconds"], request["megabytes"])
        answer = compare(request["answer"], request["reference"], request["digits"])
    except MemoryError:
        answer = {"failed": "memory"}
    except RecursionError:
        answer = {"failed": "it is nested too deeply"}
    except Exception as error:  # noqa: BLE001 - whatever a parser of strangers' text may raise
        answer = {"failed": type(error).__name__}
    os.write(out, json.dumps(answer).encode())
    os._exit(0)


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(request, write)
    os.close(write)
    parts = []
    while part := os.read(read, 65_536):
        parts.append(part)
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGPROF:
        return {"failed": "time"}
    if code or not parts:
        return {"failed": f"the comparison ended with signal {-code}" if code < 0 else f"exit code {code}"}
    answer: dict[str, Any] = json.loads(b"".join(parts))
    return answer


def main() -> None:
    """Serve until stdin ends."""
    logging.disable(logging.CRITICAL)
    for answer, reference in _WARM:
        compare(answer, reference, 6)
    gc.collect()
    gc.freeze()  # children share these pages as long as the collector leaves them alone
    for line in sys.stdin:
        print(json.dumps(_answered(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
