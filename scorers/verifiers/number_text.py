r"""Numbers as people and models write them: 1,000, -1/2, \frac{1}{2}, 1 1/2, 1.5 \times 10^{3}, 50%, \$5."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MINUS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"))
# A number of more digits, or a power of ten beyond this, is no answer that anyone compares.
_MOST_DIGITS = 1_000
LONGEST = 2_000
_SPACES = "\u00a0\u2009\u202f"
_CURRENCY = "$€£¥₹₩₽¢"

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([^{}]*?)\s*\}|(\d))\s*(?:\{\s*([^{}]*?)\s*\}|(\d))")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_POWER = r"(?:[eE][-+]?\d+|\s*(?:\\times|\\cdot|[×*x·])\s*10\s*(?:\^|\*\*)\s*(?:\{\s*[-+]?\d+\s*\}|[-+]?\d+))"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]?)\s*(?:[{re.escape(_CURRENCY)}]\s*)?(?P<inner>[-+]?)"
    rf"(?:(?P<mixed>\d{{1,9}})\ (?=\d{{1,9}}\s*/\s*\d))?"
    rf"(?P<top>{_DECIMAL}){_POWER.replace('(?:', '(?P<power>', 1)}?"
    rf"(?:\s*/\s*(?P<bottom>-?{_DECIMAL}))?(?P<percent>\s*(?:%|percent\b|per cent\b))?(?!\d)"
)
_RAISED = re.compile("[⁺⁻⁰¹²³⁴-⁹]+")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*\^\s*(?:\{[23]\}|[23])(?!\d)")
_INFINITE = re.compile(r"([-+]?)\s*(?:\\infty|∞|\binf(?:inity)?\b)", re.IGNORECASE)
_HEDGED = re.compile(
    r"n't\b|\b(?:not|cannot|never|neither|nor|no|or|and|between|nan|versus|vs|at\s+(?:least|most)|or\s+(?:more|less)"
    r"|(?:more|less|greater|fewer|smaller|larger|higher|lower)\s+than)\b|[<>≤≥≠±]|\\(?:le|ge|lt|gt|ne|neq|leq|geq|pm)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """A number as it was written; exact."""

    value: Fraction | None
    """None for an infinite one."""
    infinite: int = 0
    """1 for plus infinity, -1 for minus infinity, else 0."""
    percent: bool = False
    """Written with a percent sign; the value is that of the digits, not divided."""
    unit: str = ""
    """What else stands beside it: words, a unit."""


def plain(text: str) -> str:
    r"""NFKC, one kind of minus, `\%`, `\$`, `\,`, `{,}`, `\text{...}` and thin spaces made plain."""
    text = re.sub(rf"(?<=\d)[{_SPACES}](?=\d{{3}}(?!\d))", "", text)
    text = (
        unicodedata.normalize("NFKC", raised(text))
        .translate(MINUS)
        .replace("{,}", ",")
        .replace("\u2044", "/")
    )
    text = re.sub(r"(?<=\d)(?:\\[,!;:]|\\ )(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\([%$])", r"\1", re.sub(r"\\[,!;: ]|\\left|\\right|~", " ", text))
    text = _FRACTION.sub(_slashed, re.sub(r"(?<=\d)\s*(?=\\[dtc]?frac)", " ", text))
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def raised(text: str) -> str:
    """Superscripts as powers (10⁻³ is 10^{-3}), and ½ after a digit apart from it: NFKC would join both."""
    return re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", _RAISED.sub(_caret, text))


def read_number(text: str) -> Number | str:
    """The one number of an answer, or a sentence that says why there is none.

    What stands before the last sign of equality is left out. Words around the number count as units,
    unless they turn its meaning (not, at least, or).
    """
    if len(text) > LONGEST:
        return f"the answer is longer than {LONGEST:,} characters"
    text = plain(text)
    text = re.split(r"=|≈|\\approx|\\simeq", text)[-1].strip().rstrip(".,;: ")
    text = _UNIT_POWER.sub("", text)
    if not text:
        return "the answer is empty"
    if hedge := _HEDGED.search(text):
        return f"the answer is not one number: it says {hedge[0]!r}"
    found = list(_NUMBER.finditer(text))
    infinite = list(_INFINITE.finditer(text))
    if len(found) + len(infinite) > 1:
        numbers = ", ".join(match[0].strip()[:40] for match in (found + infinite)[:4])
        return f"the answer is not one number: it has {numbers}"
    if infinite:
        return Number(None, -1 if infinite[0][1] == "-" else 1, unit=_INFINITE.sub("", text).strip(" ()$"))
    if not found:
        return "the answer has no number that can be read"
    match = found[0]
    rest = text[: match.start()] + " " + text[match.end() :]
    if re.search(r"\d|[\^_√]|\\(?!circ)[A-Za-z]+", rest.replace("^\\circ", "").replace("^{\\circ}", "")):
        return "the answer is an expression, not a number"
    before, after = text[: match.start()].strip(), text[match.end() :].strip()
    if (
        re.search(r"[-+*/]$", before)
        or re.match(r"[-+*/!]|[xyz]\b", after)
        or match["sign"]
        and match["inner"]
    ):
        return "the answer is an expression, not a number"
    return _value(match, rest.strip(" ()$"))


def last_number(text: str) -> str | None:
    """The last number of a text with what touches it (a sign, a unit, the rest of an expression), or None.

    Up to three words are taken as they are.
    """
    text = plain(text)
    if len(text.split()) <= 3:
        return text if _NUMBER.search(text) or _INFINITE.search(text) else None
    last = None
    for last in _NUMBER.finditer(text):
        pass
    if last is None:
        return None
    start, stop = last.span()
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    while stop < len(text) and not text[stop].isspace():
        stop += 1
    return text[start:stop].strip("*`$\"'[]|<> ")


def _value(match: re.Match[str], unit: str) -> Number | str:
    if len(match[0]) > _MOST_DIGITS:
        return f"the number has more than {_MOST_DIGITS} characters"
    top = _decimal(match["top"])
    power = re.search(r"[-+]?\d+(?=\s*\}?\s*$)", match["power"]) if match["power"] else None
    if power is not None:
        if abs(int(power[0])) > _MOST_DIGITS:
            return f"the power of ten is beyond {_MOST_DIGITS}"
        top *= Fraction(10) ** int(power[0])
    if match["bottom"]:
        bottom = _decimal(match["bottom"])
        if bottom == 0:
            return "the answer divides by zero"
        top /= bottom
    if match["mixed"]:
        top += int(match["mixed"])
    if "-" in (match["sign"], match["inner"]):
        top = -top
    return Number(top, percent=bool(match["percent"]), unit=unit)


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _slashed(match: re.Match[str]) -> str:
    top, bottom = match[1] or match[2] or "", match[3] or match[4] or ""
    simple = re.fullmatch(r"-?[\d.,]+", top) and re.fullmatch(r"-?[\d.,]+", bottom)
    return f"{top}/{bottom}" if simple else match[0]


def _caret(match: re.Match[str]) -> str:
    return "^{" + unicodedata.normalize("NFKC", match[0]).translate(MINUS) + "}"
