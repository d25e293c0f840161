r"""Where the final answer of a response stands: the marks that models are told to set, in one fixed order.

1. Whatever stands before the last `</think>` is left out; a `<think>` that never closes leaves nothing.
2. The last `\boxed{...}` or `\fbox{...}`, braces matched; if its braces do not close there is no answer,
   for the response was cut there.
3. The last `<answer>...</answer>`.
4. The rest of the line after the last `####`.
5. What follows the last "answer is", "answer:", "answer =" or "answer are": to the end of the sentence, or
   the first line that is not blank.

`marked` stops here; `anywhere` goes on to what the verifier takes for an answer (the last formula, the last
number), within the last 10,000 characters. Time grows with the length of the response and no faster.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Extract = Literal["whole", "marked", "boxed", "anywhere"]
TAIL = 10_000
_SEGMENT = 2_000

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_SAYS = re.compile(r"\banswers?\b[ \t*_]*(?:(?:is|are)\b|:|=)[ \t*_]*:?", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?。](?=\s|\*|$)")
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))


@dataclass(frozen=True)
class Found:
    """The answer of a response, or why there is none."""

    answer: str | None
    reason: str = ""


def find_answer(response: str, extract: Extract, last: Callable[[str], str | None] | None = None) -> Found:
    """The final answer of a response; `last` finds one in a text without marks, for `anywhere`."""
    if not response.strip():
        return Found(None, "the response is empty")
    if extract == "whole":
        return Found(response.strip())
    said = _after_thinking(response)
    if said is None:
        return Found(None, "the response ends while it is still thinking (<think> never closes)")
    if not said.strip():
        return Found(None, "nothing follows the last </think>")
    found = _boxed(said)
    if found is None and extract == "boxed":
        return Found(None, r"there is no \boxed{...} in the response")
    found = found or _tagged(said) or _after_hashes(said) or _after_words(said)
    if found is None and extract == "anywhere" and last is not None:
        answer = last(said[-TAIL:].strip())
        found = Found(answer) if answer is not None else None
    if found is None:
        return Found(None, _nothing(extract))
    return found


def marked_answer(text: str) -> str | None:
    r"""The answer of a worked solution by its \boxed{...} or ####, as references give it; None without."""
    found = _boxed(text) or _after_hashes(text)
    return found.answer if found else None


def unwrapped(text: str) -> str:
    r"""Without the signs of mathematics and emphasis around the whole: `$...$`, `\(...\)`, `**...**`."""
    text = text.strip()
    for _ in range(8):
        for start, end in _WRAPPED:
            inside = text[len(start) : -len(end)]
            if text.startswith(start) and text.endswith(end) and inside.strip() and start not in inside:
                text = inside.strip()
                break
        else:
            return text
    return text


def matching_brace(text: str, start: int) -> int | None:
    r"""Where the brace that opens at `start` closes; escaped braces do not count; None if it never does."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def _after_thinking(text: str) -> str | None:
    end = text.rfind("</think>")
    if end >= 0:
        return text[end + len("</think>") :]
    return None if text.lstrip().startswith("<think>") else text


def _boxed(text: str) -> Found | None:
    last = None
    for last in _BOX.finditer(text):
        pass
    if last is None:
        return None
    start = last.end()
    while start < len(text) and text[start] in " \t\n":
        start += 1
    if start == len(text):
        return Found(None, r"the response ends after \boxed")
    if text[start] != "{":  # TeX takes one token
        token = re.compile(r"\\[A-Za-z]+|[^\s$]").match(text, start)
        return Found(token[0]) if token else Found(None, r"the last \boxed is empty")
    end = matching_brace(text, start)
    if end is None:
        return Found(None, r"the braces of the last \boxed{ do not close: the response was cut")
    inside = text[start + 1 : end].strip()
    return Found(inside) if inside else Found(None, r"the last \boxed{} is empty")


def _tagged(text: str) -> Found | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start < 0:
        return None
    inside = unwrapped(text[start + len("<answer>") : end])
    return Found(inside) if inside else Found(None, "the last <answer> is empty")


def _after_hashes(text: str) -> Found | None:
    start = text.rfind("####")
    if start < 0:
        return None
    line = text[start + 4 :].lstrip("# \t").partition("\n")[0]
    answer = unwrapped(line)
    return Found(answer) if answer else Found(None, "nothing follows the last ####")


def _after_words(text: str) -> Found | None:
    last = None
    for last in _SAYS.finditer(text):
        pass
    if last is None:
        return None
    line = text[last.end() : last.end() + _SEGMENT].strip().partition("\n")[0]
    if line in (r"\[", "$$"):  # a formula on lines of its own
        line = " ".join(text[last.end() : last.end() + _SEGMENT].split())
        line = line[: max(line.find(r"\]", 2), line.find("$$", 2)) + 2] if line else line
    end = _SENTENCE.search(line)
    answer = unwrapped((line[: end.start()] if end else line).strip().rstrip("*_ "))
    return Found(answer) if answer else Found(None, 'nothing follows the last "answer is"')


def _nothing(extract: Extract) -> str:
    looked = r'no \boxed{...}, <answer>, #### or "answer is"'
    return f"no answer was found: {looked}" + (", and nothing else to take" if extract == "anywhere" else "")
