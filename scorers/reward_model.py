"""What a trained judge of answers says: the output of a classification head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import polars as pl
from pydantic import Field

from karat.errors import ScoreError, closest
from karat.fitting import Arrays
from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.states import States

Template = Literal["auto", "chat", "pair", "plain"]


class RewardModel(DecoderScorer):
    """Output of a model's classification head for prompt and response: a logit, or a regression's value.

    Any model of the class AutoModelForSequenceClassification, encoder or decoder: reward models with one
    output, classifiers of quality with one or several. `label` names the output (its place or its name)
    where there are several; the score is the head's number as it is, no softmax.

    template: `chat` renders prompt and response as a user's and an assistant's message by the tokenizer's
    chat template, as reward models are trained; `pair` gives the tokenizer two texts, as encoders are
    trained; `plain` is prompt, line break, response. `auto` is `chat` where the tokenizer has a template,
    else `plain`. A row of plain text is given as it is. The tokenizer adds its special tokens, except to a
    chat, whose template holds them. Elsewhere text that spells a special token stays text; in a chat it
    would close a message, so such a row fails.

    What is over `max_tokens`, or over what the model has positions for, is cut off the end of the response,
    and closing tokens stay ("truncated"); where the prompt alone is too long the row fails.

    Of a decoder the head reads the state of the last token, wherever the padding token stands. transformers
    finds that place by comparing tokens with the padding token, which is wrong for a text that ends with
    it and refused where there is none; here the place is known. Hidden states in 16 bits go through the
    head in float32. A score depends on its batch by rounding only.

    Ouyang et al. 2022, "Training language models to follow instructions with human feedback" (InstructGPT),
    arXiv 2203.02155, section 3.5.
    """

    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")
    summary: ClassVar[str] = "a reward model or classifier: the output of its head for prompt and response"
    formula: ClassVar[str] = "r(prompt, response): one output of a sequence-classification head"
    paper: ClassVar[str] = "Ouyang et al. 2022, InstructGPT, arXiv 2203.02155, section 3.5"

    label: int | str | None = Field(
        None, description="output by place or name; needed where the head has several"
    )
    template: Template = Field(
        "auto", description="chat, pair, plain; auto: chat if the tokenizer has a template, else plain"
    )

    def environment(self) -> dict[str, str]:
        """With the library that renders chats."""
        return {**super().environment(), "jinja2": version("jinja2")}

    def columns(self) -> dict[str, pl.DataType]:
        """`reward_model.score`: the head's number."""
        return {"reward_model.score": pl.Float64()}

    def model_kind(self) -> str:
        """With the classification head."""
        return "classifier"

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Any:
        """Check the label, and load the model."""
        self.place()
        return super().prepare(reference, fitted)

    def place(self) -> int:
        """The output that counts; raises ScoreError where the label does not say which."""
        from karat.scorers.model.described import described

        labels = described(self).labels
        if self.label is None:
            if len(labels) == 1:
                return 0
            problem, hint = f"the model has {len(labels)} outputs", f"choose one of {', '.join(labels[:20])}"
        elif isinstance(self.label, int):
            if 0 <= self.label < len(labels):
                return self.label
            problem, hint = f"there is no output {self.label}", f"there are {len(labels)}, counted from 0"
        elif labels.count(self.label) == 1:
            return labels.index(self.label)
        else:
            problem, hint = f"no output is called {self.label!r}", closest(self.label, labels)
        raise ScoreError(problem, where="reward_model, label", hint=hint)

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """Prompt and response as the model knows them; its answer stands at the last token."""
        from karat.scorers.model.asking import Asking
        from karat.scorers.model.runner import Request
        from karat.scorers.model.templates import as_pair, as_plain, chat_tokens

        prompt, response = row["prompt"], row["response"]
        if prompt is None and response is None:
            found = as_plain(tokenizer, None, row["text"], self.max_tokens)
        elif not response:
            return "no response"
        elif self.template == "pair":
            found = as_pair(tokenizer, prompt or "", response, self.max_tokens)
        elif self.template == "chat" or (self.template == "auto" and tokenizer.chat_template):
            found = chat_tokens(tokenizer, prompt, response, self.max_tokens)
        else:
            found = as_plain(tokenizer, prompt, response, self.max_tokens)
        if isinstance(found, str):
            return found
        ids, truncated = found
        return Asking((Request(ids, (len(ids) - 1,)),), truncated)

    def reduce(self, states: States) -> float:
        """The output that counts."""
        return float(states.hidden_nd[-1, self.place()])

    def conclude(self, reduced: Sequence[float]) -> dict[str, Any] | str:
        """The only sequence's."""
        import math

        if not math.isfinite(reduced[0]):
            return "the model's number is not finite"
        return {"reward_model.score": reduced[0]}
