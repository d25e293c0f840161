r"""Answers made ready for a LaTeX parser, and what can be decided without one."""

from __future__ import annotations

import re
import unicodedata

from karat.scorers.verifiers.extraction import unwrapped
from karat.scorers.verifiers.number_text import MINUS, raised

LONGEST = 2_000
_SIGNS = {
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": r"\div ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "±": r"\pm ",
    "°": r"^{\circ}",
    "ℝ": r"\mathbb{R}",
}
_PLAIN_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|textit|mathbf|operatorname)\s*\{([^{}]*)\}")
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log exp sqrt det max min gcd lcm mod inf".split()
)
_GREEK = frozenset("alpha beta gamma delta theta lambda sigma omega phi rho tau infinity".split())
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,;'’-]+[^\W\d_]+)*[.!]?")
_BASE = re.compile(r"\d_\s*(?:\{\s*(\d+)\s*\}|(\d+))")
_SQUARE_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))")


def latex(text: str) -> str:
    r"""A formula as LaTeX: Unicode signs, `**`, `*`, `sqrt(...)`, `pi` and `<=` replaced by commands."""
    text = raised(unwrapped(text)).translate(MINUS)
    for sign, command in _SIGNS.items():
        text = text.replace(sign, command)
    text = _SQUARE_ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3] or ''}}}", text)
    text = unicodedata.normalize("NFKC", text).replace(r"\varnothing", r"\emptyset")
    text = text.replace("**", "^").replace("*", r"\cdot ").replace("<=", r"\le ").replace(">=", r"\ge ")
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    return " ".join(text.split()).rstrip(".,;: ")


def words(text: str) -> str | None:
    r"""The text, folded, of an answer in words ("no solution", \text{none}, north); None for a formula.

    Words are letters alone with one run of three or more, or in \text{...}; so "xy" is a product, "no" and
    "on" are words, and a product of three letters or more is written with spaces or dots.
    """
    opened = _PLAIN_TEXT.sub(r"\1", unwrapped(text)).strip()
    if not _WORDS.fullmatch(opened):
        return None
    runs = [run.casefold() for run in re.findall(r"[^\W\d_]+", opened)]
    known = _FUNCTIONS | _GREEK
    longest = max(len(run) for run in runs if run not in known) if set(runs) - known else 0
    marked = _PLAIN_TEXT.fullmatch(unwrapped(text)) is not None and longest > 1
    if longest < 3 and not marked and not set(runs) & {"no", "on"}:
        return None
    return " ".join(opened.casefold().split()).rstrip(".!")


def balanced(text: str) -> bool:
    """Whether every brace that opens closes, and none closes that is not open."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return False
    return depth == 0


def brackets(text: str) -> str:
    r"""The kind of list an answer is: "(" an interval, point or tuple, "{" a set, "," a bare list, "" none.

    Only a list with a comma outside inner brackets counts, so (x+1)(x-1) and f(1,2) are no lists.
    """
    text = re.sub(r"\\(?:left|right|bigl|bigr|big|Bigl|Bigr)(?![A-Za-z])", "", text)
    text = re.sub(r"^.*?(?:\\in(?![A-Za-z])|(?<![<>\\])=)\s*", "", text, count=1).strip()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace(r"\{", "\x01").replace(r"\}", "\x02")
    if "," in _outside(text):
        return ","
    if text[:1] in "([" and text[-1:] in ")]" and "," in _outside(text[1:-1]):
        return "("
    if text.startswith("\x01") and text.endswith("\x02"):
        return "{"
    return ""


def bases(text: str) -> list[str]:
    """The bases that numbers are written in: 1011_2 has 2."""
    return [first or second for first, second in _BASE.findall(text)]


def _outside(text: str) -> str:
    depth, outside = 0, []
    for character in text:
        if character in "([{\x01":
            depth += 1
        elif character in ")]}\x02":
            depth -= 1
        elif depth == 0:
            outside.append(character)
    return "".join(outside)


def last_formula(text: str) -> str | None:
    r"""The last `$...$`, `\(...\)` or `\[...\]` of a text; None without."""
    last = None
    for last in re.finditer(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", text, re.DOTALL):
        pass
    return next(filter(None, last.groups()), "").strip() or None if last else None
