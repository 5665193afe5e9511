"""What is drawn are the numbers of the records: speed, layers, similarities, tasks, a tuning."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.report.layers import draw_tiers
from sere.report.page import render
from sere.report.read import read_sources, source_of
from sere.similarity import LayerSimilarity
from sere.table import Tier
from tests.support.records import answers, evaluation, share, timing, tuning
from tests.support.report_page import figures, on_axis, tables
from tests.support.tables import saved

pytest.importorskip("plotly", reason="needs plotly, the extra report")


def page(*records: dict[str, Any]) -> str:
    return render([source_of(record, f"{index}.json") for index, record in enumerate(records)])


def plot(text: str, name: str) -> Any:
    """The one plot whose name begins so."""
    (found,) = (figure for known, figure in figures(text).items() if known.startswith(name))
    return found


def test_speed_is_that_of_the_records() -> None:
    """Medians over rows, in their order, with bars to the percentiles; off is timed and is not a speedup."""

    def timed(setting: str, rows: int, speedup: float, ms: float) -> dict[str, Any]:
        experts = {"distinct_before": 40.0, "distinct_after": float(rows)}
        return timing(
            setting, rows, speedup, tpot_ms={"p20": ms - 1, "p50": ms, "p80": ms + 3}, experts=experts
        )

    records = [timed("sere", 16, 1.5, 20), timed("off", 8, 1, 15), timed("sere", 8, 1.25, 12)]
    figure = plot(page(*records, timed("off", 16, 1, 30)), "time per output token and speedup")
    (sere,) = on_axis(figure, "x").values()
    assert (sere["name"], sere["x"], sere["y"]) == ("sere", [8, 16], [1.25, 1.5])
    assert sere["error_y"]["array"] == pytest.approx([0.1, 0.1])
    assert sere["error_y"]["arrayminus"] == pytest.approx([0.1, 0.1])
    assert sere["customdata"] == [["B=8", "40.0 > 8.0"], ["B=16", "40.0 > 16.0"]]
    ms = on_axis(figure, "x2")
    assert {name: (line["x"], line["y"]) for name, line in ms.items()} == {
        "off": ([8, 16], [15, 30]), "sere": ([8, 16], [12, 20]),
    }  # fmt: skip
    assert ms["sere"]["error_y"]["array"] == [3, 3]
    assert ms["sere"]["error_y"]["arrayminus"] == [1, 1]
    assert figure["layout"]["xaxis"]["tickvals"] == [8, 16]


def test_speed_without_off_has_times_only() -> None:
    """No ratio is made up."""
    figure = plot(page(timing("sere", 8, 1.2) | {"speedup": None}), "time per output token and speedup")
    assert on_axis(figure, "x") == {}
    assert on_axis(figure, "x2")["sere"]["y"] == [10.0]


def test_controls_of_speed_are_told_apart() -> None:
    """They share a color; their thin markers differ, and are thick enough to be seen."""
    drawn = plot(page(timing("random", 8, 1.0), timing("drop", 8, 1.0)), "time per output token")
    random, drop = (trace["marker"] for trace in on_axis(drawn, "x").values())
    assert random["symbol"] != drop["symbol"]
    assert random["line"]["width"] == drop["line"]["width"] == 2


def test_m_maps_are_the_tiers_of_the_record() -> None:
    """A map per tier: at the rows of its points, what each layer may read, interpolated and rounded up."""
    record = tuning()
    record["tiers"]["balanced"]["layers"]["0"] = [[1, 4], [4, 8], [16, 20]]
    record["tiers"]["fast"] = record["tiers"]["balanced"] | {"active_experts": 0.25, "layers": {}}
    figure = plot(page(record), "M by layer and rows")
    balanced, fast = [trace for trace in figure["data"] if trace["type"] == "heatmap"]
    assert (balanced["x"], balanced["y"]) == (["0", "2"], ["4", "16"])
    assert balanced["z"] == [[8, 9], [20, 28]]
    assert fast["y"] == ["1", "8", "16", "32", "64"]
    assert fast["z"] == [[12, 12]] * 5
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    assert [title.partition(":")[0] for title in titles[:2]] == ["tier balanced", "tier fast"]
    colors = figure["layout"]["coloraxis"]
    assert (colors["cmin"], colors["cmax"]) == (0, 48)


def test_m_is_at_most_the_experts_of_its_layer() -> None:
    """Whose number is under the pointer, where layers differ in it."""
    figure = draw_tiers([Tier("fast", ((1, 4), (8, 40)))], {0: 48, 2: 32}, {0: 4, 2: 4}, None)
    (trace,) = figure.to_plotly_json()["data"]
    assert trace["z"] == [[40, 32]]
    assert trace["customdata"] == [[48, 32]]
    assert "M = %{z} of %{customdata}" in trace["hovertemplate"]


def test_sensitivities_are_those_of_the_record() -> None:
    """A bar per group of layers, with its standard error; what was measured is under the pointer."""
    record = tuning()
    record["layers"]["sensitivities"]["layers"] = [
        {"layers": [0, 1], "sensitivity": 1.4, "measured": 1.7, "standard_error": 0.2},
        {"layers": [2], "sensitivity": 0.6, "measured": 0.3, "standard_error": 0.1},
    ]
    (bars,) = [one for one in plot(page(record), "M by layer")["data"] if one["type"] == "bar"]
    assert (bars["x"], bars["y"]) == (["0, 1", "2"], [1.4, 0.6])
    assert bars["error_y"]["array"] == [0.2, 0.1]
    assert bars["customdata"] == [[1.7, 0.2], [0.3, 0.1]]


def test_similarity_maps_are_those_of_the_table(tmp_path: Path) -> None:
    """The row's expert is replaced by the column's; the diagonal and what is not known are empty."""
    layers = {}
    for index in (1, 3):
        values = torch.rand(5, 5, generator=torch.Generator().manual_seed(index)).fill_diagonal_(1)
        values[0, 4] = nan
        layers[index] = LayerSimilarity(values)
    figure = plot(render(read_sources([saved(tmp_path, layers=layers)])), "similarity of experts")
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["layer 1", "layer 3"]
    known = []
    for trace, layer in zip(figure["data"], layers.values(), strict=True):
        experts = [int(name.removeprefix("expert ")) for name in trace["y"]]
        assert trace["x"] == trace["y"]
        assert sorted(experts) == [0, 1, 2, 3, 4]
        for e, row in zip(experts, trace["z"], strict=True):
            for p, drawn in zip(experts, row, strict=True):
                empty = e == p or (e, p) == (0, 4)
                assert drawn == (None if empty else pytest.approx(layer.similarity[e, p].item(), abs=6e-4))
                known += [] if empty else [layer.similarity[e, p].item()]
    colors = figure["layout"]["coloraxis"]
    assert (colors["cmin"], colors["cmax"]) == (0, pytest.approx(max(known)))


def test_cells_of_the_table_by_task() -> None:
    """Percent right; the background says what was lost or gained against off at the same rows."""

    def case(setting: str, rows: int, add: float, sort: float) -> dict[str, Any]:
        one = answers(setting, 24.0 if setting == "sere" else 40.0, 0.6 * add + 0.4 * sort, rows=rows)
        one["tasks"]["add"]["share"], one["tasks"]["sort"]["share"] = share(add), share(sort)
        return one

    cases = [case("off", 8, 0.5, 0.5), case("sere", 8, 0.5, 0.5)]
    cases += [case("off", 16, 0.9, 0.6), case("sere", 16, 0.8, 0.65)]
    found = tables(text := page(evaluation(*cases)), "By task")
    assert list(found) == ["steps of 16 rows", "steps of 8 rows"]
    assert "<details open><summary>steps of 16 rows" in text

    def lost(percent: int, name: str = "lost") -> str:
        return f"color-mix(in srgb, var(--{name}) {percent}%, transparent)"

    assert found["steps of 16 rows"] == [
        [("setting", ""), ("experts", ""), ("all", ""), ("add", ""), ("sort", "")],
        [("off", ""), ("40.0", ""), ("78", ""), ("90", ""), ("60", "")],
        # A loss of 25 points has the darkest background, 60 % of the color.
        [("sere", ""), ("24.0", ""), ("74", lost(10)), ("80", lost(24)), ("65", lost(12, "gained"))],
    ]
    assert found["steps of 8 rows"][2] == [
        ("sere", ""), ("24.0", ""), ("50", ""), ("50", ""), ("50", ""),
    ]  # fmt: skip


def test_what_each_layer_read_is_that_of_the_record() -> None:
    """At the largest steps, the setting that reads the fewest first."""
    cases = [answers("off", 40.0, 0.9), answers("sere", 24.0, 0.9), answers("sere", 9.0, 0.9, rows=8)]
    (trace,) = plot(page(evaluation(*cases)), "distinct experts by layer")["data"]
    assert (trace["x"], trace["y"]) == (["0", "2"], ["sere", "off"])
    assert trace["z"] == [[23.0, 25.0], [39.0, 41.0]]


def test_losses_and_tiers_are_those_of_the_tuning() -> None:
    """Loss over experts with its interval, stars for tiers, the experts of tiers and of off over rows."""
    figure = plot(page(tuning()), "measured divergence over experts")
    left = [trace for trace in figure["data"] if trace["xaxis"] == "x"]
    (losses,) = [trace for trace in left if trace["name"] == "16 rows"]
    assert (losses["x"], losses["y"]) == ([20.0, 30.0], [0.002, 0.001])
    assert losses["error_y"]["array"] == pytest.approx([0.0005, 0.0002])
    assert losses["customdata"][0] == ["20", "0.002 (0.0015 to 0.0025)"]
    (stars,) = [trace for trace in left if trace["name"] == "tier balanced"]
    assert (stars["x"], stars["y"]) == ([20.0, 24.0], [0.0015, 0.0015])
    over_rows = on_axis(figure, "x2")
    assert (over_rows["tier balanced"]["x"], over_rows["tier balanced"]["y"]) == ([8, 16], [20.0, 24.0])
    assert (over_rows["off"]["x"], over_rows["off"]["y"]) == ([8, 16], [40.0, 40.0])
    (accepted,) = figure["layout"]["shapes"]
    assert (accepted["y0"], accepted["y1"]) == (0.002, 0.002)
