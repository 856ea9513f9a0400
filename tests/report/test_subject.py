"""The subject's report: what is in the page, and what must not be."""

import dataclasses
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bidsapp.demo import scenes
from bidsapp.report.records import ExtraFigure, RidgePenalty, ScoreRow, SubjectReport
from bidsapp.report.subject import write_subject_report

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x.png onerror=alert(2)>&amp;"


class _Links(HTMLParser):
    """Collects everything a browser would load, link to or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster", "background") or (name == "href" and tag != "a"):
                self.loads.append(str(value))
            elif name == "href":
                self.links.append(str(value))
            elif name == "id":
                self.ids.append(str(value))
            elif name.startswith("on"):
                self.handlers.append(name)
        if tag == "img":
            self.images.append(dict(attrs))


def parse(path: Path) -> _Links:
    parser = _Links()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def example(n: int = 30, caption: str | None = None, seed: int = 0) -> SubjectReport:
    rng = np.random.default_rng(seed)
    drawn = [scenes.make_scene(0, i) for i in range(n)]
    stimuli = np.stack([scenes.draw(s, 32) for s in drawn])
    rows = [
        ScoreRow("brain", "stage1", "two_way_clip", 0.80, 0.75, 0.85, 0.5, 0.44, 0.56, n),
        ScoreRow("brain", "stage2", "two_way_clip", 0.84, 0.79, 0.89, 0.5, 0.44, 0.56, n),
        ScoreRow("null", "stage2", "two_way_clip", 0.49, 0.45, 0.53, 0.5, 0.44, 0.56, n),
        ScoreRow("oracle", "stage2", "two_way_clip", 0.96, 0.94, 0.98, 0.5, 0.44, 0.56, n),
        ScoreRow("brain", "stage2", "pixcorr", 0.41, 0.38, 0.44, 0.0),
    ]
    return SubjectReport(
        subject="01",
        task="scenes",
        recipe="embedded",
        stimulus_ids=tuple(f"scene{i:03d}" for i in range(n)),
        captions=tuple(caption or scenes.captions(s)[0] for s in drawn),
        stimuli=stimuli,
        stage1=stimuli // 2,
        stage2=np.repeat(np.repeat(stimuli, 2, axis=1), 2, axis=2),
        per_image={"stage2_two_way_clip": rng.uniform(size=n), "stage2_pixcorr": rng.uniform(size=n)},
        scores=tuple(rows),
        penalties={"vdvae": RidgePenalty(5000.0)},
        counts={"sessions": 3, "trials": 1234, "voxels used": 1482, "test images": n},
        settings={"stage2": {"strength": 0.75}, "roi": ["early", "higher"], "fast": True, "nothing": None},
        command="bidsapp-recon in out participant",
        versions={"bidsapp-recon": "0.1.0", "numpy": "2"},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "sub-01.html"
    return write_subject_report(path, example())


def test_page_is_well_formed_and_its_anchors_exist(page: Path) -> None:
    ElementTree.fromstring(page.read_text(encoding="utf-8"))
    found = parse(page)
    assert len(found.ids) == len(set(found.ids))
    anchors = {link[1:] for link in found.links if link.startswith("#")}
    assert {"summary", "reconstructions", "scores", "data", "methods", "about", "errors"} <= anchors
    assert anchors <= set(found.ids)


def test_page_loads_only_its_own_images(page: Path) -> None:
    found = parse(page)
    assert found.loads
    assert all(re.fullmatch(r"sub-01/figures/[\w.-]+\.png", src) for src in found.loads)
    assert all((page.parent / src).is_file() for src in found.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    assert "url(" not in page.read_text()
    assert "@import" not in page.read_text()


def test_every_image_has_an_alternative_text_that_names_its_stimulus(page: Path) -> None:
    images = parse(page).images
    assert len(images) == 20
    assert all(re.match(r"Stimulus scene\d{3}: a .* scene\.", str(i["alt"])) for i in images)
    plots = re.findall(r'<svg role="img" aria-label="([^"]+)"', page.read_text())
    assert len(plots) == 3
    assert any("Brain 84.0% (79.0 to 89.0); Null" in text for text in plots)


def test_figures_are_few_and_small(page: Path) -> None:
    files = list((page.parent / "sub-01" / "figures").iterdir())
    assert 0 < len(files) < 30
    assert all(f.stat().st_size < 250_000 for f in files)
    with Image.open(files[0]) as image:
        assert image.size == (3 * 192 + 2 * 6, 192)


def test_summary_scores_and_settings_are_shown(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "than to another one 84.0% of the time (95% interval 79.0 to 89.0; chance 50.0%)" in text
    assert "scores 49.0%, within the range of chance (44.0 to 56.0)" in text
    for shown in (
        "stage2.strength",
        "0.75",
        "early, higher",
        "1,234",
        "bidsapp-recon in out participant",
    ):
        assert shown in text
    assert "nothing" not in re.findall(r'<th scope="row">([^<]*)</th>', text)


def test_top1_among_fewer_images_is_not_shown_next_to_the_brains(tmp_path: Path) -> None:
    rows = [ScoreRow("brain", "stage2", "top1_clip", 0.31, 0.2, 0.4, 0.033, 0.0, 0.1, 30)]
    rows += [
        ScoreRow(c, "stage2", "top1_clip", v, n_images=10) for c, v in (("null", 0.1), ("oracle", 0.777))
    ]
    scores = (*example().scores, *rows)
    text = write_subject_report(tmp_path / "a.html", replace(example(), scores=scores)).read_text()
    assert "31.0" in text
    assert "77.7" not in text
    assert "a hit is easier among the ladder's fewer images" in text
    as_many = tuple(replace(r, n_images=30) for r in scores)
    text = write_subject_report(tmp_path / "b.html", replace(example(), scores=as_many)).read_text()
    assert "77.7" in text
    assert "a hit is easier" not in text


def test_a_null_outside_chance_is_reported(tmp_path: Path) -> None:
    report = example()
    rows = tuple(dataclasses.replace(r, mean=0.7) if r.condition == "null" else r for r in report.scores)
    text = write_subject_report(tmp_path / "a.html", dataclasses.replace(report, scores=rows)).read_text()
    assert "outside the range of chance" in text
    assert "within the range of chance" not in text


@pytest.mark.parametrize("field", ["captions", "stimulus_ids", "command", "errors", "task_free"])
def test_hostile_text_is_shown_and_not_run(tmp_path: Path, field: str) -> None:
    report = example(12)
    changes = {
        "captions": {"captions": (HOSTILE,) * 12},
        "stimulus_ids": {"stimulus_ids": tuple(f"{i}{HOSTILE}" for i in range(12))},
        "command": {"command": HOSTILE, "settings": {HOSTILE: HOSTILE}, "versions": {"app": HOSTILE}},
        "errors": {"errors": (f"{HOSTILE}\n{HOSTILE}",), "warnings": (HOSTILE,)},
        "task_free": {"recipe": HOSTILE, "space": HOSTILE, "counts": {HOSTILE: 1}},
    }[field]
    path = write_subject_report(tmp_path / "sub-01.html", dataclasses.replace(report, **changes))
    ElementTree.fromstring(path.read_text())
    found = parse(path)
    assert "script" not in found.tags
    assert not found.handlers
    assert all(src.startswith("sub-01/figures/") for src in found.loads)
    assert all(
        link.startswith(("#", "sub-01/figures/", "https://doi.org/", "https://arxiv.org/"))
        for link in found.links
    )
    assert "&lt;script&gt;alert(1)" in path.read_text()


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(
        st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufffe\uffff"), min_size=1
    )
)
def test_any_caption_keeps_the_page_well_formed(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    report = SubjectReport(subject="01", errors=(text,), settings={"caption": text})
    path = write_subject_report(tmp_path_factory.mktemp("any") / "sub-01.html", report)
    tree = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert text in {cell.text for cell in tree.iter("td")}


def test_a_failed_run_has_a_report_with_its_error(tmp_path: Path) -> None:
    report = SubjectReport(subject="02", errors=("betas.nii.gz is truncated.\nCopy it again.",))
    path = write_subject_report(tmp_path / "sub-02.html", report)
    text = path.read_text()
    assert "The run of sub-02 failed." in text
    assert text.count("betas.nii.gz is truncated.") == 2
    assert "Copy it again." in text
    assert not parse(path).images
    assert not (tmp_path / "sub-02").exists()


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for root in (first, second):
        write_subject_report(root / "sub-01.html", example(12))
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


def test_images_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    write_subject_report(tmp_path / "sub-01.html", example(30))
    write_subject_report(tmp_path / "sub-01.html", example(5))
    left = {p.name for p in (tmp_path / "sub-01" / "figures").iterdir()}
    assert left == {f"sub-01_task-scenes_desc-all{i}_recon.png" for i in range(1, 6)}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stage1": np.zeros((3, 8, 8, 3), np.uint8)}, r"stage1 has shape \(3, 8, 8, 3\)"),
        ({"captions": ("one",)}, "1 captions for 12"),
        ({"per_image": {"stage2_pixcorr": np.zeros(4)}}, "4 values for 12"),
        ({"figures": (ExtraFigure("data", "https://x.org/a.png", "t", "a"),)}, "must be relative"),
        ({"figures": (ExtraFigure("data", "../secret.png", "t", "a"),)}, "must be relative"),
        ({"figures": (ExtraFigure("nowhere", "a.png", "t", "a"),)}, "unknown section"),
    ],
)
def test_parts_that_do_not_match_are_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        write_subject_report(tmp_path / "sub-01.html", dataclasses.replace(example(12), **changes))
    assert not list(tmp_path.iterdir())


def test_an_extra_figure_is_shown_in_its_section(tmp_path: Path) -> None:
    figure = ExtraFigure(
        "data", "sub-01/figures/mask.png", "Voxels used", "Slices with the mask", "Eight slices."
    )
    text = write_subject_report(
        tmp_path / "s.html", SubjectReport(subject="01", figures=(figure,))
    ).read_text()
    section = text[text.index('<section id="data">') : text.index('<section id="about">')]
    assert 'src="sub-01/figures/mask.png" alt="Slices with the mask"' in section
