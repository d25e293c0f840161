"""The model that writes responses, as one thing: its sampler, and the key of what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from karat.code_digest import modules_digest
from karat.scorers.generation.settings import Generation
from karat.scorers.model.source import ModelSource
from karat.store import key_of

if TYPE_CHECKING:
    from karat.scorers.generation.samples import Sampler


class ResponseModel(ModelSource):
    """A model that writes responses: a folder, a Hub id, a loaded pair, or one that is served."""

    served: ClassVar[bool] = True

    def environment(self) -> dict[str, str]:
        """What is known of the model; of a served one no tokenizer is needed, as it is asked in text."""
        if self.server is None:
            return super().environment()
        from karat.scorers.server.served_model import served_facts

        return {"model": served_facts(self.server, str(self.model), self.revision)}


def sampler_of(source: ModelSource, generation: Generation) -> Sampler:
    """What writes the responses of a model; nothing is loaded or asked before the first sample."""
    if source.server is not None:
        from karat.scorers.generation.served import ServedSampler

        return ServedSampler(source, generation)
    from karat.scorers.generation.local import LocalSampler

    return LocalSampler(source, generation)


def responses_key(source: ModelSource, generation: Generation) -> str:
    """Key of everything that decides the responses: weights, settings, code, libraries.

    A folder counts by its files, not by its path. Of a served model its name is known, and the revision or
    what the server tells; raises ScoreError where it has to be asked and does not answer.
    """
    settings = generation.model_dump(mode="json", exclude=set(generation.neutral))
    if source.server is not None:
        from karat.scorers.server.served_model import served_facts

        facts = {"model": served_facts(source.server, str(source.model), source.revision)}
        code = modules_digest("karat.scorers.generation.requests")
        return key_of(settings, facts, source.server.dialect, code)
    # What decides about a server only.
    settings = {name: value for name, value in settings.items() if name not in ("per_request", "request")}
    facts = ModelSource.environment(source)
    if not isinstance(source.model, str):
        facts["model"] = source.model.digest()
    facts |= {name: str(getattr(source, name)) for name in ("dtype", "quantization", "trust_remote_code")}
    return key_of(settings, facts, modules_digest("karat.scorers.generation.local"))
