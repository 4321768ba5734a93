"""The site that `make docs` built, in a browser: it looks for nothing outside, and reads well when narrow."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PAGES.remove("404.html")  # for a server, at its root
WIDE, NARROW = 1280, 360


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no Chromium on the PATH: apt-get install chromium"
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path) as browser:
        yield browser


@pytest.fixture
def opened(chromium):
    """Opens pages by name and width; afterwards nothing may have gone wrong in them."""
    faults = []

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # the page was left while it still loaded
            faults.append(f"{request.url}: {request.failure}")

    def open(name, width):
        page = chromium.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: r.url.startswith(SITE.as_uri()) or faults.append(r.url))
        page.on("requestfailed", failed)
        page.goto((SITE / name).as_uri())
        return page

    yield open
    for context in chromium.contexts:
        context.close()
    assert faults == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_and_fits_a_narrow_screen(opened, name):
    page = opened(name, NARROW)
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_no_other_host_and_no_machine(name):
    html = (SITE / name).read_text()
    assert re.findall(r'<(?:iframe|img|link|script)\b[^>]*(?:href|src)="(?:https?:)?//[^"]*', html) == []
    assert str(ROOT) not in html


def test_search_finds_a_name(opened):
    page = opened("index.html", WIDE)
    page.get_by_role("textbox", name="Search").press_sequentially("ConvBlock2d")
    page.locator(".md-search-result__link[href*='#']").first.click()
    expect(page.get_by_role("heading", name="fastcnn.nn.ConvBlock2d")).to_be_in_viewport()


def test_the_menu_opens_on_a_narrow_screen(opened):
    page = opened("index.html", NARROW)
    menu = page.locator(".md-sidebar--primary")
    expect(menu).not_to_be_in_viewport()
    page.locator("header label[for=__drawer]").click()
    menu.get_by_text("Measurements").first.click()
    menu.get_by_role("link", name="Benchmarks").click()
    expect(page.get_by_role("heading", name="Benchmarks", level=1)).to_be_in_viewport()
