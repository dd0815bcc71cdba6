import json
import shutil
from html.parser import HTMLParser

import pytest
from log_text import log_text, run_text, write

from records.__main__ import main
from records.judge.logs import read_entry
from records.publish.entry_page import read_standing
from records.publish.report import POLICY, RecordError, report
from records.run.recipe import toml_lines
from tests.made_logs import NANO, RECIPE, write_log

HOSTILE = "<img src=x onerror=hacked=1>"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report, as the command writes it: two entries, one that misses the target, one of a hostile name."""
    home = tmp_path_factory.mktemp("report")
    write_log(home / "fast" / "a.txt", recipe=RECIPE | {"matrix": RECIPE["matrix"] | {"lr": 0.03}})
    write_log(home / "slow" / "a.txt", offset=NANO.sigma)
    write_log(home / "misses" / "a.txt", offset=9 * NANO.sigma)
    write_log(home / f"{HOSTILE} | `x`.txt", device="</script><script>hacked=2</script>")
    hostile = home / f"{HOSTILE} | `x`.txt"
    entries = [str(home / name) for name in ("slow", "fast", "misses")]
    assert main(["report", "-o", str(home / "out.html"), *entries, str(hostile)]) == 0
    return home / "out.html"


class Elements(HTMLParser):
    """Attributes of every element, and the cells of the tables by their id."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.cells, self.table = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag == "table":
            self.table = dict(attributes).get("id")
        if tag == "tr":
            self.cells.setdefault(self.table, []).append([])
        if tag in ("td", "th"):
            self.cells[self.table][-1].append("")

    def handle_data(self, text):
        if self.lasttag in ("td", "th", "br") and self.cells.get(self.table):
            self.cells[self.table][-1][-1] += text


def test_a_report_is_one_file_that_may_fetch_nothing(page):
    found = Elements(page.read_text()).attributes
    assert ("meta", "content", POLICY) in found and "http" not in POLICY
    assert [a for a in found if a[0] in ("script", "link", "img") and a[1] in ("src", "href")] == [
        ("link", "href", "data:,")
    ]


def test_names_and_facts_are_text_and_no_markup(page):
    found = Elements(page.read_text())
    assert not [a for a in found.attributes if a[1].startswith("on")]
    assert f"{HOSTILE} | `x`" in found.cells["pairwise"][0]
    assert "</script><script>hacked" not in page.read_text()


def test_pairs_are_judged_both_ways(page):
    head, *rows = Elements(page.read_text()).cells["pairwise"]
    cells = {(row[0], name): cell for row in rows for name, cell in zip(head[1:], row[1:], strict=True)}
    assert cells["fast", "misses"].startswith("better+") and cells["misses", "fast"].startswith("worse-")
    assert cells["fast", "fast"] == ""


def test_recipes_stand_side_by_side_with_differences_first(page):
    _, first, *others = Elements(page.read_text()).cells["recipes"]
    assert first == ["\u2260 matrix.lr", "0.02", "0.03", "0.02", "0.02"]
    assert not [row for row in others if row[0].startswith("\u2260")]


def test_the_recipe_of_an_entry_is_that_of_its_folder(tmp_path):
    write_log(tmp_path / "a.txt")
    (tmp_path / "recipe.toml").write_text("\n".join(toml_lines(RECIPE | {"train_steps": 201})))
    assert ["train_steps", "201"] in Elements(report([read_entry(tmp_path)])).cells["recipes"]


def test_entries_of_two_tracks_are_refused(tmp_path):
    write_log(tmp_path / "a.txt")
    write_log(tmp_path / "b.txt", recipe=RECIPE | {"track": "fineweb"})
    with pytest.raises(RecordError, match="one track"):
        report([read_entry(tmp_path / name) for name in ("a.txt", "b.txt")])


def test_logs_without_a_run_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("nothing\n")
    with pytest.raises(RecordError, match="at least one run"):
        report([read_entry(tmp_path / "a.txt")])


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def opened(browser, page):
    """The report in the browser, its curves and table drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page.as_uri())
    WebDriverWait(browser, 20).until(
        lambda b: (
            b.find_elements("css selector", "#curves .legend .traces")
            and b.find_elements("css selector", "#summary.dataTable tbody tr")
        )
    )
    return browser


def layout(browser):
    script = "return JSON.stringify(document.querySelector('#curves').layout)"
    return json.loads(browser.execute_script(script))


def rows(browser):
    return [row.text.split()[0] for row in browser.find_elements("css selector", "#summary tbody tr")]


def test_a_browser_shows_it_without_an_error(opened):
    assert opened.get_log("browser") == []
    assert opened.execute_script("return window.hacked") is None
    wide = opened.execute_script("return [document.body.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]


def test_dragging_zooms(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    low, high = layout(opened)["xaxis"]["range"]
    plot = opened.find_element("css selector", "#curves .nsewdrag")
    ActionChains(opened).move_to_element_with_offset(plot, -200, -100).click_and_hold().move_by_offset(
        250, 150
    ).release().perform()
    WebDriverWait(opened, 10).until(lambda b: layout(b)["xaxis"]["range"] != [low, high])
    zoomed = layout(opened)["xaxis"]["range"]
    assert low < zoomed[0] < zoomed[1] < high
    assert zoomed[1] - zoomed[0] == pytest.approx((high - low) * 250 / plot.size["width"], rel=0.05)


def test_a_click_in_the_legend_hides_a_curve_with_its_band(opened):
    def visible():
        script = "return document.querySelector('#curves')._fullData.map(t => t.name + ' ' + t.visible)"
        return [told for told in opened.execute_script(script) if told.startswith("fast")]

    from selenium.webdriver.support.ui import WebDriverWait

    assert visible() == ["fast true"] * 2
    names = opened.find_elements("css selector", "#curves .legend .traces")
    next(name for name in names if name.text == "fast").find_element("css selector", ".legendtoggle").click()
    WebDriverWait(opened, 10).until(lambda _: visible() == ["fast legendonly"] * 2)


def test_hovering_reads_the_loss_of_the_logs(opened, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    folder = page.parent / "misses"
    (folder / "recipe.toml").write_text("")
    last = read_standing(folder, NANO).summary.steps[-1]
    assert last.step == 200
    opened.find_elements("css selector", "#curves .updatemenu-button")[1].click()  # the whole run
    WebDriverWait(opened, 10).until(lambda b: layout(b)["xaxis"]["range"][0] <= 0)
    drawn = opened.find_elements("css selector", "#curves .scatterlayer .trace")
    curves = [points for t in drawn if (points := t.find_elements("css selector", ".points path"))]
    ActionChains(opened).move_to_element(curves[2][-1]).perform()  # in the order given: slow, fast, misses
    WebDriverWait(opened, 10).until(lambda b: b.find_elements("css selector", ".hoverlayer .hovertext"))
    told = opened.find_element("css selector", ".hoverlayer .hovertext").get_attribute("textContent")
    assert f"step 200: mean {last.mean:.5f}" in told and "misses" in told and "4 runs" in told


def test_a_click_on_a_heading_sorts(opened):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    assert rows(opened)[:3] == ["slow", "fast", "misses"]
    heading = next(h for h in opened.find_elements("css selector", "#summary thead th") if h.text == "steps")
    heading.click()
    wait = WebDriverWait(opened, 10, ignored_exceptions=[StaleElementReferenceException])
    wait.until(lambda b: rows(b)[-1] == "misses")
    assert rows(opened).index("fast") < rows(opened).index("slow")
    heading.click()
    wait.until(lambda b: rows(b)[0] == "misses")


def test_a_log_is_never_written_over(tmp_path, capsys):
    log = write(tmp_path / "a.txt", log_text(run_text()))
    assert main(["report", str(log), "-o", str(log)]) == 2
    assert "is no .html file" in capsys.readouterr().err
    assert log.read_text() == log_text(run_text()) and len(list(tmp_path.iterdir())) == 1
