"""What volumes show is told by their looks: T1 brains and CTs from any pose, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore import modality, register  # noqa: E402
from SpatialDiffusionCore.errors import InputError  # noqa: E402
from SpatialDiffusionCore.modelfile import catalog  # noqa: E402
from SpatialDiffusionCore.modelfile.card import read_card  # noqa: E402
from SpatialDiffusionCore.modelfile.catalog import BUNDLED  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.modelfile.model_cube import model_cube  # noqa: E402
from SpatialDiffusionCore.pipeline import confidence  # noqa: E402
from SpatialDiffusionCore.pipeline.prepared_input import PreparedInput  # noqa: E402
from SpatialDiffusionCore.pipeline.template_check import template_detour  # noqa: E402
from SpatialDiffusionCore.registration import register_many  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, sampling, volume, volume_file  # noqa: E402
from SpatialDiffusionCore.strategies.head_template import HeadTemplate  # noqa: E402
from SpatialDiffusionCore.strategies.recognition import brightness, looks_like_ct  # noqa: E402


def shown(scan) -> str:
    return PreparedInput(scan, None, "cpu").modality


def turned(scan, degrees, axis=(1, -2, 0.5)):
    return scan.moved(geometry.from_parts(geometry.rotation_about(axis, np.radians(degrees)), (12, -30, 8)))


def with_values(scan, change, spacing=1.0):
    return volume.Volume(
        change(np.asarray(scan.data, np.float32)), scan.voxel_to_ras @ np.diag([spacing] * 3 + [1.0]), scan.name
    )


def ct(padding=None):
    """A body of uniform soft tissue with bones and a table, in Hounsfield units, 4 mm voxels; padding: beyond the
    circle.
    """
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in (56, 52, 48)), indexing="ij")
    random = np.random.default_rng(1)
    data = np.full(i.shape, -1000.0)
    data[(i / 0.6) ** 2 + (j / 0.7) ** 2 < 1] = 40
    data[(i / 0.12) ** 2 + ((j + 0.4) / 0.12) ** 2 < 1] = 900
    data[(np.abs(j + 0.8) < 0.03) & (np.abs(i) < 0.7)] = -200
    data += random.normal(0, 12, data.shape)
    if padding is not None:
        data[i**2 + j**2 > 0.98] = padding
    return volume.Volume(data.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]), "ct")


def test_t1_brains_are_recognized_from_any_pose_and_not_in_another_contrast(brains):
    for scan in brains:
        assert [
            shown(turned(scan, degrees, axis))
            for degrees, axis in ((0, (1, 0, 0)), (35, (0.2, 1, 0)), (100, (1, -2, 0.5)), (180, (0, 0.3, 1)))
        ] == ["t1-brain"] * 4
        top = 1.2 * scan.data.max()
        assert shown(with_values(scan, lambda data: np.where(data > 0, top - data, 0))) == "any"
        assert shown(with_values(scan, lambda data: data, spacing=0.1)) == "any"  # as large as a mouse's
        noise = np.random.default_rng(0).random(scan.shape)
        assert shown(with_values(scan, lambda data: noise * (data > 0))) == "any"


def neck(padding=-1024.0, trunk=False):
    """A CT of 5 mm voxels, air padded by a value: head, neck and shoulders, or a trunk, which is as wide everywhere."""
    i, j, k = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (90, 60, 64)), indexing="ij")
    head = (i / 15) ** 2 + (j / 19) ** 2 + ((k - 14) / 17) ** 2 < 1
    shoulders = ((i / 40) ** 2 + (j / 20) ** 2 + ((k + 26) / 16) ** 2 < 1) & (k < -8)
    body = (i / 34) ** 2 + (j / 22) ** 2 < 1 if trunk else head | shoulders | ((i / 11) ** 2 + (j / 11) ** 2 < 1)
    data = np.where(body, 40.0, -1000.0) + np.random.default_rng(4).normal(0, 12, body.shape)
    data[body & ((i / 4) ** 2 + (j / 4) ** 2 < 1)] += 600
    data[(i / 44) ** 2 + (j / 29) ** 2 > 1] = padding
    return volume.Volume(data.astype(np.float32), np.diag([5.0, 5.0, 5.0, 1.0]), "neck")


def test_a_neck_is_recognized_by_its_shape_in_ct_and_a_trunk_or_a_head_is_not():
    assert {shown(neck(padding)) for padding in (-1024, -2000, -3024)} == {"ct-head-neck"}
    turned_neck = neck().moved(geometry.from_parts(geometry.rotation_about([1, 2, 0], 2.0), (30, -80, 10)))
    assert shown(turned_neck) == "ct-head-neck"
    assert (shown(neck(trunk=True)), shown(ct())) == ("any", "any")
    assert looks_like_ct(sampling.prepare(neck(trunk=True)))


def test_a_ct_is_recognized_by_its_uniform_soft_tissue_whatever_surrounds_it(brains):
    alike, black = brightness(sampling.prepare(ct()))
    assert alike > 0.8 and black > 0.95 and looks_like_ct(sampling.prepare(ct()))
    assert max(brightness(sampling.prepare(scan))[0] for scan in brains) < 0.4
    # Half of its tissue alike: enough in black air, not in front of something gray.
    random = np.random.default_rng(2)
    body = with_values(
        ct(),
        lambda data: np.where(
            (data > 0) & (random.random(data.shape) < 0.45), data * random.uniform(0.3, 20, data.shape) + 200, data
        ),
    )
    gray = with_values(body, lambda data: np.where(data < -300, random.uniform(-1000, -700, data.shape), data))
    assert 0.46 < brightness(sampling.prepare(body))[0] < 0.6 and 0.46 < brightness(sampling.prepare(gray))[0] < 0.6
    assert looks_like_ct(sampling.prepare(body)) and not looks_like_ct(sampling.prepare(gray))
    low, high = sampling.prepare(ct()).window
    for padding in (-1024, -2000, -3024):
        prepared = sampling.prepare(ct(padding))
        assert prepared.window[0] == pytest.approx(low, abs=60) and prepared.window[1] == pytest.approx(high, abs=60)
        assert looks_like_ct(prepared)
    # Far below air, but not one value that stands for nothing: a map of something else keeps its range.
    field = ct(-2000).data.copy()
    field[field == -2000] = np.random.default_rng(0).uniform(-4000, -2000, int((field == -2000).sum()))
    assert sampling.prepare(volume.Volume(field, np.eye(4), "field")).window[0] < -3500


def test_who_says_nothing_gets_what_is_got_by_saying_it(brains):
    moving, fixed = turned(brains[0], 70), brains[1]
    told = register(moving, fixed, modality="t1-brain", device="cpu")
    seen = register(moving, fixed, device="cpu")
    assert np.array_equal(told.matrix, seen.matrix) and seen.model == "t1-brain" and seen.quality == told.quality
    assert seen.modality == told.modality == ("t1-brain", "t1-brain")
    assert (seen.recognized, told.recognized) == ((True, True), (False, False))
    assert seen.report()["recognized"] == {"moving": True, "fixed": True}
    assert (seen.kinds(), told.kinds()) == ("T1 brain MRI (recognized)", "T1 brain MRI")
    assert "left and right agree" in seen.quality.summary()
    one = register(moving, fixed, moving_modality="any", fixed_modality="auto", device="cpu", steps=0)
    assert one.modality == ("any", "t1-brain") and one.kinds() == "Any / mixed and T1 brain MRI (recognized)"


def test_a_model_that_was_chosen_says_what_volumes_can_be(brains):
    inverted = with_values(brains[0], lambda data: np.where(data > 0, 1.2 * data.max() - data, 0))
    found = register(inverted, brains[1], model="foundation", steps=0, polish=False, device="cpu")
    assert (found.model, found.modality) == ("foundation", ("any", "t1-brain"))
    base, kinds = read_card(BUNDLED / "retina.safetensors"), (("any", "oct"), ("oct",), ("oct", "octa"))
    both, one, two = (replace(base, modalities=dict.fromkeys(keys, 0)) for keys in kinds)
    assert [card.nearest("oct") for card in (both, one, two)] == ["oct"] * 3
    assert [card.nearest("t1-brain") for card in (both, one, two)] == ["any", "oct", "any"]
    with pytest.raises(InputError, match="There is no model 'nobody'; installed: "):
        register(*brains, model="nobody")


def test_a_list_is_recognized_one_by_one_and_the_fixed_volume_once(brains, monkeypatch):
    from SpatialDiffusionCore.pipeline import prepared_input

    asked, recognized = [], prepared_input.recognized
    monkeypatch.setattr(
        prepared_input,
        "recognized",
        lambda prepared, *more: asked.append(prepared.volume.name) or recognized(prepared, *more),
    )
    inverted = with_values(brains[0], lambda data: np.where(data > 0, 1.2 * data.max() - data, 0))
    found = register_many([brains[0], inverted, brains[0]], brains[1], device="cpu", steps=0)
    assert [result.modality[0] for result in found] == ["t1-brain", "any", "t1-brain"]
    assert {result.modality[1] for result in found} == {"t1-brain"} and asked.count(brains[1].name) == 1
    assert np.array_equal(found[0].matrix, found[2].matrix)


def test_auto_is_for_registering_only():
    assert catalog.get("auto", auto=True) is catalog.get("automatic", auto=True) is modality.AUTO
    with pytest.raises(InputError, match="Unknown modality 'auto'; choose one of: any, t1-brain"):
        catalog.get("auto")


def test_the_way_round_by_the_template_tells_a_wrong_answer(brains):
    """0 to 5 mm for the right one, at least 9 for one that is 25° off, and that is poor, in words."""
    model = load_model(None, "t1-brain", "t1-brain")
    moving, fixed = (model_cube(scan, None, "t1-brain", model.card, "cpu") for scan in brains)
    right = np.linalg.inv(register(*brains, modality="t1-brain", device="cpu").matrix)
    way = template_detour(HeadTemplate.of(model.sides), moving, fixed, right)
    assert way.mm < 5 and way.alike > 0.5 and way.confirms and not way.contradicts
    wrong = right @ geometry.about(geometry.rotation_about([1, 1, 0], 0.44), fixed.prepared.tissue_center, (5, 0, 0))
    way = template_detour(HeadTemplate.of(model.sides), moving, fixed, wrong)
    assert way.contradicts and not way.confirms

    def told_by(detour):
        return {} if detour is None else {"detour_mm": detour.mm, "confirmed": detour.confirmed}

    def said(similarity, **more):
        return confidence.judge(confidence.Quality(0.1, similarity, 1.0, 0.3, **more), geometry.decompose(np.eye(4)))

    contradicted = said(0.4, **told_by(way))
    assert contradicted.confidence == "poor" and f"{way.mm:.1f} mm away" in " ".join(contradicted.warnings)


def test_real_scans_of_every_kind(data_folder):
    """One of each folder: T1 heads and brains, CTs, and what is neither."""
    for name, expected in (
        ("t1/ds000011_sub-01", "t1-brain"),
        ("bench/oasis_1000_t1", "t1-brain"),
        ("templates/colin27_t1", "t1-brain"),
        ("multi/openms_01_study1_t1", "t1-brain"),
        ("bench/openkbp_1_ct", "ct-head-neck"),
        ("templates/ct_head_2mm", "any"),
        ("multi/openms_01_study1_t2", "any"),
        ("multi/openms_01_study1_flair", "any"),
        ("templates/avg152_pd_2mm", "any"),
        ("templates/mni152_t2_2mm", "any"),
    ):
        assert shown(turned(volume_file.load(data_folder / f"{name}.nii.gz"), 60)) == expected, name
