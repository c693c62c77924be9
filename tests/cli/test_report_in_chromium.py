"""The report in a real browser: linked views, downloads, offline, at the size of a large study.

Skipped, visibly, where there is no Chromium or no playwright; OPBYTE_CHROMIUM names another one.
"""

import csv
import itertools
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from budgets import budgeted

from opbyte.sweeps.budget import contest
from opbyte.sweeps.report import report
from opbyte.sweeps.store import open_results

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
EVIL = "<script>document.title='run'</script>"
READY = "html[data-ready]"


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium of the system."""
    given = os.environ.get("OPBYTE_CHROMIUM")
    found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on PATH: install it (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Seen:
    """A page, and what it tried and complained of."""

    page: object
    requests: list = field(default_factory=list)
    complaints: list = field(default_factory=list)

    def run(self, script, argument=None):
        return self.page.evaluate(script, argument)

    def drag(self, canvas, start, end):
        """Drag on a canvas, between positions in it."""
        target = self.page.locator(canvas)
        target.scroll_into_view_if_needed()
        box = target.bounding_box()
        mouse = self.page.mouse
        mouse.move(box["x"] + start[0], box["y"] + start[1])
        mouse.down()
        mouse.move(box["x"] + end[0], box["y"] + end[1], steps=2)
        mouse.up()
        self.run("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")

    def selected(self):
        """Return the positions of the selected points, in the order of the store."""
        return self.run("() => opbyteReport.chosen")

    def rows(self):
        """Return the shown table as texts."""
        return [r.split("\t") for r in self.page.locator("#table tbody tr").all_inner_texts()]

    def picture(self, canvas):
        return self.run("(id) => document.querySelector(id).toDataURL()", canvas)


def opened(browser, path):
    """Open a page with the network off; whatever it asks for beyond itself is kept."""
    context = browser.new_context(
        viewport={"width": 1200, "height": 900}, accept_downloads=True, offline=True
    )
    seen = Seen(context.new_page())
    own = path.resolve().as_uri()

    def watch(route):
        if route.request.url == own:
            route.continue_()
        else:
            seen.requests.append(route.request.url)
            route.abort()

    context.route("**/*", watch)
    seen.page.on("console", lambda m: seen.complaints.append(m.text))
    seen.page.on("pageerror", lambda e: seen.complaints.append(str(e)))
    seen.page.goto(own)
    return seen


def stored(folder, frame, study, axes):
    """Write results as a finished sweep leaves them."""
    (folder / "points").mkdir(parents=True)
    meta = {
        "name": study["name"], "key": "k", "code": "c", "study": study, "axes": axes, "units": {},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(meta))
    frame.to_parquet(folder / "points" / "part-0.parquet", index=False)
    return folder


def hostile():
    """Three axes and two objectives; names, values and reasons that would break a careless page."""
    rows = []
    names = [EVIL, 'say "when", & go', "plain"]
    for i, (name, batch, rate) in enumerate(
        itertools.product(names, [1, 2, 4, 8, 16], [0.8e12, 1.6e12, 2.4e12, 3.2e12])
    ):
        fits = batch < 16 or rate < 3e12
        rows.append(
            {
                "point": 2**60 + i,
                "mapping": name,
                "workload.batch": batch,
                "machine.hbm.phy.bandwidth": rate,
                "tokens_per_s": batch * rate / 3e9 * (1 + len(name) / 100) if fits else np.nan,
                "joules_per_token": 0.1 / batch + rate / 7e13 if fits else np.nan,
                "status": "ok" if fits else "infeasible",
                "reason": "" if fits else "</script> does\nnot fit, \"ever\" & 'ever'",
            }
        )
    return pd.DataFrame(rows)


HOSTILE = {
    "name": "hostile",
    "description": "<img src=x onerror=\"document.title='run'\">",
    "objectives": {"tokens_per_s": "max", "joules_per_token": "min"},
    "axes": {"mapping": {"values": [EVIL]}},
}
AXES = ["mapping", "workload.batch", "machine.hbm.phy.bandwidth"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = stored(tmp_path_factory.mktemp("hostile") / "r", hostile(), HOSTILE, AXES)
    report(found)
    return found


@pytest.fixture
def seen(browser, folder):
    found = opened(browser, folder / "report.html")
    found.page.wait_for_selector(READY, state="attached")
    yield found
    found.page.context.close()
    assert found.complaints == []
    assert found.requests == []


def downloaded(seen, button, tmp_path):
    with seen.page.expect_download() as waiting:
        seen.page.click(button)
    path = tmp_path / "points.csv"
    waiting.value.save_as(path)
    return path


def same(path, frame):
    """Compare a CSV file with the store: every column, every row, every bit."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == list(frame)
    assert len(rows) == len(frame)
    for name, texts in zip(head, zip(*rows, strict=True), strict=True):
        column = frame[name].to_numpy()
        if column.dtype.kind == "f":
            back = np.array([float(t or "nan") for t in texts])
            assert np.array_equal(back, column, equal_nan=True), name
        else:
            kind = int if column.dtype.kind == "i" else str
            assert [kind(t) for t in texts] == column.tolist(), name


def test_names_are_shown_and_never_run(seen):
    text = seen.page.inner_text("body")
    assert EVIL in text
    assert "<img src=x" in text
    assert seen.page.title().startswith("hostile")
    assert seen.page.locator("img[src=x]").count() == 0
    assert EVIL in seen.page.inner_text("#table")
    assert EVIL in seen.page.inner_text("#legend")


def test_the_download_is_the_store(seen, folder, tmp_path):
    same(downloaded(seen, "#csv-all", tmp_path), open_results(folder).frame())


def test_a_rectangle_selects_the_same_points_everywhere(seen, folder, tmp_path):
    frame = open_results(folder).frame()
    before = seen.picture("#parallel")
    assert seen.page.inner_text("#count") == "all 60 points"
    place = seen.run("() => { const s = opbyteReport.scatter; return [s.width, s.height]; }")
    seen.drag("#scatter-over", (0.45 * place[0], 0.15 * place[1]), (0.7 * place[0], 0.6 * place[1]))
    box = seen.run(
        "() => { const { brush: b, x, y } = opbyteReport.scatter;"
        " return [x.value(b.u0), x.value(b.u1), y.value(b.v0), y.value(b.v1)]; }"
    )
    x, y = frame["tokens_per_s"], frame["joules_per_token"]
    inside = frame[(x >= box[0]) & (x <= box[1]) & (y >= box[2]) & (y <= box[3])]
    assert 3 < len(inside) < 40
    assert seen.selected() == inside.index.tolist()
    assert seen.page.inner_text("#count") == f"{len(inside)} of 60 points selected"
    shown = seen.rows()
    assert len(shown) == min(len(inside), 20)
    assert {r[0] for r in shown} <= set(inside["mapping"])
    assert seen.picture("#parallel") != before, "the other view is drawn anew"
    chosen = inside.reset_index(drop=True)
    same(downloaded(seen, "#csv-selected", tmp_path), chosen)
    # A click without a drag selects all again.
    seen.drag("#scatter-over", (100, 100), (100, 100))
    assert seen.page.inner_text("#count") == "all 60 points"
    assert seen.picture("#parallel") == before


def test_a_stretch_of_an_axis_selects_and_both_views_combine(seen, folder):
    frame = open_results(folder).frame()
    before = seen.picture("#scatter")
    at = seen.run(
        "() => { const p = opbyteReport.parallel;"
        " const k = p.axes.findIndex((a) => a.column.name === 'workload.batch');"
        " const scale = p.axes[k].scale;"
        " return [p.across(k), p.down(scale.at(6)), p.down(scale.at(20))]; }"
    )
    seen.drag("#parallel-over", (at[0], at[1]), (at[0], max(at[2], 47)))
    wanted = frame[frame["workload.batch"] >= 8]
    assert seen.selected() == wanted.index.tolist()
    assert {r[1] for r in seen.rows()} == {"8", "16"}
    assert seen.picture("#scatter") != before
    seen.page.check("#front-only")
    seen.page.wait_for_selector("#table tbody tr.front")
    seen.run("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")
    rows = seen.page.locator("#table tbody tr")
    assert rows.count() == seen.page.locator("#table tbody tr.front").count() < len(wanted)
    seen.page.click("#clear")
    seen.run("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")
    assert seen.page.inner_text("#count") == "all 60 points"


def test_axes_colours_columns_and_order_can_be_chosen(seen):
    before = seen.picture("#scatter")
    seen.page.select_option("#x-axis", "workload.batch")
    seen.page.select_option("#color", "machine.hbm.phy.bandwidth")
    seen.page.wait_for_function("document.querySelector('#legend').textContent.includes('TB/s')")
    seen.run("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")
    assert seen.picture("#scatter") != before
    seen.page.click("#table th button >> text=Throughput")
    first = [r[3] for r in seen.rows()]
    numbers = [float(t.split()[0].replace(",", "")) for t in first]
    assert numbers == sorted(numbers)
    seen.page.click("#table th button >> text=Throughput")
    assert float(seen.rows()[0][3].split()[0].replace(",", "")) > numbers[0]
    seen.page.click("summary >> text=Columns of the table")
    seen.page.check("#table-columns input[value=reason]")
    seen.page.wait_for_selector("#table th button >> text=Reason")
    seen.page.check("#table-columns input[value=point]")
    seen.page.wait_for_selector("#table th button >> text=Point")
    points = {int(r[0].replace(",", "")) for r in seen.rows()}
    assert points <= set(range(2**60, 2**60 + 60)), "ids above 2^53 are shown to the digit"


def test_pointing_at_a_design_tells_its_settings(seen):
    row = seen.run("() => opbyteReport.frontRows[0]")
    x, y = seen.run("(row) => opbyteReport.scatter.place(row)", row)
    target = seen.page.locator("#scatter-over")
    target.scroll_into_view_if_needed()
    target.hover(position={"x": x, "y": y})
    seen.page.wait_for_selector("#tip", state="visible")
    text = seen.page.inner_text("#tip")
    assert text.startswith("on the front")
    assert "Batch size: " in text


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """100,000 points with 12 metrics that no two points share."""
    rng = np.random.default_rng(0)
    rows = 100_000
    axes = {
        "mapping.fusion": np.array(["none", "layer"], dtype=object)[rng.integers(0, 2, rows)],
        "workload.batch": 2.0 ** rng.integers(0, 9, rows),
        "machine.hbm.phy.bandwidth": rng.choice(np.linspace(0.8e12, 4e12, 200), rows),
    }
    speed = axes["workload.batch"] ** 0.7 * axes["machine.hbm.phy.bandwidth"] / 1e9
    metrics = {f"metric_{i}": rng.random(rows) for i in range(10)}
    metrics |= {
        "tokens_per_s": speed * rng.lognormal(0, 0.1, rows),
        "joules_per_token": rng.lognormal(0, 0.5, rows) / axes["workload.batch"] ** 0.5,
    }
    frame = pd.DataFrame({"point": np.arange(rows), **axes, **metrics})
    frame = frame.assign(status="ok", reason="")
    study = {
        "name": "large",
        "objectives": {"tokens_per_s": "max", "joules_per_token": "min"},
    }
    folder = stored(tmp_path_factory.mktemp("large") / "r", frame, study, list(axes))
    return report(folder, designs=False), folder


def test_a_page_of_a_hundred_thousand_points_is_light_and_soon_interactive(
    browser, large, tmp_path
):
    page, folder = large
    assert page.shown == page.points == 100_000
    assert page.size <= 15e6
    times = []
    for _ in range(3):
        seen = opened(browser, page.path)
        seen.page.wait_for_selector(READY, state="attached")
        # Milliseconds from the start of the navigation until every view is drawn and answers.
        times.append(float(seen.page.get_attribute("html", "data-ready")))
        if len(times) < 3:
            seen.page.context.close()
    assert min(times) <= 3000
    seen.drag("#scatter-over", (300, 60), (500, 200))
    assert "of 100,000 points selected" in seen.page.inner_text("#count")
    same(downloaded(seen, "#csv-all", tmp_path), open_results(folder).frame())
    assert seen.complaints == []
    assert seen.requests == []
    seen.page.context.close()


def test_without_a_front_and_without_points_pages_open_in_silence(browser, tmp_path):
    failed = hostile().assign(tokens_per_s=np.nan, joules_per_token=np.nan, status="failed")
    one = {**HOSTILE, "objectives": {"tokens_per_s": "max"}}
    none = stored(tmp_path / "none", hostile(), HOSTILE, AXES)
    for part in (none / "points").iterdir():
        part.unlink()
    folders = [
        none,
        stored(tmp_path / "failed", failed, HOSTILE, AXES),
        stored(tmp_path / "one", hostile(), one, AXES),
    ]
    for folder in folders:
        seen = opened(browser, report(folder, designs=False).path)
        if folder is not none:
            seen.page.wait_for_selector(READY, state="attached")
            assert seen.page.inner_text("#count") == "all 60 points"
        assert (seen.complaints, seen.requests) == ([], [])
        seen.page.context.close()


def test_a_page_is_readable_at_the_width_of_a_telephone(browser, folder):
    seen = opened(browser, Path(folder / "report.html"))
    seen.page.set_viewport_size({"width": 420, "height": 800})
    seen.page.wait_for_selector(READY, state="attached")
    seen.run("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")
    assert seen.run("() => document.documentElement.scrollWidth") <= 420
    seen.page.context.close()


def test_the_contest_within_a_budget_is_read_as_a_table(browser, tmp_path):
    results = budgeted(tmp_path / "out")
    seen = opened(browser, report(tmp_path / "out").path)
    page = seen.page
    assert page.locator("h2", has_text="Within one budget").is_visible()
    found = contest(results)
    rows = [r.split("\t") for r in page.locator("#contest tbody tr").all_inner_texts()]
    assert [row[1] for row in rows] == found["machine"].tolist()
    assert [row[2] for row in rows] == [f"{n}" for n in found["copies"]]
    assert [row[5] for row in rows] == [f"{100 * w:.0f} %" for w in found["wins"]]
    # All of it is seen without scrolling.
    assert seen.run(
        "() => { const box = document.querySelector('#contest').parentElement;"
        " return box.scrollWidth <= box.clientWidth; }"
    )
    assert page.get_by_text("An equal budget is what 10 of h100-sxm-80gb cost").is_visible()
    assert not seen.requests
    assert not seen.complaints
