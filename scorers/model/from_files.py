"""Models from folders and from the Hub: safetensors only, no code that comes with them, adapters merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import ScoreError

if TYPE_CHECKING:
    from karat.scorers.model.source import ModelSource

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SUCH_ADAPTER = "a folder with adapter_config.json and adapter_model.safetensors, of a kind that merges (LoRA)"
SUCH = "a folder with config.json, model.safetensors and a tokenizer, or a Hub id of such"


def from_files(scorer: ModelSource, device: torch.device, kind: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a scorer on one device, in evaluation mode; raises ScoreError."""
    name = str(scorer.model)
    how: dict[str, Any] = {"trust_remote_code": scorer.trust_remote_code, "revision": scorer.revision}
    quantised = _quantised(scorer, device)
    _check_config(name, kind, how)
    tokenizer = _tokenizer(name, how)
    model = _model(name, kind, {**how, **quantised, "dtype": _dtype(scorer, device)})
    if scorer.adapter:
        model = with_adapter(model, scorer.adapter, merge=scorer.quantization is None)
    model.eval().requires_grad_(False)
    return (model if quantised else model.to(device)), tokenizer


def _check_config(name: str, kind: str, how: dict[str, Any]) -> None:
    from transformers import AutoConfig

    folder = Path(name).expanduser()
    if (folder / ADAPTER_FILES[0]).is_file() and not (folder / "config.json").is_file():
        raise ScoreError(
            "the folder holds an adapter and no model",
            where=str(folder),
            hint=f"give the model that it was trained on as `model`, and adapter: {name}",
        )
    try:
        config = AutoConfig.from_pretrained(name, **how)
    except Exception as error:  # what a damaged file raises is the library's choice
        raise _cannot_load("model", name, error) from error
    if kind == "causal" and config.is_encoder_decoder:
        raise ScoreError(
            f"{name!r} ({config.model_type}) is an encoder-decoder, not a causal language model",
            where="model",
            hint="give a decoder, such as Llama, Qwen, Gemma or GPT-2",
        )


def _tokenizer(name: str, how: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **how)
    except Exception as error:  # what a damaged file raises is the library's choice
        raise _cannot_load("tokenizer", name, error) from error
    # Without its files transformers makes an empty tokenizer of the kind that the model has.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ScoreError(
            f"{name!r} holds no tokenizer: what loads knows {len(tokenizer)} tokens",
            where="model",
            hint="put tokenizer.json beside the model: tokenizer.save_pretrained(folder)",
        )
    return tokenizer


def _model(name: str, kind: str, how: dict[str, Any]) -> Any:
    import transformers

    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        found = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        raise ScoreError(
            "the folder holds no *.safetensors"
            + (f"; {found[0]} is a pickle, which may run code when it is read" if found else ""),
            where=str(folder),
            hint="save the weights again: model.save_pretrained(folder)",
        )
    factory: Any = {
        "causal": transformers.AutoModelForCausalLM,
        "base": transformers.AutoModel,
        "classifier": transformers.AutoModelForSequenceClassification,
    }[kind]
    try:
        with _without_bar():
            model, info = factory.from_pretrained(
                name,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the sizes
                **how,
            )
    except Exception as error:  # what a damaged file raises is the library's choice
        raise _cannot_load("model", name, error) from error
    _refuse_mismatched(name, info["mismatched_keys"])
    refuse_missing(name, model, kind, info["missing_keys"])
    return model


def _refuse_mismatched(name: str, mismatched: Iterable[tuple[Any, ...]]) -> None:
    """Raise ScoreError for weights that do not fit the configuration: they would be drawn at random."""
    for key, there, wanted in sorted(mismatched, key=lambda each: str(each[0])):
        raise ScoreError(
            f"the weights do not fit config.json: {key} is {list(there)}, and should be {list(wanted)}",
            where=f"model {name!r}",
            hint="put the config.json beside the weights that they were saved with",
        )


def refuse_missing(name: str, model: Any, kind: str, missing: Iterable[str]) -> None:
    """Raise ScoreError for weights that the files lack: they would be drawn at random."""
    # The pooler of BERT comes after what is read of a bare model.
    lacking = sorted(key for key in missing if kind != "base" or "pooler" not in key)
    if lacking:
        raise ScoreError(
            f"{len(lacking)} weights of {type(model).__name__} are missing, such as {lacking[0]}",
            where=f"model {name!r}",
            hint="give the model that was trained for this: its files must hold all its weights",
        )


@contextmanager
def _without_bar() -> Iterator[None]:
    """No bar of transformers' own, which would tear karat's, and no table of weights, which karat refuses."""
    from transformers.utils import logging

    shown, told = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(told)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def with_adapter(model: Any, adapter: str, *, merge: bool) -> Any:
    """The model with a PEFT adapter: merged into its weights, or beside them where those are quantised."""
    if find_spec("peft") is None:
        raise ScoreError(
            "an adapter needs peft, which is not installed",
            where="adapter",
            hint="python -m pip install peft",
        )
    from peft import PeftModel

    folder = Path(adapter).expanduser()
    try:
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(adapter, allow_patterns=list(ADAPTER_FILES)))
        if any(not (folder / file).is_file() for file in ADAPTER_FILES):
            raise FileNotFoundError(f"it needs {' and '.join(ADAPTER_FILES)}; a pickle is not read")
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        if not hasattr(adapted.base_model, "merge_and_unload"):
            told = adapted.peft_config["default"].peft_type
            raise ValueError(f"{getattr(told, 'value', told)} cannot be merged into a model's weights")
        return adapted.merge_and_unload(safe_merge=True) if merge else adapted.get_base_model()
    except Exception as error:  # what a damaged file raises is the library's choice
        raise _cannot_load("adapter", adapter, error, SUCH_ADAPTER) from error


def _dtype(scorer: ModelSource, device: torch.device) -> Any:
    if scorer.dtype != "auto":
        return getattr(torch, scorer.dtype)
    return torch.float32 if device.type == "cpu" else "auto"


def _quantised(scorer: ModelSource, device: torch.device) -> dict[str, Any]:
    if scorer.quantization is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ScoreError(
            "quantised loading needs bitsandbytes, which is not installed",
            where="quantization",
            hint="python -m pip install bitsandbytes",
        )
    from transformers import BitsAndBytesConfig

    eight = scorer.quantization == "8bit"
    # The output layer stays as it is: scores are made of it, in float32.
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_8bit=eight,
        load_in_4bit=not eight,
        llm_int8_skip_modules=["lm_head", "embed_out", "output"],
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _cannot_load(what: str, name: str, error: Exception, such: str = SUCH) -> ScoreError:
    told = " ".join(str(error).split())[:300] or type(error).__name__
    where = "adapter" if what == "adapter" else "model"
    return ScoreError(f"cannot load the {what} {name!r}: {told}", where=where, hint=such)
