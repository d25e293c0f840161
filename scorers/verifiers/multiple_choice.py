"""MultipleChoice: the answer names the right choice, by its letter or by its text."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from karat.scorers.verifiers.answering import AnswerVerifier, shown
from karat.scorers.verifiers.extraction import Extract, unwrapped

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FORM = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:\]]|$)\s*(.*)", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
# "A man", "I think": a word and no choice.
_ARTICLE = re.compile(r"\b[AI]\s+(?!because\b|since\b|is\b|as\b|and\b|or\b)(?=[a-z])")
_REFUSES = re.compile(r"n't\b|\b(?:not|neither|nor|either|cannot|except)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """The right choice: its letter, its text, and the texts of all choices where the reference has them."""

    letter: str
    text: str = ""
    texts: dict[str, str] = field(default_factory=dict)


class MultipleChoice(AnswerVerifier):
    r"""Right where the answer names the reference's choice and no other.

    Answers: B, b, (B), B., "B) north", \boxed{B}, \boxed{\text{(B)}}, "The answer is B.", or the text of the
    choice, where the reference has it. Without a mark (`extract: anywhere`): the whole response if it has one
    of these forms, else the letter in parentheses, if the response has one letter so. More than one letter in
    an answer ("B or C", "not B but C"), a letter with another choice's text, and a letter beyond `letters` are
    wrong, and the reason says so. A bare "A" inside a sentence without mark is an article and no answer.

    References: B, (B), "B) north", or JSON {"answer": "B", "choices": ["south", "north"]} (choices may be a
    mapping of letters as well, and the answer may be a text of them): with it an answer by text is compared
    with all the texts. Case, white space, full-width forms and the stop at the end of texts do not count; a
    text matches as a whole: "No" is not "north". Raises DataError for a reference that names no choice.
    """

    summary: ClassVar[str] = "the letter or the text of a choice; more than one is wrong"
    formula: ClassVar[str] = "letter(answer) = letter(reference), or text(answer) = text(reference)"
    paper: ClassVar[str] = "Hendrycks et al. 2021, MMLU, arXiv 2009.03300"

    extract: Extract = Field(
        default="anywhere",
        description=r"where the answer is: marked (\boxed, <answer>, ####, answer is), boxed, anywhere (marked, "
        "else the whole or a letter in parentheses), whole response",
    )
    letters: int = Field(
        default=5, ge=2, le=26, description="how many choices there are at most: 5 is A to E"
    )

    def environment(self) -> dict[str, str]:
        """What decides case and forms: Python's Unicode tables."""
        return {"unicode": unicodedata.unidata_version}

    def extraction(self) -> Extract:
        """As set."""
        return self.extract

    def last(self, text: str) -> str | None:
        """The whole of a short response, else the letters in parentheses."""
        if len(text) <= 200 and "\n" not in text:
            return text
        named = list(dict.fromkeys(re.findall(rf"\(([{self._range()}])\)", text)))
        if named:
            return " ".join(f"({letter})" for letter in named)
        lines = text.splitlines()
        ends = [_plain(line) for line in (lines[0], lines[-1])]
        alone = [line for line in dict.fromkeys(ends) if (form := _FORM.fullmatch(line)) and not form[2]]
        return " ".join(alone) or ends[1]

    def read_reference(self, reference: str, place: int) -> Choice:
        """Letter, text and all texts of the reference."""
        if reference.strip().startswith("{"):
            return self._from_json(reference, place)
        answer = _plain(self.reference_answer(reference))
        form = _FORM.fullmatch(answer)
        if form is None or form[1].upper() not in self._range():
            raise self.unreadable(
                f"the reference {shown(reference)} names no choice from A to {self._range()[-1]}",
                place,
                'write B, (B), "B) north" or {"answer": "B", "choices": [...]}; more choices: raise `letters`',
            )
        return Choice(form[1].upper(), _key(form[2]))

    def compare(self, answer: str, reference: Choice) -> str:
        """Empty where the answer names the reference's choice alone."""
        text = _plain(answer)
        key = _key(text)
        right = {reference.text} if reference.text else set()
        if key and key in right | set(reference.texts.values()):
            if sum(key == other for other in reference.texts.values()) > 1:
                return f"several choices have the text {shown(text)}"
            return "" if key in right else f"{shown(text)} is another choice than {self._name(reference)}"
        form = _FORM.fullmatch(text)
        if form and (not form[2].strip() or self._is_text_of(form, reference)):
            return self._letter(form[1].upper(), _key(form[2]), reference)
        return self._inside(text, reference)

    def _inside(self, text: str, reference: Choice) -> str:
        bare = r"(?<![\w'’-])([{0}])(?![\w'’-])".replace("{0}", self._range())
        text = _ARTICLE.sub("", re.split(r"\b(?:because|since)\b", text, flags=re.IGNORECASE)[0])
        named = list(dict.fromkeys(re.findall(bare, text)))
        if not named:
            return f"{shown(text)} names no choice"
        if len(named) > 1:
            return f"the answer names more than one choice: {', '.join(named)}"
        if _REFUSES.search(text):
            return f"the answer does not say which choice it takes: {shown(text)}"
        return self._letter(named[0], "", reference)

    def _letter(self, letter: str, text: str, reference: Choice) -> str:
        if letter not in self._range():
            return f"{letter} is beyond the choices A to {self._range()[-1]}"
        if letter != reference.letter:
            return f"{letter} is not {reference.letter}"
        others = {other for name, other in reference.texts.items() if name != letter}
        if text in others and text != reference.text:
            return f"the letter {letter} stands with the text of another choice"
        return ""

    def _is_text_of(self, form: re.Match[str], reference: Choice) -> bool:
        # "B) north": a letter with anything after it that names no second letter.
        said = re.split(r"\b(?:because|since)\b", form[2], flags=re.IGNORECASE)[0]
        named = set(re.findall(rf"(?<![\w'’-])[{self._range()}](?![\w'’-])", said))
        return form[1].isupper() and not named - {form[1]} and not _REFUSES.search(said)

    def _from_json(self, reference: str, place: int) -> Choice:
        try:
            given = json.loads(reference)
            choices = given.get("choices", [])
            pairs = choices.items() if isinstance(choices, dict) else zip(_LETTERS, choices, strict=False)
            texts = {str(letter).upper(): _key(str(text)) for letter, text in pairs}
            answer = str(given["answer"]).strip()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self.unreadable(
                'the reference is no JSON of the form {"answer": "B", "choices": [...]}', place
            ) from error
        if set(texts) - set(self._range()) or len(choices) > self.letters:
            raise self.unreadable(f"there are choices beyond {self._range()[-1]}", place, "raise `letters`")
        form = _FORM.fullmatch(_plain(answer))
        letter = form[1].upper() if form and not form[2] else ""
        by_text = [name for name, text in texts.items() if text == _key(answer)]
        letter = letter if letter in (texts or self._range()) else by_text[0] if len(by_text) == 1 else ""
        if not letter:
            raise self.unreadable(f"the answer {shown(answer)} is none of the choices", place)
        return Choice(letter, texts.get(letter, ""), texts)

    def _range(self) -> str:
        return _LETTERS[: self.letters]

    def _name(self, reference: Choice) -> str:
        return f"{reference.letter} ({reference.text})" if reference.text else reference.letter


def _plain(text: str) -> str:
    text = _TEXT.sub(r"\1", unwrapped(unicodedata.normalize("NFKC", text)))
    return unwrapped(text.replace("\\ ", " ").strip()).strip("*_ \n").rstrip(".").strip()


def _key(text: str) -> str:
    return " ".join(text.casefold().split()).strip().rstrip(".").strip()
