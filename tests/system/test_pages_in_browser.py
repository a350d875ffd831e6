"""The pages in a real browser: nothing fails, nothing is loaded, all can be seen and read.

Skipped where there is no Chromium, Chrome or Edge; LIMNER_TEST_BROWSER=required (as in .ci/run)
makes that a failure.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser_or_skip, find_browser, open_browser
from faulty_set import SIDE, faulty_set
from made_up_evaluation import made_up_evaluation
from made_up_run import made_up_run

from limner.apps.check_data.check import check
from limner.config import load_config
from limner.reports.data_report import write_check_page
from limner.reports.evaluation_report import write_page
from limner.reports.run_report import write_report

CONTRAST = 4.5
"""Least contrast of text that is neither large nor bold (WCAG 2.2, success criterion 1.4.3)."""

OUTSIDE = """
(() => {
  const main = document.querySelector("main").getBoundingClientRect();
  const found = [];
  for (const element of document.querySelectorAll("main *")) {
    const box = element.getBoundingClientRect();
    const hidden = box.width === 0 || element.closest(".scroll, pre, svg");
    if (!hidden && (box.right > main.right + 1 || box.left < main.left - 1))
      found.push(element.outerHTML.slice(0, 120) + ` ${box.left} to ${box.right}`);
  }
  return found;
})()
"""
"""Elements that stick out of the page, but for what scrolls by itself."""

UNSEEN = """
Promise.all([...document.images].map(image => image.decode().then(() => null, String))).then(
  failed => [...document.images].filter((image, i) => {
    const box = image.getBoundingClientRect();
    return failed[i] || !image.naturalWidth || box.width < 20 || box.height < 5 || !image.alt;
  }).map(image => image.alt)
)
"""

FAINT = """
(() => {
  const parse = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return [n[0], n[1], n[2], n.length > 3 ? n[3] : 1];
  };
  const over = (top, under) => top.slice(0, 3).map((x, i) => x * top[3] + under[i] * (1 - top[3]));
  const light = colour => {
    const [r, g, b] = colour.map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) 
      layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [], contrasts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.closest("svg") ? style.fill : style.color);
    for (let e = element; e; e = e.parentElement) ink[3] *= Number(getComputedStyle(e).opacity);
    const below = paper(element);
    const [a, b] = [light(over(ink, below)), light(below)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    contrasts.push(contrast);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : LEAST))
      found.push(`${contrast.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 60)}`);
  }
  return {found, count: contrasts.length, least: Math.min(...contrasts)};
})()
"""
"""Text that does not stand out from what is below it."""


KEPT = {
    path.name: path
    for path in (Path(__file__).parents[2] / "docs" / "runs").glob("evaluation-*.html")
}
"""Of models that were really trained."""


CHARTS = {"run report": 2, "data check": 0}
"""Line charts that are seen at a width, where it is not one."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(browser_or_skip(), tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name in ("recall", "checker"):
        made_up_evaluation(folder / name, checker=name == "checker")
    made_up_run(folder / "run", strips=True)
    faulty_set(folder / "data")
    settings = {"dataset_path": str(folder / "data"), "image_size": SIDE}
    check(load_config({"data": settings}), folder / "check")
    return {
        "data check": write_check_page(folder / "check"),
        "run report": write_report(folder / "run"),
        "evaluation, recall": write_page(folder / "recall"),
        "evaluation, checker": write_page(folder / "checker"),
        **KEPT,
    }


@pytest.mark.parametrize(
    "name",
    ["run report", "evaluation, recall", "evaluation, checker", "data check", *sorted(KEPT)],
)
def test_a_page_is_seen_whole_at_any_width_and_in_both_themes(
    page: Page, files: dict[str, Path], name: str
) -> None:
    papers = set()
    for width in (1280, 390, 320):
        for dark in (False, True):
            page.open(files[name], width, dark)
            where = f"{name}, {width} pixels, {'dark' if dark else 'light'}"
            assert page.ask("innerWidth") == width
            page.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert page.ask(UNSEEN) == [], where
            assert page.ask("document.images.length") > 10
            assert page.ask("document.documentElement.scrollWidth") == width, where
            assert page.ask(OUTSIDE) == [], where
            faint = page.ask(FAINT.replace("LEAST", str(CONTRAST)))
            assert faint["found"] == [], where
            assert faint["count"] > 60
            charts = page.ask("[...document.querySelectorAll('.chart')].filter("
                              "chart => chart.getClientRects().length).length")  # fmt: skip
            assert charts == CHARTS.get(name, 1), where  # one of the two widths
            assert page.complaints() == [], where
            assert page.requests() == [], where
            papers.add(page.ask("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_what_these_tests_look_for_is_seen(page: Page, tmp_path: Path) -> None:
    """A page with every fault: or the tests above would show nothing."""
    faulty = tmp_path / "faulty.html"
    faulty.write_text(
        "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        "<body style='background: #fff'><main><p style='color: #aaa'>pale</p>"
        "<img alt='gone' src='gone.png' width='50' height='50'>"
        "<div style='width: 2000px'>wide</div></main>"
        "<script>console.error('said'); nothing.there();</script>",
        encoding="utf-8",
    )
    page.open(faulty, 390, dark=False)
    assert page.ask(UNSEEN) == ["gone"]
    assert "wide" in page.ask(OUTSIDE)[0]
    assert page.ask("document.documentElement.scrollWidth") > 390
    assert page.ask(FAINT.replace("LEAST", str(CONTRAST)))["found"] == ["2.32: pale"]
    assert [url.rsplit("/", 1)[1] for url in page.requests()] == ["gone.png"]
    said = " ".join(page.complaints())
    assert "said" in said
    assert "nothing is not defined" in said


def test_without_a_browser_the_tests_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("browser.shutil.which", lambda name: None)
    monkeypatch.setattr("browser.PLACES", ())
    assert find_browser() is None
    monkeypatch.delenv("LIMNER_TEST_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium, Chrome or Edge"):
        browser_or_skip()
    monkeypatch.setenv("LIMNER_TEST_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="LIMNER_TEST_BROWSER=required"):
        browser_or_skip()
