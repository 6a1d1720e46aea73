"""What README and documentation show is run: commands and Python as they stand there, beside files of these names."""

from __future__ import annotations

import re
import shlex
import shutil

import numpy as np
import pytest

from conftest import DEMO, ROOT
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.spatial import geometry, volume_file
from SpatialDiffusionCore.spatial.volume import Grid, Volume, resample

#: Pages with examples; those on training are run by test_training_run.py, those for Slicer by test_slicer_scripting.py.
PAGES = ["README.md", "docs/shell.md", "docs/python.md", "docs/recipes.md", "docs/many.md"]


def blocks(page: str, language: str) -> list:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def coarse(path, spacing=4.0) -> Volume:
    """A volume on voxels of 4 mm, so that examples are quick."""
    volume = volume_file.load(path)
    shape = np.ceil(np.array(volume.shape) * volume.spacing / spacing).astype(int)
    return resample(volume, Grid(volume.shape, volume.voxel_to_ras).with_shape(shape))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder with all files that the examples read: a real brain and a template under several names."""
    folder = tmp_path_factory.mktemp("examples")
    brain, template = coarse(DEMO / "moving_t1_brain.nii.gz"), coarse(DEMO / "fixed_mni152_brain.nii.gz")
    turned = brain.moved(geometry.about(geometry.rotation_about([1, 1, 0], 0.2), brain.center(), [5, 0, 3]))
    for name in ("brain", "visit1", "t1", "ct"):
        volume_file.save(brain, folder / f"{name}.nii.gz")
    for name in ("visit2", "t2"):
        volume_file.save(turned, folder / f"{name}.nii.gz")
    volume_file.save(template, folder / "template.nii.gz")
    for name, volume in (("labels", brain), ("brain_mask", brain), ("atlas_labels", template)):
        inside = (volume.data > 0.3 * volume.data.max()).astype(np.uint8)
        volume_file.save(Volume(inside, volume.voxel_to_ras), folder / f"{name}.nii.gz")
    (folder / "scans").mkdir()
    for name in ("visit1", "visit2"):
        shutil.copy(folder / f"{name}.nii.gz", folder / "scans")
    series = turned.to_nibabel()
    frames = np.stack([turned.data, 0.9 * turned.data], -1)
    type(series)(frames, series.affine).to_filename(folder / "bold.nii.gz")
    return folder


@pytest.fixture
def here(examples, tmp_path, monkeypatch):
    """A copy of the examples' files as the current folder."""
    shutil.copytree(examples, tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path / "examples"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_the_page_runs(page, here, capsys):
    commands = [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    assert commands or page == "docs/python.md"
    for command in commands:
        assert command[0] == "spatial-diffusion", f"{page}: {command} cannot be run here"
        assert main(command[1:]) == 0, f"{page}: {shlex.join(command)}\n{capsys.readouterr().err}"
        for option in ("-o", "--moved", "--report", "--picture", "--inverse"):
            if option in command:
                assert (here / command[command.index(option) + 1]).exists(), command


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_python_on_the_page_runs(page, here):
    found = [block for block in blocks(page, "python") if "SpatialDiffusionRegistration" not in block]
    assert found or page not in ("README.md", "docs/python.md")
    for block in found:
        exec(compile(block, page, "exec"), {"__name__": "__main__"})


def test_the_readme_is_short_and_its_table_is_the_reports():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 200
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = readme.partition("## Measured")[2].partition("## More")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) > 5
    for row in rows:
        assert row in results, f"not in docs/results.md, which the benchmark writes: {row}"


def test_links_between_pages_lead_somewhere():
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf": {page.name}$", site, re.M), page.name
