"""`karat list NAME`: settings in the words of someone who writes YAML."""

from __future__ import annotations

import pytest

from karat.describe import catalogue, find, find_all, settings_of
from karat.errors import ConfigError


def test_no_setting_shows_a_module_path_or_python_types() -> None:
    for parts in catalogue().values():
        for part in parts:
            for setting in settings_of(part):
                shown = f"{setting.type} {setting.default}"
                assert not any(word in shown for word in ("karat.", "Literal", "None", "(", "typing")), shown


@pytest.mark.parametrize(
    ("part", "setting", "kind", "default"),
    [
        ("zip_fit", "compressor", "gzip or lz4", "gzip"),
        ("top_k", "budget", "budget", "required"),
        ("top_k", "quota", "{name: budget} or budget", "null"),
        ("top_k", "largest", "true or false", "true"),
        ("lin_upper", "temperature", "number > 0 or schedule", "1.0"),
        ("lin_upper", "warmup_steps", "whole number ≥ 0", "0"),
    ],
)
def test_types_in_words(part: str, setting: str, kind: str, default: str) -> None:
    found = {s.name: s for s in settings_of(find(part))}[setting]
    assert (found.type, found.default) == (kind, default)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nowhere:X", "nowhere:X: cannot import nowhere:X: No module named 'nowhere'"),
        ("pathlib:Path", "pathlib:Path: is not a scorer, selector or reweighter"),
        ("zipfit", "there is no part named 'zipfit' (did you mean 'zip_fit'?)"),
    ],
)
def test_an_unknown_part_is_explained(name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert str(caught.value) == expected


def test_kinds_are_named_as_in_a_config_and_other_settings_in_words() -> None:
    types = {setting.name: setting.type for setting in settings_of(find("irt"))}
    assert types["slope_prior"] == "normal or log_normal or beta"
    assert types["responses"] == "responses source"


def test_summaries_are_of_one_form() -> None:
    for part in (part for parts in catalogue().values() for part in parts):
        assert not part.summary.endswith("."), part
        assert part.summary[0].islower() or part.summary[:2].isupper(), part


def test_a_name_of_two_contracts_shows_both() -> None:
    for name in ("curriculum", "Curriculum"):
        assert [part.__module__.rpartition(".")[0] for part in find_all(name)] == [
            "karat.reweight.select",
            "karat.reweight.online",
        ]
    assert find("curriculum").__module__ == "karat.reweight.select.curriculum"
