"""The report says what the records say, in words that are honest, and needs nothing from outside."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gguf
import pytest

from tenth.core.errors import InputError
from tenth.core.format import bits_text, figure, megabytes, written
from tenth.core.records import (
    Bench,
    Budget,
    Candidate,
    Depth,
    Machine,
    Measurement,
    MemoryParts,
    Offline,
    Plan,
    Proof,
    Reading,
    Runtime,
    Scorecard,
    Shape,
    Structure,
)
from tenth.report import charts, verdict
from tenth.report import page as report
from tenth.report.charts import Curve, FilePoint

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "br", "hr", "img", "input", "link"}


def parts(weights: int = 26_912_345) -> MemoryParts:
    return MemoryParts(
        weights=weights, repacked=0, kv=3_912_000, compute=4_334_000, output=262_144, base=3_178_000
    )


def readings(kl: float, spread: float | None = 0.0003) -> list[Reading]:
    return [
        Reading(
            name="kl",
            value=kl,
            unit="nats/token",
            spread=spread,
            count=47,
            conditions="47 windows of 513 tokens",
        ),
        Reading(name="top1", value=0.9312, unit="share", spread=0.0021, count=47),
        Reading(name="perplexity", value=26.43, unit="", spread=0.417, count=47),
        Reading(name="decode", value=121.7, unit="tokens/s", spread=4.19, count=5, conditions="median of 5"),
        Reading(name="odd_thing", value=17.77, unit="J", kind="estimated", version=3),
    ]


def make_plan(**changes: Any) -> Plan:
    types = {
        "token_embd.weight": "Q6_K",
        "blk.0.attn_q.weight": "IQ4_XS",
        "blk.0.ffn_down.weight": "Q3_K",
        "blk.1.attn_q.weight": "Q4_K",
        "blk.1.ffn_down.weight": "Q2_K",
    }
    return Plan(
        **{
            "model": "ref",
            "model_hash": "0" * 64,
            "architecture": "llama",
            "parameters": 46_292_480,
            "budget": Budget(memory=40_123_000, context=1027, device="pixel-8", share=0.1),
            "runtime": Runtime(n_ctx=1027, n_ubatch=96, type_k="q8_0", type_v="q5_1"),
            "types": types,
            "memory": parts(),
            "file_bytes": 27_634_000,
            "bits_per_weight": 4.637,
            "predicted_kl": 0.01317,
            "sensitivity_source": "measured",
            **changes,
        }
    )


def make_card(*kls: float, fits: tuple[bool, ...] = (True, True, True), **changes: Any) -> Scorecard:
    names = ["tenth", "Q4_K_S", "Q4_0"]
    candidates = [
        Candidate(
            name=names[i],
            file_bytes=27_634_000 + i * 1_211_000,
            fits=fits[i],
            readings=readings(kl),
            memory=parts(26_912_345 + i * 777_000),
        )
        for i, kl in enumerate(kls)
    ]
    proof = Proof(
        budget=40_123_000,
        limit="cgroup v1",
        network="namespace without interfaces",
        interpreter=31_456_000,
        peak=38_987_000,
        peak_file_backed=26_917_000,
        peak_anonymous=12_070_000,
        predicted=38_598_489,
        parts={},
    )
    return Scorecard(
        **{
            "tenth": "0.1.0",
            "runtime": "llama.cpp",
            "machine": "a machine",
            "model": "ref",
            "sha256": "ab" * 32,
            "proof": proof,
            "original": [Reading(name="perplexity", value=26.11, unit="", spread=0.41, count=47)],
            "candidates": candidates,
            "notes": ["a note"],
            **changes,
        }
    )


class Reader(HTMLParser):
    """Visible text, tags and attributes; checks that tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.labels: list[str] = []  # text inside pictures' tooltips
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        if "style" in inside or any("tick" in classes.split() for _, classes in self.open):
            return
        self.text.append(data)

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?(?![\w])")


def allowed(plan: Plan, card: Scorecard) -> set[str]:
    """Every number that the records can put on the page, as it is written there."""
    texts = {
        f"{plan.parameters:,}",
        f"{plan.bits_per_weight:.2f}",
        figure(plan.predicted_kl),
        f"{plan.runtime.n_ctx:,}",
        str(plan.runtime.n_ubatch),
        "10",
        "8",
    }
    texts.add(f"{card.proof.error:+.2%}".rstrip("%"))
    sizes = [plan.memory.total, plan.file_bytes, *plan.memory.model_dump().values()]
    proof = card.proof
    sizes += [
        proof.budget,
        proof.peak,
        proof.predicted,
        proof.interpreter,
        proof.peak_file_backed,
        proof.peak_anonymous,
    ]
    every = list(card.original)
    for candidate in card.candidates:
        sizes += [candidate.file_bytes, candidate.memory.total, *candidate.memory.model_dump().values()]
        every += candidate.readings
    texts |= {megabytes(size) for size in sizes}
    for reading in every:
        scale = 100 if reading.name == "top1" else 1
        texts |= {
            written(reading).value,
            figure(reading.value),
            f"{reading.value:.3g}",
            f"{reading.value:.4g}",
        }
        texts |= {str(reading.count), str(reading.version)}
        texts |= set(NUMBER.findall(reading.conditions))
        if reading.spread is not None:
            texts.add(f"{scale * reading.spread:.2g}")
    for kind in plan.types.values():
        texts.add(bits_text(charts.bits_of(kind)))
        texts.add(str(list(plan.types.values()).count(kind)))
    texts |= {str(charts.split_name(name)[0]) for name in plan.types}
    kls = [candidate.value("kl") or 0.0 for candidate in card.candidates]
    texts |= {f"{abs(kls[0] / kl - 1):.0%}".rstrip("%") for kl in kls[1:] if kl}
    return texts


def test_every_number_on_the_page_comes_from_the_records() -> None:
    plan, card = make_plan(), make_card(0.01213, 0.02117, 0.03541)
    said = Reader(report.render(plan, card)).said
    said = said.replace("0.1.0", "").replace(card.sha256, "")
    for fixed in ("99th percentile", "SHA-256", "v1"):
        said = said.replace(fixed, "")
    found = {number.rstrip(",") for number in NUMBER.findall(said)}
    assert len(found) > 30
    assert found <= allowed(plan, card), found - allowed(plan, card)


def test_every_reading_is_on_the_page_with_its_company() -> None:
    card = make_card(0.01213, 0.02117, 0.03541)
    said = Reader(report.render(make_plan(), card)).said
    for expected in (
        "0.01213 nats/token",
        "± 0.0003",
        "93.12",
        "± 0.21",
        "121.7 tokens/s",
        "odd thing",
        "17.77 J",
        "estimated",
        "measured",
        "metric version 3",
        "47 windows of 513 tokens",
        "38.60",
        "38.99",
        "namespace without interfaces",
        "cgroup v1",
        "31.46 MB",
        "a note",
        "pixel-8",
    ):
        assert expected in said, expected


def test_the_page_stands_alone() -> None:
    page = report.render(make_plan(), make_card(0.01213, 0.02117, 0.03541))
    reader = Reader(page)
    assert reader.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"})
    assert not [
        name
        for name, _ in reader.attributes
        if name in ("src", "href", "xlink:href") or name.startswith("on")
    ]
    for word in ("http:", "https:", "@import", "url(", "@font-face", "//"):
        assert word not in page, word
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_hostile_names_are_escaped() -> None:
    card = make_card(0.012, 0.021, 0.035)
    candidates = [c.model_copy(update={"name": HOSTILE + c.name}) for c in card.candidates]
    candidates[0].readings.append(Reading(name=HOSTILE, value=1.0, unit=HOSTILE, conditions=HOSTILE))
    proof = card.proof.model_copy(update={"limit": HOSTILE, "network": HOSTILE})
    fields = dict.fromkeys(("tenth", "runtime", "machine", "model", "sha256"), HOSTILE)
    card = card.model_copy(update={"candidates": candidates, "notes": [HOSTILE], "proof": proof, **fields})
    plan = make_plan(
        model=HOSTILE,
        budget=Budget(memory=1, context=1, device=HOSTILE),
        types={HOSTILE: HOSTILE, f"blk.0.{HOSTILE}": "Q4_K"},
        runtime=Runtime(n_ctx=1, n_ubatch=1, type_k=HOSTILE),
    )
    page = report.render(plan, card, [FilePoint(HOSTILE, 30_000_000, 0.02)])
    assert "<script" not in page
    reader = Reader(page)
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert HOSTILE in reader.said


def test_a_better_file_is_said_to_be_better() -> None:
    card = make_card(0.0121, 0.0211, 0.0354)
    found = verdict.quality_verdict(card)
    assert found.tone == "good"
    assert (
        "0.0121 nats per token, against 0.0211 for Q4_K_S, the best stock recipe that fits: 43% less"
        in found.text
    )
    assert "fits ref into 40.12 MB: it was seen to peak at 38.99 MB" in verdict.verdict(make_plan(), card)


def test_a_worse_file_is_said_to_be_worse() -> None:
    found = verdict.quality_verdict(make_card(0.0251, 0.0354, 0.0211))
    assert found.tone == "bad"
    assert "19% MORE, so Q4_0 is the better choice" in found.text


def test_a_difference_within_the_noise_is_none() -> None:
    found = verdict.quality_verdict(make_card(0.0211, 0.0214))
    assert found.tone == "even"
    assert "no clear difference" in found.text


def test_baselines_that_do_not_fit_are_not_compared_with() -> None:
    found = verdict.quality_verdict(make_card(0.0251, 0.0211, 0.0354, fits=(True, False, False)))
    assert "none of the stock recipes tried fits this budget (Q4_K_S, Q4_0)" in found.text
    found = verdict.quality_verdict(make_card(0.0251, 0.0211, 0.0354, fits=(True, False, True)))
    assert "for Q4_0" in found.text


def test_what_else_tenth_made_is_no_stock_recipe() -> None:
    card = make_card(0.0211, 0.0451, 0.0121)
    named = zip(card.candidates, ("tenth", "bits alone", "Q4_0"), (1.25, 1.5, 1.2), strict=True)
    candidates = [
        c.model_copy(
            update={"name": name, "readings": [*c.readings, Reading(name="bits_per_byte", value=x, unit="")]}
        )
        for c, name, x in named
    ]
    kept = " It was kept for its 1.25 bits per byte of held-out text, against 1.5 of bits alone."
    found = verdict.quality_verdict(card.model_copy(update={"candidates": candidates}))
    assert found.text.endswith(f"so Q4_0 is the better choice here.{kept}")
    alone = verdict.quality_verdict(card.model_copy(update={"candidates": candidates[:2]}))
    assert alone.text.endswith(f"nothing is compared with one.{kept}")
    assert alone.tone == "even"


def test_without_baselines_nothing_is_claimed() -> None:
    card = make_card(0.0251)
    assert "nothing is compared" in verdict.quality_verdict(card).text
    assert "nothing is compared" in Reader(report.render(make_plan(), card)).said
    bare = card.model_copy(update={"candidates": [card.candidates[0].model_copy(update={"readings": []})]})
    assert "was not measured" in Reader(report.render(make_plan(), bare)).said


def test_an_artifact_over_its_budget_is_said_not_to_fit() -> None:
    card = make_card(0.0121, 0.0211)
    card = card.model_copy(update={"proof": card.proof.model_copy(update={"peak": 41_000_000})})
    page = report.render(make_plan(), card)
    assert "does NOT fit into 40.12 MB" in Reader(page).said.replace("\xa0", " ")
    assert 'class="lead bad"' in page


@pytest.mark.parametrize("kl", [0.0, -1e-9, float("nan"), float("inf")])
def test_a_kl_that_a_log_axis_cannot_show_is_said_so(kl: float) -> None:
    said = Reader(report.render(make_plan(), make_card(kl, 0.0211))).said
    assert "tenth is not in the picture" in said


@pytest.mark.parametrize("layers", [0, 1, 32, 126])
def test_any_depth_is_drawn_with_one_cell_a_matrix(layers: int) -> None:
    types = {f"blk.{i}.{role}.weight": "Q4_K" for i in range(layers) for role in ("attn_q", "ffn_up")}
    types["token_embd.weight"] = "Q6_K"
    for down in (False, True):
        drawn = charts.bits(types, 350 if down else 880, layers_down=down)
        assert drawn.count("<rect") == len(types)
        across = [
            float(x) + float(w)
            for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
        ]
        assert max(across) <= (350 if down else 880)


@pytest.mark.parametrize("kind", ["Q4_K", "IQ1_S", "TQ2_0", "F16", "BF16", "MXFP4"])
def test_bits_are_ggmls(kind: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert charts.bits_of(kind) == 8 * size / block


def test_no_bits_for_a_type_that_ggml_lacks() -> None:
    assert charts.bits_of("Q99") is None
    assert bits_text(None) == "?"


def test_what_was_removed_is_drawn_block_by_block() -> None:
    shape = Shape(ffn=(96, 0, 32), kv_heads=(2, 0, 1))
    known = {"shape": shape, "channels": 96, "kv_heads": 2, "kl": 0.123, "vocabulary": (400, 300)}
    found = Structure(parameters=2 * make_plan().parameters, healed="5Mtok: KL 0.4 to <b>", **known)
    page = report.render(make_plan(structure=found), make_card(0.01))
    assert "What was removed" in page
    assert page.count("<title>block 1: removed</title>") == 2  # for two widths of the page
    assert page.count("<title>block 2: 32 of 96 channels, 1 of 2 KV heads</title>") == 2
    assert "50.0% went" in page
    assert "300 of 400 tokens" in page
    assert "0.123" in page
    assert "<b>" not in page.split("What was removed")[1].split("</section>")[0]
    assert "What was removed" not in report.render(make_plan(), make_card(0.01))


@pytest.mark.parametrize("width", [350, 880])
def test_labels_of_crowded_points_do_not_overlap(width: int) -> None:
    points = [
        FilePoint(f"Q{i}_K_M", 28_000_000 + 40_000 * i, 0.02 + 0.0004 * i, 0.0002, "rival") for i in range(4)
    ]
    points.append(FilePoint("tenth", 28_010_000, 0.0201, 0.0002, "ours"))
    drawn = charts.quality(points, width, 380)
    labels = re.findall(
        r'<text(?: class="strong")? x="([\d.]+)" y="([\d.]+)" font-size="13">([^<]+)<tspan[^>]*>([^<]*)',
        drawn,
    )
    assert len(labels) == 5
    boxes = [(float(x), float(y), float(x) + len(n + v) * 13 * 0.5, float(y) + 12) for x, y, n, v in labels]
    for i, a in enumerate(boxes):
        assert a[2] <= width
        for b in boxes[:i]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def test_write_draws_from_the_files_alone(tmp_path: Path) -> None:
    plan, card = make_plan(), make_card(0.0121, 0.0211)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    (tmp_path / "scorecard.json").write_text(card.model_dump_json())
    assert report.write(tmp_path).read_text(encoding="utf-8") == report.render(plan, card)
    assert {file.name for file in tmp_path.iterdir()} == {"plan.json", "scorecard.json", "report.html"}


@pytest.mark.parametrize("broken", ["plan.json", "scorecard.json"])
def test_write_refuses_what_is_no_record(tmp_path: Path, broken: str) -> None:
    with pytest.raises(InputError, match="not a finished bundle"):
        report.write(tmp_path)
    (tmp_path / "plan.json").write_text(make_plan().model_dump_json())
    (tmp_path / "scorecard.json").write_text(make_card(0.01).model_dump_json())
    (tmp_path / broken).write_text('{"version": 2}')
    with pytest.raises(InputError, match=broken):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def make_measurement(**changes: Any) -> Measurement:
    machine = Machine(
        date="2026-11-25T10:26:36+00:00",
        system="Linux",
        processor="A76",
        cores=4,
        threads=3,
        load_before=0.31,
        load_after=2.97,
        celsius_before=41.0,
        celsius_after=73.0,
        governor="ondemand",
    )
    speeds = [Reading(name="decode", value=91.7 - i, unit="tokens/s", spread=1.7, count=3) for i in range(3)]
    depths = [Depth(depth=512 * i, decode=each, prefill=each) for i, each in enumerate(speeds[:2])]
    depths.append(Depth(depth=1900, decode=speeds[2], prefill=None))
    offline = Offline(
        network="namespace without interfaces",
        method="strace",
        blind="nothing much",
        connections=0,
        attempts=[],
        inside=["model.gguf"],
        outside=["/etc/odd"],
        libraries=14,
        kernel=4,
    )
    return Measurement(
        **{
            "tenth": "0.1.0",
            "runtime": "llama.cpp",
            "model": "ref",
            "sha256": "ab" * 32,
            "machine": machine,
            "readings": [
                Reading(name="peak", value=38_700_000, unit="B"),
                Reading(name="energy_decode", value=0.217, unit="J/token", kind="estimated"),
            ],
            "depths": depths,
            "over_time": [(0.5 + i, 90.0 - i) for i in range(60)],
            "energy": "not measured",
            "without": "rapl: absent",
            "checks": ["96 tokens compared"],
            "offline": offline,
            "notes": ["a busy machine"],
            **changes,
        }
    )


def test_a_measurement_is_shown_with_all_that_travels_with_it() -> None:
    plain = report.render(make_plan(), make_card(0.0121))
    assert "On this device" not in plain
    reader = Reader(
        report.render(make_plan(), make_card(0.0121), measured={"this device": make_measurement()})
    )
    for expected in (
        "On this device",
        "A76, 3 threads on 4 cores",
        "2026-11-25 10:26 UTC",
        "average 0.31 before, 2.97",
        "41 °C before, 73 °C after",
        "governor ondemand",
        "512: 90.7 ± 1.7",
        "1900: 89.7 ± 1.7",
        "tokens in the context",
        "writing speed over time",
        "+0.26% against the prediction",
        "0.217",
        "estimated",
        "rapl: absent",
        "96 tokens compared",
        "0 attempted connections",
        "/etc/odd",
        "nothing much",
        "a busy machine",
        "writing speed (decode), 1,900 deep",
    ):
        assert expected in reader.said, expected
    assert "reading speed (prefill), 1,900 deep" not in reader.said


def test_a_measurement_by_llama_cpps_own_programs_stands_beside_it() -> None:
    base = make_measurement()
    bench = Bench(
        tenth="0.1.0",
        runtime="llama.cpp b7000",
        model="ref",
        sha256="ab" * 32,
        device="Maker Model 5",
        readings=base.readings,
        depths=base.depths[:2],
        energy="not measured: plugged in",
        notes=[HOSTILE],
    )
    page = report.render(make_plan(), make_card(0.0121), measured={"this device": base, "R5CT": bench})
    said = Reader(page).said
    for expected in ("On this device", "On R5CT", "Maker Model 5, llama.cpp b7000", "not measured: plugged"):
        assert expected in said, expected
    assert said.count("512: 90.7 ± 1.7") == 8, "decode and prefill of each, wide and narrow"
    assert "<script" not in page


def test_a_hostile_measurement_is_escaped_and_a_short_one_drawn() -> None:
    base = make_measurement()
    machine = base.machine.model_copy(update={"processor": HOSTILE, "governor": HOSTILE, "date": HOSTILE})
    offline = base.offline.model_copy(update={"outside": [HOSTILE], "network": HOSTILE, "blind": HOSTILE})
    odd = make_measurement(
        machine=machine,
        offline=offline,
        energy=HOSTILE,
        without=HOSTILE,
        checks=[HOSTILE],
        notes=[HOSTILE],
        over_time=[],
        depths=base.depths[:1],
    )
    page = report.render(make_plan(), make_card(0.0121), measured={HOSTILE: odd})
    assert "<script" not in page
    assert "writing speed over time" not in Reader(page).said


@pytest.mark.parametrize("width", [350, 408])
def test_curves_stay_inside_their_picture(width: int) -> None:
    what = Curve("t", "b", "ours", [(0.0, 90.0, 95.0), (512.0, 70.0, 3.0), (31_744.0, 0.0, 0.0)])
    drawn = charts.curve(what, width, 230)
    spots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert len(spots) == 3
    heights = [float(y) for _, y in spots] + [float(y) for y in re.findall(r"V([\d.]+)", drawn)]
    assert all(0 <= y <= 190 for y in heights), "not below the axis"
    assert all(46 <= float(x) <= width for x, _ in spots)
    assert [float(y) for _, y in spots] == sorted(float(y) for _, y in spots)
    assert charts.curve(Curve("t", "b", "ours", []), width, 230) == ""


def test_the_device_section_has_every_figure_with_its_range_and_the_curves() -> None:
    from test_plan import llama

    from tenth.core.records import Requirements
    from tenth.devices import catalogue
    from tenth.planning import forecast
    from tenth.planning.plan import decide, smallest_decision
    from tenth.planning.requirements import with_requirements

    problem, device, wanted = llama(), catalogue.load("galaxy-s23"), Requirements(min_speed=20, grid=400)
    asked = with_requirements(problem, device, wanted)
    budget = int(1.6 * smallest_decision(problem).memory.total)
    decision = decide(asked, budget)
    found = forecast.forecast(asked, decision, budget, device, wanted)
    planned = make_plan().model_copy(update={"forecast": found, "predicted_kl": decision.predicted_kl})
    page = report.render(planned, make_card(0.0121))
    for said in (
        "On galaxy-s23",
        "what else could be had",
        "j per token",
        "decoding, sustained",
        "in the cloud",
    ):
        assert said.lower() in page.lower()
    assert all(f"{each.conditions}".split(",")[0] in page for each in found.estimates)
    assert charts.tradeoff(planned, 800, 380).count("<circle") == 1 + sum(map(len, found.curves))
    assert charts.tradeoff(make_plan(), 800, 380) == ""
    assert "On galaxy" not in report.render(make_plan(), make_card(0.0121))


# ---- fewer tokens: only bits per byte compares with the model that was given


def bits(value: float) -> Reading:
    return Reading(name="bits_per_byte", value=value, unit="bits/byte", spread=0.01, count=47)


def trimmed_card(ours: float, whole: float | None, whole_fits: bool = True) -> Scorecard:
    """Ours and a stock recipe without most tokens, near each other, and a recipe with all of them."""
    card = make_card(0.0058, 0.0218, vocabulary=(262_144, 32_000), original=[bits(1.0)])
    made = [
        each.model_copy(update={"readings": [*each.readings, bits(value)]})
        for each, value in zip(card.candidates, (ours, ours + 0.1), strict=True)
    ]
    if whole is not None:
        kept = {"name": "Q2_K, all tokens", "fits": whole_fits, "all_tokens": True}
        made.append(made[1].model_copy(update={**kept, "readings": [bits(whole)]}))
    return card.model_copy(update={"candidates": made})


@pytest.mark.parametrize(
    ("card", "said", "tone"),
    [
        (
            trimmed_card(1.61, 1.2),
            "fits too, takes 1.2, so Q2_K, all tokens is the better choice here.",
            "bad",
        ),
        (trimmed_card(1.61, 1.615), "so Q2_K, all tokens is the better choice here.", "bad"),
        (trimmed_card(1.61, 3.22), "fits too, takes 3.22: 50% less than that.", "good"),
        (trimmed_card(1.61, 1.2, False), "none fits this budget (Q2_K, all tokens).", "bad"),
        (trimmed_card(1.61, None), "no file that keeps all tokens was measured beside it.", "bad"),
        (trimmed_card(1.02, None), "2.0% more than the original's 1", "even"),
    ],
)
def test_with_fewer_tokens_the_verdict_is_against_the_given_model(
    card: Scorecard, said: str, tone: str
) -> None:
    found = verdict.quality_verdict(card)
    assert said in found.text
    assert found.tone == tone
    assert found.text.startswith("With 32,000 of 262,144 tokens it takes 1.")
    assert "than the original's 1" in found.text
    assert "Q4_K_S, the best stock recipe with the same tokens" in found.text
    assert "KL" not in found.text
    assert "0.0058" not in found.text


def test_with_fewer_tokens_the_page_shows_bits_per_byte_where_it_showed_kl() -> None:
    structure = Structure(parameters=50_000_000, vocabulary=(262_144, 32_000), original_bits=1.0)
    page = report.render(make_plan(structure=structure), trimmed_card(1.61, 1.2))
    top = page.split("<section>")[0]
    assert "61.0% more than the original" in top
    assert "bits per byte" in top
    assert "KL" not in top
    beside = page.split("Side by side")[1].split("</table>")[0]
    assert "bits per byte" in beside
    assert "KL" not in beside
    assert "bits per byte of held-out text; lower is better" in page
    assert "KL to the original, nats per token; lower is better" not in page
