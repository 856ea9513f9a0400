"""Labels, plots and the methods text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidsapp.config import RECIPES
from bidsapp.report.labels import format_interval, format_value, is_two_way, metric_label, primary_metric
from bidsapp.report.methods import REFERENCES, methods_text
from bidsapp.report.plots import Axis, axis_for, score_plots
from bidsapp.report.records import ScoreRow


@pytest.mark.parametrize(
    ("key", "title", "percent", "better"),
    [
        ("pixcorr", "Pixel correlation", False, True),
        ("two_way_small_clip", "Two-way identification, small CLIP", True, True),
        ("two_way_alexnet2", "Two-way identification, AlexNet(2)", True, True),
        ("top1_clip", "Top-1 retrieval, CLIP", True, True),
        ("distance_swav", "Distance, SwAV ResNet-50", False, False),
        ("my_metric", "my metric", False, True),
    ],
)
def test_labels(key: str, title: str, percent: bool, better: bool) -> None:
    label = metric_label(key)
    assert (label.title, label.percent, label.higher_is_better) == (title, percent, better)
    assert is_two_way(key) == (label.chance == 0.5)


def test_values_as_text() -> None:
    two_way, pixels = metric_label("two_way_clip"), metric_label("pixcorr")
    assert format_value(two_way, 0.8744) == "87.4%"
    assert format_value(pixels, -0.01234) == "−0.012"
    assert format_value(pixels, math.nan) == format_value(pixels, None) == "–"
    assert format_interval(two_way, 0.8, 0.9) == "80.0 to 90.0"
    assert format_interval(pixels, None, 0.9) == ""


def test_the_summary_prefers_two_way_with_clip() -> None:
    assert primary_metric(("pixcorr", "two_way_efficientnet", "two_way_clip")) == "two_way_clip"
    assert primary_metric(("pixcorr", "ssim")) == "pixcorr"
    assert primary_metric(()) is None


@given(st.floats(-5, 5), st.floats(0.1, 5), st.floats(-20, 20))
def test_positions_are_inside_the_plot_and_keep_their_order(low: float, width: float, value: float) -> None:
    axis = Axis(low, low + width)
    assert 2 <= axis.at(value) <= 98
    assert axis.at(value) <= axis.at(value + 0.5)


@given(st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(-3, 3)), max_size=8))
def test_axis_contains_all_values_and_has_a_few_ticks(values: list[float | None]) -> None:
    label = metric_label("pixcorr")
    axis = axis_for(label, values)
    finite = [v for v in values if v is not None and not math.isnan(v)]
    assert axis.low <= min([0.0, *finite]) + 1e-9
    assert axis.high >= max([1.0, *finite]) - 1e-9
    assert 2 <= len(axis.ticks(label)) <= 7


def test_plot_puts_each_value_where_it_belongs() -> None:
    rows = [
        ScoreRow("brain", "stage2", "two_way_clip", 0.75, 0.7, 1.2, 0.5, 0.45, 0.55),
        ScoreRow("oracle", "stage2", "two_way_clip", 1.0),
        ScoreRow("null", "stage2", "two_way_clip", math.nan),
    ]
    (plot,) = score_plots(rows)
    (lane,) = plot.lanes
    marks = {m.kind: m for m in lane.marks}
    assert set(marks) == {"brain", "oracle"}
    assert (marks["brain"].x, marks["brain"].low, marks["brain"].high) == ("74.00%", "69.20%", "98.00%")
    assert lane.chance == "50.00%"
    assert lane.band == ("45.20%", "9.60%")
    assert [text for _, text in plot.ticks] == ["0%", "25%", "50%", "75%", "100%"]


@pytest.mark.parametrize("recipe", ["embedded", "brain-diffuser", "sd15-ip-adapter", "own"])
def test_methods_cite_what_they_list_and_list_what_they_cite(recipe: str) -> None:
    methods = methods_text(recipe, version="1.2", metrics=("pixcorr", "ssim", "two_way_clip"))
    text = " ".join((*methods.paragraphs, methods.caution))
    listed = {r.key for r in methods.references}
    assert listed == {key for key, r in REFERENCES.items() if r.short in text}
    assert {"braindiffuser", "ridge", "ssim", "mindeye", "bids"} <= listed
    assert all(
        r.url.startswith(("https://doi.org/10.", "https://arxiv.org/abs/")) for r in methods.references
    )


def test_methods_distinguish_the_embedded_models_from_the_published_ones() -> None:
    embedded, paper = (methods_text(r) for r in ("embedded", "brain-diffuser"))
    assert "drawn scenes" in embedded.caution
    assert "pipeline works" in embedded.caution
    assert "drawn scenes" not in " ".join((*paper.paragraphs, paper.caution))
    assert "first 31 layers" in paper.paragraphs[1]
    assert "ViT-L/14" in paper.paragraphs[1]
    own = " ".join(methods_text("own").paragraphs)
    assert "VDVAE" not in own
    assert "'own'" in own


def test_every_recipe_of_the_app_has_words_for_the_methods_text() -> None:
    for path in RECIPES.glob("*.toml"):
        text = " ".join(methods_text(path.stem).paragraphs)
        assert "see Settings" not in text
        assert "VDVAE" in text


def test_methods_state_the_counts_that_are_known() -> None:
    counts = {"voxels": 15724, "trials": 27750, "sessions": 37, "training images": 8859, "test images": 982}
    text = methods_text("brain-diffuser", counts=counts).paragraphs[0]
    for part in ("15,724 voxels", "27,750 trials in 37 sessions", "8,859 images", "982 others"):
        assert part in text
    assert "{" not in text
    assert "sessions)" not in methods_text("embedded").paragraphs[0]


def test_methods_describe_only_what_was_run() -> None:
    text = methods_text("embedded", metrics=("pixcorr",), conditions=("brain",)).paragraphs[-1]
    assert text == "Reconstructions were compared with the stimuli by pixel correlation."


def test_metrics_of_one_kind_are_named_together() -> None:
    metrics = ("pixcorr", "ssim", "two_way_clip", "two_way_swav", "top1_clip")
    text = methods_text("embedded", metrics=metrics).paragraphs[-1]
    assert (
        "pixel correlation, SSIM, two-way identification (CLIP and SwAV ResNet-50) and top-1 retrieval (CLIP)"
        in text
    )


def test_bibtex_and_markdown() -> None:
    entry = REFERENCES["clip"].bibtex()
    assert entry.startswith("@misc{clip,")
    assert entry.count("{") == entry.count("}")
    assert "author = {Radford, A. and Kim, J. W. and Hallacy, C. and others}" in entry
    assert "<https://arxiv.org/abs/2303.05334>" not in methods_text("embedded").as_markdown()
    assert "<https://doi.org/10.1038/s41598-023-42891-8>" in methods_text("embedded").as_markdown()
