"""Turns by roles and preference pairs: views written down by hand; digests of other rows as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import karat
from karat.cli.init import init
from karat.config import load_config
from karat.errors import DataError
from karat.parts import Scorer
from karat.reading import load_rows
from karat.rows import VIEW, FileData, content_digest, from_frame, read
from karat.rows.conversations import Message, side_of, turns_in
from karat.rows.view import turns_of
from karat.score_engine import chunks, fit_pool, score_group
from karat.store import Store

Row = dict[str, Any]


def user(words: str | None) -> Row:
    return {"role": "user", "content": words}


def model(words: str | None) -> Row:
    return {"role": "assistant", "content": words}


def system(words: str) -> Row:
    return {"role": "system", "content": words}


def turns(*pairs: tuple[str, str]) -> list[Row]:
    return [{"prompt": prompt, "response": response} for prompt, response in pairs]


# Messages, and the turns that the view shows; None where prompt and response are the only turn.
CONVERSATIONS: list[tuple[list[Row] | None, list[Row] | None]] = [
    ([user("q"), model("a")], None),
    ([user("alone")], None),
    ([user("q"), model(None)], None),
    (None, None),
    ([], None),
    ([user("q1"), model("a1"), user("q2"), model("a2")], turns(("q1", "a1"), ("q2", "a2"))),
    ([user("q1"), model("a1"), user("q2")], turns(("q1", "a1"), ("q2", ""))),
    ([system("s"), user("q"), model("a")], turns(("q", "a"))),
    ([system("s")], []),
    ([model("hello")], []),
    ([model("hello"), user("q"), model("a")], turns(("q", "a"))),
    ([user("q"), user("and?"), model("a")], None),  # the prompt says the same
    ([user("q"), model("a"), model("b")], turns(("q", "a\nb"))),
    ([user("q"), system("s"), user("and?"), model("a")], turns(("q\nand?", "a"))),
    (
        [user("q"), model(None), {"role": "tool", "content": "42"}, model("a"), user("thanks")],
        turns(("q", "a"), ("thanks", "")),
    ),
    ([{"role": "Alice", "content": "q"}, {"role": "Assistant", "content": "a"}, user("q2")],
     turns(("q", "a"), ("q2", ""))),
    ([user(""), model("a"), user("q"), model("b")], turns(("", "a"), ("q", "b"))),
]  # fmt: skip


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_turns_go_by_roles(keys: tuple[str, str]) -> None:
    given = [
        None
        if messages is None
        else [dict(zip(keys, (m["role"], m["content"]), strict=True)) for m in messages]
        for messages, _ in CONVERSATIONS
    ]
    name = "messages" if keys[0] == "role" else "conversations"
    rows = from_frame(pl.DataFrame({"id": range(len(given)), name: given}))
    assert dict(rows.view.schema) == VIEW
    assert rows.view["turns"].to_list() == [expected for _, expected in CONVERSATIONS]
    assert rows.view["rejected"].null_count() == len(given)


def test_human_and_gpt_take_turns() -> None:
    said = [("system", "s"), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")]
    frame = pl.DataFrame({"conversations": [[{"from": who, "value": words} for who, words in said]]})
    assert from_frame(frame).view["turns"].to_list() == [turns(("q1", "a1"), ("q2", "a2"))]


def test_turns_of_a_row_whatever_its_layout() -> None:
    alpaca = {"instruction": ["Add."], "input": ["1 2"], "output": ["3"]}
    for frame, expected in (
        (pl.DataFrame(alpaca), [("Add.\n1 2", "3")]),
        (pl.DataFrame({"prompt": ["q"], "completion": [None]}), [("q", "")]),
        (pl.DataFrame({"text": ["plain"]}), []),
        (pl.DataFrame({"messages": [[user("q"), model("a"), user("b")]]}), [("q", "a"), ("b", "")]),
        (pl.DataFrame({"messages": [[system("s")]]}), []),
    ):
        assert turns_of(from_frame(frame).view.to_dicts()[0]) == expected


roles = st.sampled_from(["user", "assistant", "system", "tool"])


@given(st.lists(st.tuples(roles, st.text(max_size=3))))
def test_turns_alternate_and_lose_nothing_that_user_and_model_said(said: list[tuple[str, str]]) -> None:
    found = turns_in([Message(side_of(role), words) for role, words in said])
    spoken = [(role, words) for role, words in said if role in ("user", "assistant")]
    while spoken and spoken[0][0] == "assistant":
        spoken.pop(0)
    switches = sum(
        role == "user" and (k == 0 or spoken[k - 1][0] == "assistant") for k, (role, _) in enumerate(spoken)
    )
    assert len(found) == switches
    told = "".join(turn[side] for turn in found for side in ("prompt", "response"))
    assert told.replace("\n", "") == "".join(words for _, words in spoken).replace("\n", "")


Q, C, R = [user("q")], [model("c")], [model("r")]
# Columns, and (prompt, response, turns, rejected).
PAIRS: dict[str, tuple[Row, tuple[Any, ...]]] = {
    "texts": ({"prompt": "q", "chosen": "c", "rejected": "r"}, ("q", "c", None, "r")),
    "lists with the prompt": ({"chosen": Q + C, "rejected": Q + R}, ("q", "c", None, "r")),
    "prompt as text as well": ({"prompt": "q", "chosen": Q + C, "rejected": Q + R}, ("q", "c", None, "r")),
    "lists without the prompt": ({"prompt": "q", "chosen": C, "rejected": R}, ("q", "c", None, "r")),
    "system without the prompt": (
        {"prompt": "q", "chosen": [system("s"), *C], "rejected": [system("s"), *R]},
        ("s\nq", "c", turns(("q", "c")), "r"),
    ),
    "prompt as a list": ({"prompt": Q, "chosen": C, "rejected": R}, ("q", "c", None, "r")),
    "prompt as a list, twice": ({"prompt": Q, "chosen": Q + C, "rejected": Q + R}, ("q", "c", None, "r")),
    "system in the prompt": (
        {"prompt": [system("s"), *Q], "chosen": C, "rejected": R},
        ("s\nq", "c", turns(("q", "c")), "r"),
    ),
    "turns": (
        {"chosen": Q + C + [user("q2"), model("c2")], "rejected": Q + C + [user("q2"), model("r2")]},
        ("q\nc\nq2", "c2", turns(("q", "c"), ("q2", "c2")), "r2"),
    ),
    "they part early": (
        {"chosen": [*Q, *C, user("x"), model("y")], "rejected": Q + R},
        ("q", "c\nx\ny", turns(("q", "c"), ("x", "y")), "r"),
    ),
    "the same answer": ({"chosen": Q + C, "rejected": Q + C}, ("q", "c", None, "c")),
    "one goes on": (
        {"chosen": Q + C, "rejected": [*Q, *C, user("x"), model("y")]},
        ("q", "c", None, "c\nx\ny"),
    ),
    "nothing rejected": ({"chosen": Q + C, "rejected": None}, ("q", "c", None, None)),
    "nothing chosen": ({"chosen": None, "rejected": Q + R}, ("q", None, None, "r")),
    "neither": ({"chosen": [], "rejected": None}, (None, None, None, None)),
    "null texts": ({"prompt": None, "chosen": "c", "rejected": None}, (None, "c", None, None)),
    "empty texts": ({"prompt": "", "chosen": "", "rejected": ""}, ("", "", None, "")),
    "texts alone": ({"chosen": "The cat", "rejected": "The dog"}, (None, "The cat", None, "The dog")),
    "transcripts": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: b\n\nAssistant: c\n\nd",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: b\n\nAssistant: r",
        },
        ("q\na\nb", "c\n\nd", turns(("q", "a"), ("b", "c\n\nd")), "r"),
    ),
}
MESSAGES = pl.List(pl.Struct({"role": pl.String(), "content": pl.String()}))


def pair_frame(row: Row) -> pl.DataFrame:
    lists = any(isinstance(row[name], list) for name in ("chosen", "rejected"))
    types: dict[str, Any] = dict.fromkeys(("chosen", "rejected"), MESSAGES if lists else pl.String())
    types["prompt"] = MESSAGES if isinstance(row.get("prompt"), list) else pl.String()
    return pl.DataFrame({name: pl.Series([value], dtype=types[name]) for name, value in row.items()})


@pytest.mark.parametrize("case", PAIRS)
def test_preference_pairs(case: str) -> None:
    row, expected = PAIRS[case]
    rows = from_frame(pair_frame(row))
    assert rows.layout == "preference"
    assert dict(rows.view.schema) == VIEW
    assert rows.view.select("prompt", "response", "turns", "rejected").row(0) == expected
    prompt, response = expected[:2]
    both = [part for part in (prompt, response) if part is not None]
    assert rows.view["text"][0] == ("\n".join(filter(None, both)) if both else None)


def test_pairs_that_are_none_are_named_or_skipped(tmp_path: Path) -> None:
    bad: list[tuple[Row, str]] = [
        ({"chosen": [user("a"), *C], "rejected": [user("b"), *R]}, "do not part at an answer"),
        ({"chosen": Q, "rejected": Q}, "do not part at an answer"),
        ({"chosen": [{"role": None, "content": "x"}], "rejected": Q + R}, "turn 1 has no role"),
    ]
    for row, problem in bad:
        with pytest.raises(DataError, match=problem) as caught:
            from_frame(pair_frame(row))
        assert "row 1" in str(caught.value)
        both = pl.concat([pair_frame(row), pair_frame({"chosen": Q + C, "rejected": Q + R})])
        kept = from_frame(both, on_bad_row="skip")
        assert kept.skipped == {"bad turns": 1}
        assert kept.view["rejected"].to_list() == ["r"]
    with pytest.raises(DataError, match="both answers must be text"):
        from_frame(pl.DataFrame({"chosen": [Q + C], "rejected": ["r"]}))
    with pytest.raises(DataError, match="text is expected"):
        from_frame(pl.DataFrame({"chosen": [1], "rejected": [2]}))
    with pytest.raises(DataError, match="preference or messages"):
        from_frame(pl.DataFrame({"chosen": ["c"], "rejected": ["r"], "messages": [Q + C]}))


def test_named_columns_and_ids_of_pairs() -> None:
    named = from_frame(
        pl.DataFrame({"frage": ["q"], "gut": ["c"], "schlecht": ["r"]}),
        columns={"prompt": "frage", "response": "gut", "rejected": "schlecht"},
    )
    plain = from_frame(pl.DataFrame({"prompt": ["q"], "chosen": ["c"], "rejected": ["r"]}))
    assert named.layout == "preference"
    assert named.view.equals(plain.view)
    other = from_frame(pl.DataFrame({"prompt": ["q"], "chosen": ["c"], "rejected": ["x"]}))
    assert other.view["id"][0] != plain.view["id"][0]
    with pytest.raises(DataError, match="has no column 'schlecht'"):
        from_frame(pl.DataFrame({"prompt": ["q"], "chosen": ["c"]}), columns={"rejected": "schlecht"})


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv", "saved"])
def test_pairs_and_turns_from_files_through_the_store(tmp_path: Path, form: str) -> None:
    import datasets

    texts = [{"prompt": "1", "chosen": "2", "rejected": "3"}, {"prompt": "q", "chosen": "c", "rejected": "r"}]
    lists = [{"chosen": [system("s"), *Q, *C], "rejected": [system("s"), *Q, *R]}] * 2
    for name, records in (("texts", texts), ("lists", lists)):
        frame = pl.DataFrame(records)
        path = tmp_path / f"{name}.{form}"
        if form == "csv":
            if name == "lists":
                continue
            frame.write_csv(path)
        elif form == "parquet":
            frame.write_parquet(path)
        elif form == "saved":
            datasets.Dataset.from_list(records).save_to_disk(str(path))
        else:
            path.write_text("\n".join(map(json.dumps, records)))
        spec = FileData(path=str(path), on_duplicate="skip")
        kept = load_rows(spec, Store(tmp_path / "store"))
        expected = from_frame(frame, on_duplicate="skip").view
        assert kept.view().drop("digest").equals(expected)
        assert kept.view()["digest"].to_list() == content_digest(expected).to_list()
        assert kept.original().height == expected.height


def test_digests_of_rows_without_turns_and_pairs_are_what_they_were() -> None:
    """Computed before the view had these columns: scores that were kept then are found."""
    golden = {
        "80c4fda74839983c6c939ebd3d53db82": {"text": "plain"},
        "57180a625d56a6dc07807586e4d08df9": {"text": ""},
        "78fe13d8230864ffbfa1aacb2c4bf076": {"text": None},
        "024316e81a5c8223ac89f7e0851d6b32": {"text": "Größe\n☃"},
        "73dcb5c29e81176f620213ebde5f9559": {"instruction": "Add.", "input": "1 2", "output": "3"},
        "87664735d8f2fb80db1e3faf0d2f1bd4": {"instruction": "Go.", "input": None, "output": None},
        "8eab9637cd0233d2c4a4251d0a0bb938": {"prompt": "q", "completion": "a"},
        "80ca8a845af6aefc59e6639b4c4140c7": {"prompt": "q", "completion": ""},
        "e58be73f9a02606e8bc860fe0915e529": {"prompt": "", "completion": None},
        "07c3a8526d7439d306470187b8c78009": {"messages": [user("alone")]},
        "1489e7f77607a8e6e28041d7c6b62dae": {"messages": [user("x"), model(None)]},
    }
    for digest, row in golden.items():
        types = {name: pl.String() for name, value in row.items() if value is None}
        view = from_frame(pl.DataFrame([row], schema_overrides=types)).view
        assert content_digest(view).to_list() == [digest], row
        assert content_digest(view.drop("turns", "rejected")).to_list() == [digest], row
    conversation = from_frame(pl.DataFrame({"messages": [[user("q"), model("a")]]})).view
    assert content_digest(conversation).to_list() == ["8eab9637cd0233d2c4a4251d0a0bb938"]


def test_digests_tell_turns_and_rejected_apart() -> None:
    rows: list[Row] = [
        {},
        {"turns": []},
        {"turns": turns(("", ""))},
        {"turns": turns(("a", "b"), ("c", "d"))},
        {"turns": turns(("a", "b"), ("c", "d"), ("", ""))},
        {"turns": turns(("ab", ""), ("c", "d"))},
        {"turns": turns(("a", "bc"), ("", "d"))},
        {"rejected": ""},
        {"rejected": "x"},
        {"turns": [], "rejected": "x"},
        {"text": "turns0:"},
        {"response": "rejected1:x"},
    ]
    view = pl.DataFrame([{name: row.get(name) for name in VIEW} for row in rows], schema=VIEW)
    digests = content_digest(view)
    assert digests.n_unique() == len(rows)
    assert content_digest(view[::-1]).to_list() == digests.to_list()[::-1]


class Counting(Scorer):
    """The bytes of the turns; `seen` counts the rows that were really scored."""

    reads = ("turns", "rejected")

    def columns(self) -> dict[str, pl.DataType]:
        return {"counting.n": pl.Int64()}

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        seen.append(rows.height)
        sizes = [sum(len(p or "") + len(r) for p, r in turns_of(row)) for row in rows.to_dicts()]
        return pl.DataFrame(
            {"id": rows["id"], "counting.n": sizes, "counting.status": None},
            schema={"id": pl.String, "counting.n": pl.Int64, "counting.status": pl.String},
        )

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Any) -> Any:
        copies.extend(pool["copies"].to_list())
        return {}


seen: list[int] = []
copies: list[int] = []


def test_equal_turns_are_scored_once_and_the_pool_is_a_multiset() -> None:
    lists = [turns(("a", "b")), None, [], turns(("a", "b")), None, turns(("a", "c")), [], turns(("a", "b"))]
    frame = pl.DataFrame({"id": [str(k) for k in range(8)], "turns": lists}, schema_overrides=VIEW)
    view = frame.select(
        pl.col(n) if n in frame.columns else pl.lit(None, t).alias(n) for n, t in VIEW.items()
    )
    seen.clear()
    table = score_group([Counting()], view, None, workers=1, chunk_rows=100)[0]
    assert sum(seen) == 4
    assert table["counting.n"].to_list() == [2, 0, 0, 2, 0, 2, 0, 2]
    orders = []
    for order in (view, view[::-1]):
        copies.clear()
        fit_pool(Counting(), order, None, None)  # type: ignore[arg-type]
        orders.append(list(copies))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == [1, 2, 2, 3]


def test_bytes_of_turns_and_rejected_bound_a_chunk() -> None:
    lists = [turns(("é" * 50, "x" * 100)), None, turns(("a", "b"), ("c", "d")), []]
    view = pl.DataFrame(
        {"id": list("abcd"), "turns": lists, "rejected": [None, "é" * 100, None, "z"]}, schema_overrides=VIEW
    )
    sizes = [chunk.height for chunk in chunks(view, 100, 200)]
    assert sizes == [1, 1, 2]
    assert [chunk.height for chunk in chunks(view, 100, 404)] == [3, 1]
    assert [chunk.height for chunk in chunks(view, 100, 405)] == [4]
    assert pl.concat(chunks(view, 2, 1)).equals(view)


def test_a_run_scores_new_contents_only(tmp_path: Path) -> None:
    """Through the store, where rows are known by their digests."""
    from karat.chunked import cut, pending, score_file, score_table
    from karat.scorers.length import Length

    store = Store(tmp_path)
    given = [[user("q"), model("a"), user("b"), model("c")], [user("q"), model("a\nb"), model("c")]]
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in given))
    view = load_rows(FileData(path=str(path)), store).view()
    assert view["text"].n_unique() == 1 == view["response"].n_unique()
    assert view["digest"].n_unique() == 2
    work = pending(Length(), view, None, store)
    for chunk in cut([work], None, store):
        score_file(chunk)
    assert score_table(view, [work], store)["length.bytes"].to_list() == [7, 7]
    assert pending(Length(), view, None, store).missing.height == 0


def test_lists_of_strings_have_no_turns() -> None:
    from karat.scoring import view_of

    view = view_of(["a", None])
    assert dict(view.schema) == VIEW
    assert view["turns"].null_count() == view["rejected"].null_count() == 2
    assert dict(view_of([]).schema) == VIEW


def test_init_finds_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{k}", "chosen": f"c{k}", "rejected": f"r{k}"} for k in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = load_config(init(path, tmp_path / "karat.yaml")).config
    assert config.data.layout == "preference"
    assert read(config.data).view["rejected"].to_list() == [f"r{k}" for k in range(12)]
    table = karat.score(Counting(), read(config.data))
    assert table.height == 12
