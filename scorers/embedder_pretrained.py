"""An embedder named by a model's path or Hub id alone; its files say how it is meant to be run."""

from __future__ import annotations

from typing import ClassVar

from karat.fitting import Arrays
from karat.scorers.embedder_models import ModelEmbedder, module_types
from karat.scorers.embedder_sentence import SentenceTransformers
from karat.scorers.embedder_transformers import Transformers
from karat.scorers.embedders import Encoder


class Pretrained(ModelEmbedder):
    """A model with the settings that its files suggest.

    With a modules.json it is a sentence-transformers model, run as it was trained (its own pooling and
    length); else a transformers model, run as RDS+ does (`Transformers`). Name `transformers` or
    `sentence_transformers` outright to set more.
    """

    summary: ClassVar[str] = "a model by path or Hub id, run as its files suggest"
    formula: ClassVar[str] = "sentence_transformers if there is a modules.json, else transformers"
    paper: ClassVar[str] = "see transformers and sentence_transformers"

    def environment(self) -> dict[str, str]:
        """That of the embedder that it stands for."""
        return self.meant().environment()

    def meant(self) -> Transformers | SentenceTransformers:
        """The embedder that it stands for."""
        meant = SentenceTransformers if module_types(self.files(), self.model) else Transformers
        return meant(model=self.model, revision=self.revision, device=self.device)

    def load(self, fitted: Arrays | None) -> Encoder:
        """Load the model."""
        return self.meant().load(fitted)
