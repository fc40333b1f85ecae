"""Numbers for people: one rule each, everywhere."""

import pytest

from tenth.core import metrics
from tenth.core.format import bits_text, duration, figure, megabytes, number, rough, written, written_estimate
from tenth.core.records import Estimate, Interval, MemoryParts, Reading


def test_amounts_and_times_are_for_people() -> None:
    sizes = (38_468_864, 123_456_789, 1_204_400_000, 30_000_000, 0)
    assert [megabytes(size) for size in sizes] == ["38.47", "123.5", "1,204", "30", "0"]
    assert [duration(span) for span in (8.2, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 5 min"]
    assert [bits_text(width) for width in (4.5, 6.5625, 8.0, None)] == ["4.5", "6.56", "8", "?"]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (0.012134, ("0.01213", "0.012", "0.012")),
        (3.0, ("3", "3.0", "3")),
        (99.7, ("99.7", "100", "100")),
        (216.8, ("216.8", "217", "217")),
        (12_345.6, ("12,346", "12,346", "12,346")),
        (float("inf"), ("inf", "inf", "inf")),
    ],
)
def test_figures_estimates_and_spreads(value: float, texts: tuple[str, str, str]) -> None:
    assert (figure(value), number(value), rough(value)) == texts


@pytest.mark.parametrize(
    ("unit", "value", "spread", "texts"),
    [
        ("B", 38_468_864, 1_230_000, ("38.47", "MB", "± 1.23")),
        ("share", 0.93124, 0.0021, ("93.12", "%", "± 0.21")),
        ("%", 93.124, 0.21, ("93.12", "%", "± 0.21")),
        ("nats/token", 0.012134, None, ("0.01213", "nats/token", "")),
    ],
)
def test_a_reading_is_written_by_its_unit(
    unit: str, value: float, spread: float | None, texts: tuple[str, str, str]
) -> None:
    assert written(Reading(name="x", value=value, unit=unit, spread=spread)) == texts


def test_an_estimate_has_its_range_where_it_has_one() -> None:
    share = metrics.estimate("answer", Interval(value=0.0123, low=0.01, high=0.02), "", known=False)
    assert written_estimate(share) == ("1.2", "1.0 to 2.0", "%")
    exact = Estimate(name="co2_cloud", value=0.024, low=0.024, high=0.024, unit="g", kind="estimated")
    assert written_estimate(exact).brief == "0.024"


def test_every_metric_has_one_row() -> None:
    assert len(metrics.METRICS) == len(metrics._ROWS)
    assert list(metrics.MEMORY) == list(MemoryParts.model_fields)
    assert metrics.metric("odd_thing").title == "odd thing"
    assert metrics.repeated("decode", [3.0, 1.0, 2.0], "c") == Reading(
        name="decode", value=2.0, unit="tokens/s", spread=1.0, count=3, conditions="c"
    )
