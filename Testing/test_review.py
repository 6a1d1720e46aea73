"""The review page: what is written for a pair, and in headless Chromium what a person sees and does."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from SpatialDiffusionCore import InputError, load
from SpatialDiffusionCore.review import pages
from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume

DEMO = Path(pages.__file__).parents[1] / "demo"

#: Names as they come: quotes, commas, scripts and other alphabets.
ODD = 'söme, "odd" <script>alert(1)</script>.nii.gz'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A page of three pairs and a failure; the likeliest wrong one is fair, and has a probability."""
    path = pages.prepare_folder(tmp_path_factory.mktemp("page") / "review")
    brain = load(DEMO / "fixed_mni152_brain.nii.gz")
    small = Volume(brain.data[::2, ::2, ::2], brain.voxel_to_ras @ np.diag([2, 2, 2, 1]), "template.nii.gz")
    off = geometry.from_parts(np.eye(3), [0, 25, 0])
    for key, name, matrix, facts in (
        ("sub-01", "sub-01.nii.gz", off, {"word": "good", "probability": 0.99, "similarity": 0.61}),
        ("sub-02", ODD, np.eye(4), {"word": "fair", "probability": 0.02, "similarity": 0.2, "warnings": ["Look."]}),
        ("sub-10", "sub-10.nii.gz", off, {"word": "good", "probability": None, "similarity": None}),
    ):
        moving = Volume(small.data, geometry.inverse(off) @ small.voxel_to_ras, name)
        pages.add_pair(path, key, moving, small, matrix, facts)
    pages.add_failure(path, "sub-11", "sub-11.nii.gz", small.name, "sub-11.nii.gz is constant.")
    pages.finish(path, "Four pairs")
    return path


def rows_of(folder: Path) -> list:
    text = (folder / "data.js").read_text()
    return json.loads(text[len("window.REVIEW = ") : -2])["pairs"]


def test_pairs_are_in_the_order_of_the_probability_that_they_are_wrong(folder):
    rows = rows_of(folder)
    assert [row["id"] for row in rows] == ["sub-11", "sub-02", "sub-10", "sub-01"]
    assert [round(row["risk"], 2) for row in rows] == [1.0, 0.98, 0.05, 0.01]


def test_pictures_show_the_pair_before_and_after(folder):
    row = next(row for row in rows_of(folder) if row["id"] == "sub-01")
    for view in row["views"]:
        fixed, moved, before = (
            np.asarray(Image.open(folder / row["figures"][view][state]), float)
            for state in ("fixed", "moved", "before")
        )
        assert fixed.shape == (pages.SIZE, pages.SIZE)
        assert np.corrcoef(fixed.ravel(), moved.ravel())[0, 1] > 0.99
    assert np.corrcoef(fixed.ravel(), before.ravel())[0, 1] < 0.9
    assert Image.open(folder / row["figures"]["thumbnail"]).size == (pages.THUMBNAIL,) * 2


def test_a_fixed_volume_that_pairs_share_is_drawn_once(folder):
    rows = [row for row in rows_of(folder) if row["views"]]
    assert len({row["figures"]["axial"]["fixed"] for row in rows}) == 1
    assert len(list((folder / "figures").iterdir())) == 3 + 3 * (2 * 3 + 1)


def test_nothing_is_fetched_from_elsewhere(folder):
    for name in ("index.html", "review.css", "review.js"):
        text = (folder / name).read_text()
        assert "http://" not in text and "https://" not in text


def test_a_folder_with_other_files_is_refused(tmp_path, folder):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        pages.prepare_folder(tmp_path)
    with pytest.raises(InputError, match="parent exists"):
        pages.prepare_folder(tmp_path / "a" / "b")
    assert pages.prepare_folder(folder) == folder  # a page may be written anew


def test_names_are_safe_and_stay_apart():
    assert pages.safe_name("sub-01_T1w") == "sub-01_T1w"
    odd = [pages.safe_name(text) for text in ("a/b", "a b", "a:b", "../..", "ä")]
    assert len(set(odd)) == 5 and all(set(name) <= set("abcdef0123456789-") for name in odd)


# In the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver (apt-get install chromium chromium-driver)")
    downloads = tmp_path_factory.mktemp("downloads")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1500,950")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    opened = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield SimpleNamespace(driver=opened, downloads=downloads)
    opened.quit()


@pytest.fixture
def page(browser, folder):
    """The page as a person first sees it."""
    driver = browser.driver
    driver.get((folder / "index.html").as_uri())
    driver.execute_script("localStorage.clear()")
    driver.refresh()
    return Page(driver, browser.downloads)


class Page:
    """What a person sees and does."""

    def __init__(self, driver, downloads):
        self.driver, self.downloads = driver, downloads

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        (found,) = self.all(selector)
        return found

    def press(self, keys: str) -> None:
        self.one("body").send_keys(keys)

    @property
    def names(self) -> list:
        return [cell.text for cell in self.all("#rows tr td:nth-child(2)")]

    @property
    def current(self) -> str:
        return self.one("#rows tr[aria-current=true]").get_attribute("data-id")

    def opacity(self) -> float:
        return float(self.all("#planes .top")[0].value_of_css_property("opacity"))

    def wait(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60, 0.05).until(lambda _: condition())


def test_the_likeliest_failure_stands_first_and_names_are_no_scripts(page):
    assert page.names == ["sub-11.nii.gz", ODD, "sub-10.nii.gz", "sub-01.nii.gz"]
    assert page.one("#title").text == "Four pairs"
    assert page.all("tbody script") == []
    page.press("n")
    assert ODD in page.one("#pair").text
    assert [item.text for item in page.all("#warnings li")] == ["Look."]
    assert "P(wrong) 0.980" in page.one("#words").text


def test_columns_sort_both_ways_with_unknown_numbers_last(page):
    page.one("[data-sort=moving]").click()
    assert page.names == [ODD, "sub-01.nii.gz", "sub-10.nii.gz", "sub-11.nii.gz"] or page.names[:3] == [
        "sub-01.nii.gz",
        "sub-10.nii.gz",
        "sub-11.nii.gz",
    ]
    page.one("[data-sort=similarity]").click()
    assert page.names[:2] == ["sub-01.nii.gz", ODD]
    page.one("[data-sort=similarity]").click()
    assert page.names[:2] == [ODD, "sub-01.nii.gz"]


def test_pictures_load_and_the_slider_fades(page):
    page.press("nn")
    pictures = page.all("#planes img")
    assert len(pictures) == 6
    page.wait(lambda: all(page.driver.execute_script("return arguments[0].naturalWidth", p) > 0 for p in pictures))
    assert page.opacity() == 0.5
    slide = "arguments[0].value = 80; arguments[0].dispatchEvent(new Event('input'))"
    page.driver.execute_script(slide, page.one("#slider"))
    assert page.opacity() == pytest.approx(0.8)
    page.press("c")
    assert "conic" in page.all("#planes .top")[0].value_of_css_property("mask-image")
    assert page.opacity() == 1
    page.press("f")
    page.wait(lambda: page.opacity() == 0)
    page.wait(lambda: page.opacity() == 1)
    moved = page.all("#planes .top")[0].get_attribute("src")
    page.press("b")
    assert page.all("#planes .top")[0].get_attribute("src") == moved.replace("moved", "before")


def test_decisions_are_kept_and_exported(page):
    page.press("na")  # the second is accepted, and the third comes
    assert page.current == "sub-10"
    page.press("r")
    assert page.current == "sub-01"
    page.press("p")
    note = page.one("#note")
    note.send_keys('=1+1, "n" a r')
    assert page.current == "sub-10"  # letters of a note are no commands
    page.driver.refresh()
    page.wait(lambda: "1 accepted, 1 rejected, 2 undecided" in page.one("#tally").text)
    page.one("#export").click()
    target = page.downloads / "review.csv"
    page.wait(target.is_file)
    with open(target, encoding="utf-8-sig", newline="") as file:
        table = {row["id"]: row for row in csv.DictReader(file)}
    target.unlink()
    assert table["sub-02"]["decision"] == "accepted" and table["sub-02"]["moving"] == ODD
    assert table["sub-10"]["decision"] == "rejected" and table["sub-10"]["note"] == '\'=1+1, "n" a r'
    assert table["sub-01"]["decision"] == "" and table["sub-01"]["probability"] == "0.99"


def test_other_answers_are_decided_anew(page, folder, tmp_path):
    page.press("na")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    row = json.loads((other / "pairs" / "sub-02.json").read_text())
    (other / "pairs" / "sub-02.json").write_text(json.dumps({**row, "similarity": 0.3}))
    pages.finish(other, "Four pairs")
    page.driver.get((other / "index.html").as_uri())
    page.wait(lambda: "0 accepted" in page.one("#tally").text)


def test_hundreds_of_pictures_wait_until_they_are_seen(page, folder, tmp_path):
    many = tmp_path / "many"
    shutil.copytree(folder, many)
    row = json.loads((many / "pairs" / "sub-01.json").read_text())
    for index in range(400):
        thumbnail = many / "figures" / f"{index}.jpg"
        shutil.copyfile(many / row["figures"]["thumbnail"], thumbnail)
        figures = {**row["figures"], "thumbnail": f"figures/{index}.jpg"}
        (many / "pairs" / f"{index}.json").write_text(json.dumps({**row, "id": f"x{index}", "figures": figures}))
    pages.finish(many, "Many")
    page.driver.get((many / "index.html").as_uri())
    assert len(page.all("#rows tr")) == 404
    loaded = "return performance.getEntriesByType('resource').filter(e => /figures\\/\\d+.jpg/.test(e.name)).length"
    page.wait(lambda: page.driver.execute_script("return document.readyState") == "complete")
    complete = "return [...document.querySelectorAll('td img')].filter(i => i.complete && i.naturalWidth > 0).length"
    assert page.driver.execute_script(complete) < 200, page.driver.execute_script(loaded)
