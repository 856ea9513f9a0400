"""The reports in a browser: no complaints, nothing loaded from elsewhere, nothing overflows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.browser import Browser, Visit, find, launched
from helpers.report_examples import full_group_report, full_subject_report
from PIL import Image

from bidsapp.report.group import write_group_report
from bidsapp.report.subject import write_subject_report

WIDTHS = (390, 1200)
#: Evaluated in the page: its width and the window's, images that did not load, colours of text and page.
PROBE = """(() => {
  const root = document.documentElement;
  const scrolls = e => e && e !== root && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const over = [...document.querySelectorAll('main *, nav *, footer *')].filter(
    e => e.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(e));
  return {
    window: root.clientWidth, page: root.scrollWidth,
    over: over.map(e => e.outerHTML.slice(0, 120)),
    pictures: document.images.length,
    missing: [...document.images].filter(i => !i.naturalWidth).map(i => i.src),
    silent: [...document.images].filter(i => !i.alt).map(i => i.src),
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  };
})()"""  # noqa: E501


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = find()
    if command is None:
        pytest.skip("Chromium is not installed: the reports were not opened in a browser")
    with launched(command, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    subject = write_subject_report(root / "sub-01.html", full_subject_report(root))
    return {"subject": subject, "group": write_group_report(root / "group.html", full_group_report(root))}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of ``rgb(r, g, b)``."""
    x = np.array([float(v) for v in colour[4:-1].split(",")]) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(visit: Visit) -> float:
    values = sorted(luminance(visit.facts[k]) + 0.05 for k in ("paper", "ink"))
    return values[1] / values[0]


@pytest.mark.parametrize("name", ["subject", "group"])
def test_a_full_page_is_well_formed_and_describes_its_images(pages: dict[str, Path], name: str) -> None:
    tree = ElementTree.fromstring(pages[name].read_text(encoding="utf-8"))
    ids = [e.get("id") for e in tree.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert {a.get("href", "")[1:] for a in tree.iter("a") if a.get("href", "").startswith("#")} <= set(ids)
    images = list(tree.iter("img"))
    assert images
    assert all(i.get("alt") and i.get("src") for i in images)
    drawings = [e for e in tree.iter("svg") if e.get("role") == "img"]
    assert drawings
    assert all(e.get("aria-label") for e in drawings)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["subject", "group"])
def test_a_page_fits_its_window_and_loads_only_its_own_images(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    seen = browser.visit(pages[name], width, PROBE)
    assert seen.complaints == []
    folder = pages[name].parent.resolve().as_uri()
    assert seen.requests[0] == pages[name].resolve().as_uri()
    assert [url for url in seen.requests if not url.startswith(f"{folder}/")] == []
    assert seen.facts["pictures"] > 1
    assert seen.facts["missing"] == []
    assert seen.facts["silent"] == []
    assert seen.facts["window"] == width
    assert seen.facts["over"] == []
    assert seen.facts["page"] <= width


@pytest.mark.parametrize("name", ["subject", "group"])
def test_light_and_dark_are_both_readable(browser: Browser, pages: dict[str, Path], name: str) -> None:
    light, dark = (browser.visit(pages[name], 1200, PROBE, dark=d) for d in (False, True))
    assert luminance(light.facts["paper"]) > 0.8 > 0.1 > luminance(dark.facts["paper"])
    assert min(contrast(light), contrast(dark)) > 7


def test_the_probe_detects_faults(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    Image.new("RGB", (4, 4)).save(tmp_path / "here.png")
    bad.write_text(
        '<!DOCTYPE html><title>bad</title><main><div style="width: 900px">wide</div>'
        '<img src="http://elsewhere.example/x.png"/><img src="here.png" alt="here"/><img src="gone.png"/>'
        "<script>console.error('no'); missing();</script></main>"
    )
    seen = browser.visit(bad, 390, PROBE)
    text = " ".join(seen.complaints)
    assert "missing is not defined" in text
    assert "'no'" in text
    assert "http://elsewhere.example/x.png" in seen.requests
    assert seen.facts["page"] > 390 or seen.facts["over"]
    assert len(seen.facts["missing"]) == len(seen.facts["silent"]) == 2
