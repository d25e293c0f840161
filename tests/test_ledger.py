"""The ledger of a training: a plain loop says the same, in any order, over any ranks, interrupted or not."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from safetensors.torch import load_file, save_file

from karat.errors import DataError, WeightError
from karat.ledger_file import FILE, RUN_FILE, SCHEMA, by_id, by_row, ledger_path, read_ledger
from karat.trainers.records import ledger as ledger_module
from karat.trainers.records.ledger import WAITING, Ledger

NAN = math.nan
Visit = tuple[int, float, float | None, int]
"""Row, weight, loss (None: nothing was scored), step."""
N = 6
# Multiples of 1/64 add up exactly in any order.
VISIT = st.tuples(
    st.integers(0, N - 1),
    st.integers(0, 200).map(lambda k: k / 64),
    st.none() | st.integers(0, 900).map(lambda k: k / 64),
    st.integers(1, 5),
)
VISITS = st.lists(VISIT, max_size=30)


def add(ledger: Ledger, visits: list[Visit], numbers: Any = lambda row: row) -> None:
    """One batch for each run of visits of one step."""
    for step in dict.fromkeys(visit[3] for visit in visits):
        rows, weights, losses, _ = zip(*(visit for visit in visits if visit[3] == step), strict=True)
        ledger.add(
            torch.tensor([numbers(row) for row in rows]),
            torch.tensor(weights),
            torch.tensor([NAN if loss is None else loss for loss in losses]),
            step,
        )


def kept(visits: list[Visit]) -> Ledger:
    ledger = Ledger(N)
    add(ledger, visits)
    return ledger


def plain(visits: list[Visit]) -> pl.DataFrame:
    """The definitions, one row after the other."""
    lines = []
    for row in range(N):
        mine = [one for one in visits if one[0] == row and (one[1] > 0 or one[2] is not None)]
        scored = [(one[3], one[2]) for one in mine if one[2] is not None]

        def at(step: int, scored: Any = scored) -> float:
            found = [loss for when, loss in scored if when == step]
            return sum(found) / len(found)

        weight = sum(one[1] for one in mine) / len(mine) if mine else None
        last = at(max(scored)[0]) if scored else None
        first = at(min(scored)[0]) if scored else None
        lines.append((str(row), len(mine), weight, last, first, max((o[3] for o in mine), default=None)))
    return pl.DataFrame(lines, SCHEMA, orient="row")


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return one.schema == other.schema and one.equals(other)


HAND: list[Visit] = [
    (0, 1.0, 3.0, 1),
    (2, 0.5, 1.0, 1),
    (2, 1.5, 2.0, 1),
    (2, 1.0, None, 2),
    (4, 0.0, 0.5, 2),
]


def test_hand_numbers() -> None:
    """Row 2 came twice in step 1 and unscored in step 2; row 4 with weight 0, but scored; 1 and 3 never."""
    assert kept(HAND).table().rows() == [
        ("0", 1, 1.0, 3.0, 3.0, 1),
        ("1", 0, None, None, None, None),
        ("2", 3, 1.0, 1.5, 1.5, 2),
        ("3", 0, None, None, None, None),
        ("4", 1, 0.0, 0.5, 0.5, 2),
        ("5", 0, None, None, None, None),
    ]


def test_a_row_that_is_absent_is_not_visited() -> None:
    assert kept([(0, 0.0, None, 1)]).table()["visits"].sum() == 0


def test_an_infinite_loss_stays_where_it_was() -> None:
    assert kept([(0, 1.0, math.inf, 1), (0, 1.0, 2.0, 2)]).table().row(0)[3:5] == (2.0, math.inf)


@settings(deadline=None, max_examples=60)
@given(VISITS, st.randoms())
def test_a_plain_loop_says_the_same_in_any_order(visits: list[Visit], random: Any) -> None:
    wanted = plain(visits)
    assert same(kept(visits).table(), wanted)
    shuffled = random.sample(visits, len(visits))
    one_by_one = Ledger(N)
    for visit in shuffled:
        add(one_by_one, [visit])
        if random.random() < 0.3:
            one_by_one.fold()
    assert same(one_by_one.table(), wanted)


@settings(deadline=None, max_examples=30)
@given(VISITS, st.integers(0, 30))
def test_an_interrupted_training_has_the_ledger_of_an_uninterrupted_one(
    visits: list[Visit], cut: int
) -> None:
    resumed = Ledger(N)
    add(resumed, [(5, 9.0, 9.0, 9)])  # of the time before the checkpoint was loaded
    resumed.load(kept(visits[:cut]).state())
    add(resumed, visits[cut:])
    assert same(resumed.table(), plain(visits))


@pytest.mark.parametrize("piece", [1, 4, 100])
@settings(deadline=None, max_examples=15)
@given(parts=st.lists(VISITS, min_size=1, max_size=3))
def test_ranks_together_have_the_ledger_of_one(piece: int, parts: list[list[Visit]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "AT_ONCE", piece)
        found = on_ranks(len(parts), lambda rank: kept(parts[rank]).merged().table(), patch)
    for table in found:
        assert same(table, plain([visit for part in parts for visit in part]))


@settings(deadline=None, max_examples=15)
@given(st.lists(VISITS, min_size=2, max_size=2), st.lists(VISITS, min_size=3, max_size=3))
def test_ranks_resume_from_a_checkpoint_of_other_ranks(
    before: list[list[Visit]], after: list[list[Visit]]
) -> None:
    def resumed(rank: int) -> pl.DataFrame:
        ledger = Ledger(N)
        ledger.load(state)
        add(ledger, after[rank])
        return ledger.merged().table()

    with pytest.MonkeyPatch.context() as patch:
        state, other = on_ranks(2, lambda rank: kept(before[rank]).merged().state(), patch)
        assert all(torch.equal(state[name], other[name]) for name in state)
        found = on_ranks(3, resumed, patch)
    wanted = plain([visit for part in (*before, *after) for visit in part])
    assert all(same(table, wanted) for table in found)


def test_merging_leaves_each_rank_as_it_was() -> None:
    ledger = kept(HAND)
    ledger.merged()
    add(ledger, [(1, 1.0, 1.0, 3)])
    assert same(ledger.table(), plain([*HAND, (1, 1.0, 1.0, 3)]))


def test_more_batches_than_wait_are_the_same() -> None:
    ledger, visits = Ledger(N), [(i % 5, i % 4 / 4, i / 64, 1 + i) for i in range(2 * WAITING + 3)]
    for visit in visits:
        add(ledger, [visit])
        assert len(ledger._waiting) < WAITING
    assert same(ledger.table(), plain(visits))


# --- streams

IDS = ["🙂 family 👩‍👩‍👧", "שלום", "a\x00b", "", "x" * 300, "plain"]
NUMBERS = [2**63 - 1, 0, 17, 2**40, 5, 2**62 + 1]


def streamed(visits: list[Visit]) -> Ledger:
    ledger = Ledger(None)
    for row in dict.fromkeys(visit[0] for visit in visits):
        ledger.names(torch.tensor([NUMBERS[row]]), [IDS[row]])
    add(ledger, visits, lambda row: NUMBERS[row])
    return ledger


def of_stream(visits: list[Visit]) -> pl.DataFrame:
    """A stream knows what has come, absent rows included."""
    came = {visit[0] for visit in visits}
    lines = plain(visits).with_columns(pl.Series("id", IDS))
    return lines[sorted(came)].sort("id")


@settings(deadline=None, max_examples=30)
@given(VISITS, st.integers(0, 30))
def test_a_stream_is_known_by_its_ids(visits: list[Visit], cut: int) -> None:
    assert same(streamed(visits).table().sort("id"), of_stream(visits))
    resumed = Ledger(None)
    resumed.load(streamed(visits[:cut]).state())
    for row in dict.fromkeys(visit[0] for visit in visits[cut:]):
        resumed.names(torch.tensor([NUMBERS[row]]), [IDS[row]])
    add(resumed, visits[cut:], lambda row: NUMBERS[row])
    seen = pl.col("visits") > 0  # a checkpoint does not keep rows that were only ever absent
    assert same(resumed.table().filter(seen).sort("id"), of_stream(visits).filter(seen))


@settings(deadline=None, max_examples=15)
@given(st.lists(VISITS, min_size=1, max_size=3))
def test_ranks_of_a_stream_together_have_the_ledger_of_one(parts: list[list[Visit]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = on_ranks(len(parts), lambda rank: streamed(parts[rank]).merged().table(), patch)
    for table in found:
        assert same(table, found[0])
        assert same(table.sort("id"), of_stream([visit for part in parts for visit in part]))


def test_a_stream_grows() -> None:
    ledger = Ledger(None)
    for i in range(300):
        ledger.names(torch.tensor([i * i]), [f"row {i}"])
        ledger.add(torch.tensor([i * i]), torch.ones(1), torch.tensor([float(i)]), 1)
        if i % 7 == 0:
            ledger.fold()
    assert ledger.table().sort("last_loss")["id"].to_list() == [f"row {i}" for i in range(300)]


def test_two_ids_with_one_number_are_refused() -> None:
    ledger = Ledger(None)
    ledger.names(torch.tensor([3]), ["a"])
    ledger.names(torch.tensor([3]), ["a"])
    assert ledger.table().is_empty()
    ledger.names(torch.tensor([3]), ["b"])
    with pytest.raises(WeightError, match="'a' and 'b' have the same number 3"):
        ledger.table()


def test_a_row_without_a_name_goes_by_its_number() -> None:
    ledger = Ledger(None)
    ledger.add(torch.tensor([12]), torch.ones(1), torch.ones(1), 1)
    assert ledger.table()["id"].to_list() == ["12"]


@pytest.mark.parametrize("make", [kept, streamed, lambda _: Ledger(None), lambda _: Ledger(0)])
def test_a_state_survives_safetensors(make: Any, tmp_path: Path) -> None:
    ledger = make(HAND)
    save_file(ledger.state(), tmp_path / "state.safetensors")
    back = Ledger(ledger.n_rows)
    back.load(load_file(tmp_path / "state.safetensors"))
    assert same(back.table(), ledger.table())


# --- what is refused


def test_what_is_no_visit_is_refused() -> None:
    ones = torch.ones(2)
    with pytest.raises(WeightError, match="2 rows, 1 weights and 2 losses"):
        Ledger(3).add(torch.tensor([0, 1]), ones[:1], ones, 1)
    for wrong in (-1, 3):
        ledger = Ledger(3)
        ledger.add(torch.tensor([0, wrong]), ones, ones, 1)
        with pytest.raises(WeightError, match=f"row {wrong} is not one of the 3 rows"):
            ledger.fold()
    with pytest.raises(WeightError, match="2 rows and 1 ids"):
        Ledger(None).names(torch.tensor([0, 1]), ["a"])
    with pytest.raises(WeightError, match="only the entries of a stream"):
        Ledger(3).names(torch.tensor([0]), ["a"])
    with pytest.raises(WeightError, match="2 ids for 3 rows"):
        Ledger(3).table(["a", "b"])


def test_a_state_of_another_training_set_is_refused() -> None:
    state = kept(HAND).state()
    for other in (Ledger(N + 1), Ledger(None)):
        with pytest.raises(WeightError, match="another training set"):
            other.load(state)
    with pytest.raises(WeightError, match="another training set"):
        Ledger(N).load({name: part for name, part in state.items() if name != "loss"})


# --- the file


def test_a_file_has_a_line_for_each_id_and_the_settings(tmp_path: Path) -> None:
    ids = ["a", "b", "a", "🙂", "b", ""]
    visits: list[Visit] = [*HAND, (2, 4.0, 5.0, 3)]
    path = kept(visits).write(tmp_path / "out" / FILE, ids, {"reweighter": {"kind": "lin_upper"}})
    assert [one.name for one in path.parent.iterdir()] == [FILE]
    assert read_ledger(path).rows() == [
        ("a", 5, 1.6, 4.0, 2.25, 3, 2),  # (1 + 3 + 4) / 5; (3 + 5) / 2; (3 + 1.5) / 2
        ("b", 1, 0.0, 0.5, 0.5, 2, 2),  # of two entries one came
        ("🙂", 0, None, None, None, None, 1),
        ("", 0, None, None, None, None, 1),
    ]
    said = pl.read_parquet_metadata(path)["karat"]
    assert '"reweighter": {"kind": "lin_upper"}' in said
    before = path.read_bytes()
    kept(visits).write(path, ids, {"reweighter": {"kind": "lin_upper"}})
    assert path.read_bytes() == before


def test_blocks_are_added_up_by_row() -> None:
    blocks = kept(HAND).table()
    of_row = pl.Series(["long", "long", "long", "short", "short", "other"])
    rows = pl.Series("id", ["short", "textless", "long", "other"])
    assert by_row(blocks, of_row, rows).rows() == [
        ("short", 1, 0.0, 0.5, 0.5, 2, 2),
        ("textless", 0, None, None, None, None, 0),
        ("long", 4, 1.0, 2.25, 2.25, 2, 3),
        ("other", 0, None, None, None, None, 1),
    ]
    assert by_id(by_id(blocks)).equals(by_id(blocks))


def test_a_file_is_found_by_its_folder(tmp_path: Path) -> None:
    assert ledger_path(tmp_path) == tmp_path
    (tmp_path / FILE).touch()
    assert ledger_path(tmp_path) == tmp_path / FILE
    assert ledger_path(tmp_path / FILE) == tmp_path / FILE
    (tmp_path / RUN_FILE).touch()
    assert ledger_path(tmp_path) == tmp_path / RUN_FILE


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(DataError, match="there is no ledger here"):
        read_ledger(path)
    path.write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match="cannot be read"):
        read_ledger(path)
    table = kept(HAND).table()
    for frame, said in (
        (table.drop("first_loss", "visits"), "no column 'visits', 'first_loss'"),
        (table.with_columns(pl.lit("x").alias("visits")), "is no ledger"),
        (table.with_columns(pl.lit(None, pl.String).alias("id")), "a line has no id"),
    ):
        frame.write_parquet(path)
        with pytest.raises(DataError, match=said):
            read_ledger(path)


# --- real processes

GLOO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.distributed.init_process_group("gloo")
from test_ledger import HAND, kept, plain, same, streamed, of_stream
from test_record import HAND as SAMPLES, figures
rank = torch.distributed.get_rank()
mine = HAND[:3] if rank == 0 else HAND[3:]
assert same(kept(mine).merged().table(), plain(HAND))
assert same(streamed(mine).merged().table().sort("id"), of_stream(HAND))
import json
print(json.dumps(figures([SAMPLES[rank:rank + 1]], names=("a", "b"))))
"""


@pytest.mark.slow
def test_two_processes_over_gloo(tmp_path: Path) -> None:
    import json

    from test_record import HAND as SAMPLES
    from test_record import figures

    script = tmp_path / "rank.py"
    script.write_text(GLOO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29741"]
    done = subprocess.run(
        [*launch, str(script), str(Path(__file__).parent)],
        check=True, timeout=500, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines == [pytest.approx(figures([SAMPLES], names=("a", "b")))] * 2
