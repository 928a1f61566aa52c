"""Reports open in a real browser without a complaint, a request, or anything beyond the screen."""

import shutil

import pytest
from fake_runs import HOSTILE, fake_run
from hf_oodclip.evaluation.benchmark import load_benchmark
from hf_oodclip.evaluation.report import write_report
from hf_oodclip.evaluation.runner import Settings, evaluate_benchmark
from PIL import Image

from hf_oodclip import get_score
from hf_oodclip.scores import SCORES

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def check(browser, path, width, scheme="light"):
    """Open a report, fold everything out, and return the page; whatever goes wrong fails the test."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda request: complaints.append(request.url[:100]))
    page.on("request", lambda request: requests.append(request.url[:300]))
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.evaluate("Promise.all([...document.images].map(each => each.decode()))")
    assert page.evaluate("[...document.images].every(each => each.naturalWidth > 0 && each.clientWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Whatever is wider than the screen is in a box that scrolls by itself.
    beyond = "[...document.querySelectorAll('body *')].filter(each => each.getBoundingClientRect().right > innerWidth"
    assert page.evaluate(f"{beyond} && !each.closest('.scroll')).map(each => each.outerHTML.slice(0, 200))") == []
    assert complaints == []
    assert requests == [path.as_uri()]
    return page


def texts(page, selector):
    return [each.strip() for each in page.locator(selector).all_inner_texts()]


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory):
    folder, sets = tmp_path_factory.mktemp("run"), {"id": ("id", 60), HOSTILE: ("near", 30)}
    results, samples = fake_run(scores=[HOSTILE, "x" * 90], sets=sets, labels=[HOSTILE, "b" * 300])
    results |= {"title": HOSTILE, "model": "m" * 300, "adapter": HOSTILE}
    write_report(folder, results, samples, lambda name, row: Image.new("RGB", (20, 30)))
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_names_neither_run_nor_break_the_page(browser, hostile_report, width):
    page = check(browser, hostile_report, width)
    assert texts(page, "h1") == [HOSTILE]
    assert page.locator("script").count() == 0


@pytest.fixture(scope="module")
def pocket_report(make_model, dataset_cache, tmp_path_factory):
    """A report of the benchmark `pocket` with nine scores, and its results."""
    scores = (*map(get_score, SCORES), get_score("delta_energy", temperature=1.0))
    run = evaluate_benchmark(make_model().eval(), load_benchmark("pocket"), Settings(scores, num_bootstrap=20))
    folder = tmp_path_factory.mktemp("run")
    write_report(folder, *run)
    return folder, run[0]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_report_of_a_real_run_opens(browser, pocket_report, width, scheme):
    folder, results = pocket_report
    page = check(browser, folder / "report.html", width, scheme)
    pictures = {file.stem for file in (folder / "pictures").iterdir()}
    assert page.locator("img").count() == len(pictures) and "verdicts" in pictures
    assert all(page.locator("img").nth(place).is_visible() for place in range(len(pictures)))
    # Every figure of the detection table is on the page where its score and set are.
    heading = page.locator("h3", has_text="AUROC in %")
    table = heading.locator("xpath=following-sibling::div[1]//table")
    sets = texts(table, "thead th")[1:]
    found = {(each["score"], each["set"]): each["auroc"] for each in results["detection"]}
    rows = [texts(row, "th, td") for row in table.locator("tbody tr").all()]
    assert [row[0] for row in rows] == [score for score, name in found if name == "digits"]
    for score, *cells in rows:
        expected = [f"{100 * found[score, name]:.1f}" for name in sets]
        assert [cell.split()[0] for cell in cells] == expected


@pytest.mark.slow
def test_on_paper_nothing_is_folded_away(browser, pocket_report):
    page = browser.new_page()
    page.goto((pocket_report[0] / "report.html").as_uri())
    last = page.locator("details img").last
    assert not last.is_visible()
    page.emulate_media(media="print")
    assert last.is_visible()
