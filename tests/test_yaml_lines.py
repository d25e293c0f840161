from __future__ import annotations

import pytest

from karat.errors import ConfigError
from karat.yaml_lines import override, parse_yaml

TEXT = """\
name: x
scorers:
  - kind: zip_fit
    level: 6
  - kind: length
select: {kind: top_k, budget: 5%}
"""


def test_lines_of_keys_and_items() -> None:
    document = parse_yaml(TEXT, "c.yaml")
    assert document.data["scorers"][0] == {"kind": "zip_fit", "level": 6}
    assert document.where(("scorers", 0, "level")) == "c.yaml:4, key scorers.0.level"
    assert document.where(("scorers", 1)) == "c.yaml:5, key scorers.1"
    assert document.where(("select", "budget")) == "c.yaml:6, key select.budget"
    assert document.where(("select", "by")) == "c.yaml:6, key select.by"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "c.yaml:2: key 'a' is given twice"),
        ("a: [1\nb: 2\n", "c.yaml:2"),
        ("a: \t- x\n  b", "c.yaml"),
        ("a: !!python/object/apply:os.system [ls]\n", "c.yaml:1"),
        ("? [a, b]\n: 1\n", "c.yaml:1"),
        ("a: *nothing\n", "c.yaml:1"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "c.yaml:3: merging with << is not supported"),
    ],
)
def test_bad_yaml_names_the_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "c.yaml")
    assert expected in str(caught.value)


def test_overrides_reach_keys_items_and_new_keys() -> None:
    document = parse_yaml(TEXT, "c.yaml")
    changed = override(
        document, ["scorers.0.level=9", "select.budget=10% tokens", "train.steps=5", "name=null"]
    )
    assert changed.data["scorers"][0]["level"] == 9
    assert changed.data["select"]["budget"] == "10% tokens"
    assert changed.data["train"] == {"steps": 5}
    assert changed.data["name"] is None
    assert document.data["scorers"][0]["level"] == 6
    assert changed.where(("scorers", 0, "level")) == "c.yaml (override), key scorers.0.level"


@pytest.mark.parametrize(
    "assignment", ["budget", "=5", "scorers.7.level=1", "scorers.x=1", "name.deep=1", "a..b=1"]
)
def test_bad_overrides_are_named(assignment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(parse_yaml(TEXT, "c.yaml"), [assignment])
    assert assignment in str(caught.value)
