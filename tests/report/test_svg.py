"""The svg kit and the templates: what anyone writes stays words, labels find a place."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from tenth.report import svg
from tenth.report.html import HERE, Templates
from tenth.report.svg import Axis, Drawing, Label, Plot

HOSTILE = "<script>alert('x')</script>\"&"


def test_an_element_escapes_its_text_and_its_values() -> None:
    drawn = svg.element(
        "text", HOSTILE, svg.element("tspan", "a"), class_=HOSTILE, font_size=11.04, x=None, y=""
    )
    assert "<script" not in drawn
    assert drawn.endswith("<tspan>a</tspan></text>")
    assert 'font-size="11"' in drawn
    assert " x=" not in drawn
    assert Markup(drawn).striptags() == f"{HOSTILE}a"


def test_a_path_is_short() -> None:
    assert svg.way("M", 1.0, 2.04, "H", -3.06, "z") == "M1 2H-3.1z"
    assert svg.through([(0.0, 1.0), (2.5, 3.0)]) == "M0 1L2.5 3"


@given(st.floats(1e-3, 1e6), st.floats(1.01, 1e4))
@example(867925.0, 1.25)  # 1.15e+06: the exponent is no digit to read
def test_scales_have_a_few_round_ticks_between_their_ends(low: float, span: float) -> None:
    values = [low, low * span]
    for scale in (
        svg.linear(values),
        svg.logarithmic(values),
        svg.logarithmic(values, 1.25, dense=True),
        svg.from_zero(values[1]),
        svg.around(values, 400),
    ):
        assert all(scale.low <= tick * (1 + 1e-9) <= scale.high * (1 + 2e-9) for tick in scale.ticks)
        assert len(scale.ticks) <= 16
        assert all(0 <= scale.share(value) <= 1 for value in (*values, -1.0, 1e9))
        assert scale.share(scale.low) == 0
        assert scale.share(scale.high) == pytest.approx(1)
        assert all(
            len(f"{tick:g}".split("e")[0].replace("0", "").replace(".", "")) <= 5 for tick in scale.ticks
        )


def plot() -> Plot:
    scale = svg.from_zero(100.0)
    return Plot((400.0, 200.0), "a plot", Axis(scale, "right"), Axis(scale, "up"))


def test_what_must_be_named_is_and_the_rest_only_where_there_is_room() -> None:
    drawing = plot()
    drawing.keep_clear(50, 50)
    names = [f"name {i}" for i in range(30)]
    for name in names:
        drawing.label(50, 50, Label(name, gaps=(13.0, 24.0)))
    drawing.label(50, 50, Label("surely", must=True))
    shown = set(re.findall(r">(name \d+|surely)<", drawing.markup()))
    assert "surely" in shown
    assert 4 <= len(shown) - 1 < len(names)
    assert drawing.markup().count('class="leader"') > 0, "those from afar have a line"


def test_no_label_stands_over_a_limit() -> None:
    drawing = plot()
    drawing.limit(60, "budget")
    drawing.label(58, 50, Label("name"))
    place = re.search(r'<text x="([\d.]+)"[^>]*>name<', drawing.markup())
    assert place
    left = float(place[1])
    assert left > drawing.x_of(60) or left + svg.width_of("name", 12) < drawing.x_of(60)


def test_what_is_drawn_within_a_link_is_in_it() -> None:
    drawing = Drawing(10, 10, "a drawing")
    with drawing.within("a", href=HOSTILE):
        drawing.mark("circle", 1.0, 1.0, 1.0, "mark")
    drawing.mark("square", 1.0, 1.0, 1.0, "mark")
    assert re.search(r'<a href="&lt;script[^>]*"><circle [^>]*></circle></a><path', drawing.markup())


def write_template(folder: Path, body: str) -> Templates:
    (folder / "templates").mkdir()
    page = '{% extends "frame.html" %}{% block main %}' + body + "{% endblock %}"
    (folder / "templates/page.html").write_text(page)
    return Templates(folder, generator="a test")


def test_a_template_escapes_by_itself_and_a_misspelt_name_is_an_error(tmp_path: Path) -> None:
    templates = write_template(tmp_path, "<p>{{ words }} {{ words | apart }}</p>")
    page = templates.render("page.html", tenth="0", words=HOSTILE)
    assert "<script" not in page
    assert "<bdi>&lt;script" in page
    with pytest.raises(UndefinedError):
        templates.render("page.html", tenth="0", word=HOSTILE)


def test_a_page_allows_its_own_style_and_script_alone(tmp_path: Path) -> None:
    (tmp_path / "more.css").write_text("p { color: red }")
    (tmp_path / "some.js").write_text("1 < 2")
    templates = write_template(tmp_path, "")
    plain, live = (templates.render("page.html", tenth="0", script=script) for script in (False, True))
    style = (HERE / "report.css").read_text() + "p { color: red }"
    assert f"<style>{style}</style>" in plain
    assert "script" not in plain
    assert "<script>1 < 2</script>" in live
    assert re.search(r"default-src 'none'.*; style-src 'sha256-[\w=-]+'\"", plain)
    assert re.search(r"script-src 'sha256-[\w=-]+'\"", live)
