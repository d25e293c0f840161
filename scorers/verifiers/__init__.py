"""Everything that decides whether a response is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from karat.lazy import by_class_name, lazy_members

if TYPE_CHECKING:
    from karat.scorers.verifiers.exact import Exact as Exact
    from karat.scorers.verifiers.math_equivalence import MathEquivalence as MathEquivalence
    from karat.scorers.verifiers.multiple_choice import MultipleChoice as MultipleChoice
    from karat.scorers.verifiers.numeric import Numeric as Numeric
    from karat.scorers.verifiers.unit_tests import UnitTests as UnitTests

MEMBERS: dict[str, str] = {
    "exact": "karat.scorers.verifiers.exact:Exact",
    "numeric": "karat.scorers.verifiers.numeric:Numeric",
    "multiple_choice": "karat.scorers.verifiers.multiple_choice:MultipleChoice",
    "math": "karat.scorers.verifiers.math_equivalence:MathEquivalence",
    "unit_tests": "karat.scorers.verifiers.unit_tests:UnitTests",
}
__getattr__ = lazy_members(__name__, by_class_name(MEMBERS))
