"""Budgets: how much of a pool may be kept, in rows, tokens or a share of either, counted exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from karat.errors import SelectionError

FORMS = "write 1000 rows, 10%, 2M tokens or 10% tokens"
NEEDS_LENGTH = "add the scorer `length` (`- kind: length`), or name your own column with `tokens`"
_WRITTEN = re.compile(
    r"\s*(?P<sign>[+-]?)(?P<number>[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+|nan|inf|infinity)"
    r"\s*(?:(?P<scale>[kmbt])?|(?P<percent>%)?)\s*(?P<unit>rows?|tokens?)?\s*",
    re.IGNORECASE | re.ASCII,
)
_SCALE = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_LONGEST = 60

Unit = Literal["rows", "tokens"]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Budget:
    """An amount of rows or tokens, or a share of the pool's: `Budget("10% tokens")`.

    Accepted: `1000`, `"1000 rows"`, `"10k rows"` (rows); `"10%"` (of the rows); `"2_000_000 tokens"`,
    `"2M tokens"`, `"1.5B tokens"` (tokens; k, M, B, T are powers of a thousand); `"10% tokens"` (of the
    pool's tokens). Shares are exact fractions and round down: 29% of 100 is 29. Budgets of one value are
    equal and serialise to one string. Raises SelectionError for what can be no budget.
    """

    amount: Fraction
    """Rows, tokens, or for a share a number in (0, 1]."""
    unit: Unit
    share: bool

    def __init__(self, written: int | str | Budget) -> None:
        amount, unit, share = _parsed(written)
        object.__setattr__(self, "amount", amount)
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "share", share)

    def __str__(self) -> str:
        if self.share:
            return f"{_decimal(self.amount * 100)}%{' tokens' if self.unit == 'tokens' else ''}"
        amount = int(self.amount)
        shown = str(amount) if amount < 10_000 else format(amount, "_")
        return f"{shown} {self.unit if amount != 1 else self.unit.removesuffix('s')}"

    def __repr__(self) -> str:
        return f"Budget({str(self)!r})"

    def limit(self, n_rows: int, n_tokens: int | None = None) -> int:
        """The budget as a whole number of its unit, for a pool of so many rows and tokens.

        Raises SelectionError when it is more than there is or rounds down to nothing.
        """
        total = n_rows if self.unit == "rows" else n_tokens
        if total is None:
            raise SelectionError(f"budget {self} needs the rows' tokens", hint=NEEDS_LENGTH)
        if total == 0:
            raise SelectionError(f"the pool has no {self.unit} to choose from")
        limit = int(self.amount * total) if self.share else int(self.amount)
        if limit > total:
            raise SelectionError(
                f"a budget of {self} is more than the pool, which has {total} {self.unit}",
                hint=f"ask for at most {total} {self.unit}, or for a share such as 10%",
            )
        if limit == 0:
            raise SelectionError(
                f"{self} of a pool of {total} {self.unit} rounds down to none", hint="ask for a larger share"
            )
        return limit

    def check(self, n_rows: int, n_tokens: int | None = None) -> None:
        """Raise SelectionError if no pool of this size can meet the budget; unknown tokens check nothing."""
        if self.unit == "rows" or n_tokens is not None:
            self.limit(n_rows, n_tokens)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_plain_validator_function(
            _validated,
            serialization=core_schema.to_string_ser_schema(),
            json_schema_input_schema=core_schema.union_schema(
                [core_schema.int_schema(gt=0), core_schema.str_schema()]
            ),
        )


def _decimal(number: Fraction) -> str:
    # The denominator divides a power of ten, so that enough digits are all digits.
    with localcontext(prec=2 * _LONGEST):
        return f"{Decimal(number.numerator) / Decimal(number.denominator):f}"


def _validated(written: Any) -> Budget:
    try:
        return Budget(written)
    except SelectionError as error:
        raise PydanticCustomError("budget", "{problem}", {"problem": str(error)}) from None


def _parsed(written: object) -> tuple[Fraction, Unit, bool]:
    if isinstance(written, Budget):
        return written.amount, written.unit, written.share
    if isinstance(written, bool) or not isinstance(written, int | float | str):
        raise SelectionError(f"a budget cannot be {written!r:.60}", hint=FORMS)
    text = str(written)
    found = _WRITTEN.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        raise SelectionError(f"cannot read {text[:_LONGEST]!r} as a budget", hint=FORMS)
    number, percent = found["number"].lower(), found["percent"] is not None
    unit: Unit = "tokens" if (found["unit"] or "").lower().startswith("token") else "rows"
    if number[0] in "ni":
        raise SelectionError(f"a budget of {text!r} is not a finite number", hint=FORMS)
    if percent and found["unit"] and unit == "rows":
        raise SelectionError(
            f"cannot read {text!r} as a budget: a share of the rows is a bare 10%", hint=FORMS
        )
    amount = Fraction(number.replace("_", "")) * _SCALE.get((found["scale"] or "").lower(), 1)
    if amount == 0:
        raise SelectionError(f"a budget of {text!r} would keep nothing", hint=FORMS)
    if found["sign"] == "-":
        raise SelectionError(f"a budget of {text!r} is negative", hint=FORMS)
    if percent and amount > 100:
        raise SelectionError(f"a budget of {text!r} is more than everything", hint="at most 100%")
    if not percent and amount.denominator != 1:
        share = f"; a share is written {_decimal(amount * 100)}%" if amount < 1 else ""
        raise SelectionError(f"a budget of {text!r} is not a whole number of {unit}{share}", hint=FORMS)
    return (amount / 100 if percent else amount), unit, percent


def _per_group(given: Any) -> Any:
    """Sorted, so that equal mappings hash alike; a mapping is checked here, so that errors name the group."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return _validated(given)
    if not given:
        raise PydanticCustomError("budget", "names no group; leave it out, or write one budget for all")
    found: dict[str, Budget] = {}
    for name, written in given.items():
        # YAML reads a group called 2024 as a number.
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise PydanticCustomError("budget", "group {name} is no text; quote it", {"name": repr(name)})
        try:
            found[str(name)] = Budget(written)
        except SelectionError as error:
            raise PydanticCustomError(
                "budget", "group {name}: {problem}", {"name": repr(name), "problem": str(error)}
            ) from None
    return dict(sorted(found.items()))


# The mapping stands first: a Budget serialises by str(), which would take a mapping as well.
PerGroup = Annotated[dict[str, Budget] | Budget | None, BeforeValidator(_per_group)]
"""One budget for every group, or a mapping of group -> budget in which "*" is for the groups not named."""
