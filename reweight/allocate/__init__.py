"""Before synthesis: difficulty in, the number of responses of each query out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from karat.lazy import by_class_name, lazy_members

if TYPE_CHECKING:
    from karat.reweight.allocate.prop2_diff import Prop2Diff as Prop2Diff
    from karat.reweight.allocate.uniform import Uniform as Uniform

MEMBERS: dict[str, str] = {
    "prop2_diff": "karat.reweight.allocate.prop2_diff:Prop2Diff",
    "uniform": "karat.reweight.allocate.uniform:Uniform",
}
__getattr__ = lazy_members(__name__, by_class_name(MEMBERS))
