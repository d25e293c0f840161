"""Everything that looks at data: one scorer, one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "karat.scorers":
    raise ImportError(
        f"this folder is the package karat.scorers; import it by that name, not as {__name__!r}"
    )

from karat.lazy import by_class_name, lazy_members

if TYPE_CHECKING:
    from karat.scorers.cross_entropy_difference import CrossEntropyDifference as CrossEntropyDifference
    from karat.scorers.dart import DartDifficulty as DartDifficulty
    from karat.scorers.deita import Deita as Deita
    from karat.scorers.deita_complexity import DeitaComplexity as DeitaComplexity
    from karat.scorers.deita_quality import DeitaQuality as DeitaQuality
    from karat.scorers.donod import Donod as Donod
    from karat.scorers.dsir import Dsir as Dsir
    from karat.scorers.embedding import Embedding as Embedding
    from karat.scorers.glicko2.model import Glicko2 as Glicko2
    from karat.scorers.ifd import Ifd as Ifd
    from karat.scorers.irt.irt import Irt as Irt
    from karat.scorers.judge import Judge as Judge
    from karat.scorers.ledger import TrainingLedger as TrainingLedger
    from karat.scorers.length import Length as Length
    from karat.scorers.length_control import LengthControl as LengthControl
    from karat.scorers.loss import Loss as Loss
    from karat.scorers.nearest_embedding import NearestEmbedding as NearestEmbedding
    from karat.scorers.nearest_target import NearestTarget as NearestTarget
    from karat.scorers.perplexity import Perplexity as Perplexity
    from karat.scorers.preference_difficulty import PreferenceDifficulty as PreferenceDifficulty
    from karat.scorers.reward_model import RewardModel as RewardModel
    from karat.scorers.selective_ifd import SelectiveIfd as SelectiveIfd
    from karat.scorers.zip_fit import ZipFit as ZipFit

MEMBERS = {
    "dart": "karat.scorers.dart:DartDifficulty",
    "deita": "karat.scorers.deita:Deita",
    "deita_complexity": "karat.scorers.deita_complexity:DeitaComplexity",
    "deita_quality": "karat.scorers.deita_quality:DeitaQuality",
    "preference_difficulty": "karat.scorers.preference_difficulty:PreferenceDifficulty",
    "donod": "karat.scorers.donod:Donod",
    "loss": "karat.scorers.loss:Loss",
    "ifd": "karat.scorers.ifd:Ifd",
    "selective_ifd": "karat.scorers.selective_ifd:SelectiveIfd",
    "perplexity": "karat.scorers.perplexity:Perplexity",
    "cross_entropy_difference": "karat.scorers.cross_entropy_difference:CrossEntropyDifference",
    "dsir": "karat.scorers.dsir:Dsir",
    "glicko2": "karat.scorers.glicko2.model:Glicko2",
    "irt": "karat.scorers.irt.irt:Irt",
    "judge": "karat.scorers.judge:Judge",
    "embedding": "karat.scorers.embedding:Embedding",
    "reward_model": "karat.scorers.reward_model:RewardModel",
    "ledger": "karat.scorers.ledger:TrainingLedger",
    "length": "karat.scorers.length:Length",
    "length_control": "karat.scorers.length_control:LengthControl",
    "nearest_embedding": "karat.scorers.nearest_embedding:NearestEmbedding",
    "nearest_target": "karat.scorers.nearest_target:NearestTarget",
    "zip_fit": "karat.scorers.zip_fit:ZipFit",
}
__getattr__ = lazy_members(__name__, by_class_name(MEMBERS))
