"""The demo in a real browser: everything a visitor does, with no request to anywhere but the server."""

import shutil
import sys

import pytest

from hf_oodclip.app.samples import sample_labels

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed"),
]
WAIT = 60_000


@pytest.fixture(scope="module")
def address(running, words, tmp_path_factory):
    """Where `oodclip app` answers."""
    command = [sys.executable, "-m", "hf_oodclip", "app", "--negatives", words]
    with running(command, tmp_path_factory.mktemp("app")) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Opens the demo as a new visitor; at the end nothing foreign was asked for, and nothing went wrong unsaid."""
    requests, troubles, contexts = [], [], []

    def watched(message):
        if message.type == "error":
            troubles.append(message.text)

    def open_page(width=1280, height=1000):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", watched)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        see(page, ".oc-file", "acorn.png")
        # The heat map comes with the verdict; the slider follows.
        page.wait_for_selector("#heat img", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    foreign = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert foreign == []
    assert troubles == []


def see(page, selector, text):
    playwright.expect(page.locator(selector).first).to_contain_text(text, timeout=WAIT)


def send(page, selector, *paths):
    page.locator(f"{selector} input[type=file]").set_input_files([str(path) for path in paths])


def slide(page, key):
    # What the server answers arrives at once, but the browser draws it bit by bit.
    page.wait_for_timeout(500)
    page.locator("#threshold input[type=range]").press(key)


def fill_labels(page, text):
    page.locator("#labels textarea").fill(text)
    # The page takes a moment to know what was typed, and a script presses the button sooner than anybody.
    page.wait_for_timeout(500)


def choose_score(page, name):
    page.locator("#score input").click()
    page.get_by_role("option", name=name, exact=True).click()


def test_upload_threshold_score_and_labels_change_the_verdict(visit, photos):
    page = visit()
    send(page, "#images", photos["far"][0])
    see(page, ".oc-file", "far 00.png")
    value = float(page.locator(".oc-why").inner_text().rpartition("= ")[2].rstrip("."))
    number = page.locator("#threshold input[type=number]")

    slide(page, "Home")
    see(page, ".oc-verdict", "Out of distribution")
    see(page, "#expectation", "Accepts 0.0%")
    assert float(number.input_value()) < value
    slide(page, "End")
    see(page, ".oc-verdict", "In distribution")
    see(page, "#expectation", "Accepts 100.0%")
    page.locator("#reset").click()
    see(page, "#expectation", "Calibrated for 95%")
    playwright.expect(page.locator("#reset")).to_be_hidden()
    see(page, "#histogram", "320 calibration images (ID) by neglabel")

    choose_score(page, "max_logit")
    see(page, ".oc-why", "max_logit =")
    see(page, "#histogram", "by max_logit")

    fill_labels(page, "goldfish\n<script>alert(1)</script>, <img src=x onerror=alert(2)>")
    page.locator("#apply").click()
    see(page, ".oc-verdict", "Not decided")
    see(page, ".oc-side", "<script>alert(1)</script>")
    slide(page, "Home")
    see(page, ".oc-verdict", "Out of distribution")


def test_mistakes_are_answered_politely(visit, photos, tmp_path):
    page = visit()
    page.get_by_text("Calibrate on images of your labels").click()
    send(page, "#images", photos["broken"][0])
    see(page, ".toast-body", "broken.png")
    see(page, ".oc-file", "acorn.png")
    page.locator(".toast-close").first.click()
    fill_labels(page, " , ")
    page.locator("#apply").click()
    see(page, ".toast-body", "There are no labels")
    page.locator(".toast-close").first.click()
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * 21_000_000)
    send(page, "#id-images", large)
    see(page, ".toast-body", "maximum allowed size")


def test_several_images_make_a_table_to_sort_choose_and_download(visit, photos):
    page = visit()
    send(page, "#images", *photos["id"][:3], *photos["far"][:2], *photos["broken"])
    see(page, "#table", "far 01.png")
    see(page, ".toast-body", "1 of 6 left out")

    def column(number):
        cells = page.locator(f'#table [role=gridcell][data-col="{number}"]').all_inner_texts()
        return [cell.strip() for cell in cells]

    assert column(0) == ["1", "2", "3", "4", "5"]
    heading = page.locator("#table [role=columnheader]:visible", has_text="p-value").last
    heading.hover()
    heading.locator("button").last.click()
    page.get_by_role("menuitem", name="Sort descending").click()
    page.wait_for_timeout(1000)
    p_values = [float(cell) for cell in column(3)]
    assert p_values == sorted(p_values, reverse=True)
    last = column(1)[-1]
    page.locator('#table [role=gridcell][data-col="1"]', has_text=last).first.click()
    see(page, ".oc-file", last)
    with page.expect_download() as download:
        page.locator("#csv").click()
    lines = open(download.value.path(), encoding="utf-8").read().splitlines()  # noqa: PTH123, SIM115
    assert lines[0].startswith("image,label,score,ood_score,p_value,is_ood,nearest_negative")
    assert [line.partition(",")[0] for line in lines[1:]] == [
        path.name for path in (*photos["id"][:3], *photos["far"][:2])
    ]


def test_a_folder_and_an_example(visit, photos, tmp_path):
    page = visit()
    for path in photos["far"][:2]:
        shutil.copy(path, tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    with page.expect_file_chooser() as chooser:
        page.locator("#folder").click()
    chooser.value.set_files(str(tmp_path))
    see(page, "#table", "far 01.png")
    page.locator("#examples button.thumbnail-item, #examples .thumbnail-lg").nth(6).click()
    see(page, ".oc-file", "digit 0.png")
    playwright.expect(page.locator("#table")).to_be_hidden()


def test_calibration_on_own_images(visit, photos):
    page = visit()
    fill_labels(page, "\n".join(sample_labels()[:19]))
    page.locator("#apply").click()
    see(page, ".oc-verdict", "Not decided")
    page.get_by_text("Calibrate on images of your labels").click()
    send(page, "#id-images", *photos["id"])
    see(page, "#id-images", "id 39")
    page.locator("#calibrate").click()
    see(page, "#expectation", "of the 40 calibration images")
    see(page, ".oc-why", "p-value")


def test_two_visitors_keep_their_labels(visit, photos):
    one, other = visit(), visit()
    fill_labels(one, "goldfish, teapot")
    one.locator("#apply").click()
    see(one, ".oc-verdict", "Not decided")
    send(other, "#images", photos["id"][1])
    see(other, ".oc-file", "id 01.png")
    see(other, ".oc-why", "p-value")
    send(one, "#images", photos["id"][1])
    see(one, ".oc-file", "id 01.png")
    see(one, ".oc-verdict", "Not decided")
    assert {text.strip() for text in one.locator(".oc-bar span").all_inner_texts()} == {"goldfish", "teapot"}


def test_on_a_phone_the_verdict_comes_first_and_nothing_overflows(visit):
    page = visit(390, 844)
    card = page.locator(".oc-card").bounding_box()
    assert card["y"] + card["height"] < 844
    assert card["y"] < page.locator("#images").bounding_box()["y"]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
