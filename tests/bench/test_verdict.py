"""The verdict of `pinfs bench`: the first directory against the best of the others that are not its backing."""

import pytest
from bench.fakes import measured, place

from pinfs.bench.places import Place
from pinfs.bench.report import VERDICT, as_json, as_table, remarks
from pinfs.bench.run import Measured, Outcome, Plan
from pinfs.bench.verdict import Verdict, closing, verdict

PLACES = [place("first", "mount"), place("below", "backing"), place("slow"), place("fast")]


def outcome(*rows: Measured, places: list[Place] = PLACES) -> Outcome:
    return Outcome(Plan([one.path for one in places], rounds=1), places, list(rows), [])


def against(ratio: float, name: str = "row") -> Measured:
    """A row in which the first directory takes `ratio` of the time of the fastest other one."""
    return measured({"first": [ratio], "below": [0.01], "slow": [50.0], "fast": [1.0]}, name)


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (0.1, "ahead"),
        (0.949, "ahead"),
        (0.95, "even"),
        (1.0, "even"),
        (1.05, "even"),
        (1.051, "behind"),
        (7.0, "behind"),
    ],
)
def test_ahead_even_within_five_percent_or_behind(ratio: float, word: str) -> None:
    found = verdict(against(ratio), PLACES)
    assert found == Verdict(PLACES[3], ratio)
    assert found.word == word


def test_the_fastest_is_the_one_with_the_highest_ratio_of_the_rounds() -> None:
    """`slow` has the better median, but in each round the first directory stands worse beside `fast`."""
    one = measured({"first": [2.0, 20.0, 40.0], "slow": [1.0, 10.0, 20.0], "fast": [0.5, 12.0, 8.0]})
    assert verdict(one, PLACES) == Verdict(PLACES[3], 4.0)


def test_a_directory_without_a_result_is_no_rival() -> None:
    assert verdict(measured({"first": [3.0], "slow": [2.0]}), PLACES) == Verdict(PLACES[2], 1.5)
    assert verdict(measured({"first": [3.0], "below": [2.0]}), PLACES) is None
    assert verdict(measured({"slow": [3.0], "fast": [2.0]}), PLACES) is None
    assert verdict(measured({}), PLACES) is None


def test_json_has_the_path_the_ratio_and_the_word() -> None:
    found = as_json(outcome(against(1.23456), measured({})))
    rows = found["rows"]
    assert isinstance(rows, list)
    assert [row["verdict"] for row in rows] == [{"to": "fast", "ratio": 1.235, "word": "behind"}, None]


def test_the_table_has_a_column_for_it_at_the_end() -> None:
    headings, rows = as_table(outcome(against(1.6), measured({})))
    assert headings[-1] == VERDICT
    assert [row[-1] for row in rows] == ["behind 1.60 fast", "-"]
    assert {len(row) for row in rows} == {len(headings)}


def test_the_last_line_counts_them_and_names_the_worst() -> None:
    rows = [against(0.5), against(0.9), against(1.0), against(1.2, "rename"), against(1.6, "mkdir"), measured({})]
    assert remarks(outcome(*rows))[-1] == (
        "first against the fastest of the others: ahead in 2 rows, even in 1, behind in 2; farthest behind: mkdir 1.60"
    )


def test_the_worst_is_not_named_where_none_is_behind() -> None:
    assert list(closing(outcome(against(0.5), against(1.05)))) == [
        "first against the fastest of the others: ahead in 1 row, even in 1, behind in 0"
    ]


def test_there_is_no_verdict_beside_the_backing_alone() -> None:
    alone = outcome(against(2.0), places=PLACES[:2])
    headings, rows = as_table(alone)
    assert headings == ["us", "first", "below", "first/below"]
    assert rows == [["row", "2.00", "0.01", "200"]]
    assert list(closing(alone)) == []
    found = as_json(alone)["rows"]
    assert isinstance(found, list)
    assert found[0]["verdict"] is None
