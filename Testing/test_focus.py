"""Where in a volume to look: the network's shape, what a focus changes, and what it brings to whole heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.errors import ModelError  # noqa: E402
from SpatialDiffusionCore.modelfile.card import ModelGrid, ModelPart  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.modelfile.model_cube import (  # noqa: E402
    focused,
    in_common_focus,
    on_model_cube,
    with_focus,
)
from SpatialDiffusionCore.modelfile.safetensors_file import read_weights, save_model  # noqa: E402
from SpatialDiffusionCore.networks.focus import FocusNetwork, _gathered, _scattered, half  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, volume, volume_file  # noqa: E402
from SpatialDiffusionCore.spatial.sampling import prepare  # noqa: E402
from training_fixtures import phantom  # noqa: E402

GRID = ModelGrid((32, 32, 32), 7.0, "canonical")


class Box(torch.nn.Module):
    """Is sure of the part of the cube in which all three voxel indices lie in [low, high), at half the size."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, values):
        out = torch.full_like(half(values), -9.0)
        part = slice(self.low, self.high)
        out[..., part, part, part] = 9.0
        return out


def head():
    scan = phantom(3)
    return on_model_cube(prepare(volume.Volume(np.asarray(scan.dataobj), scan.affine)), "t1-brain", GRID, "cpu")


def test_blocks_go_in_and_come_out_where_they_were():
    values = torch.rand(2, 1, 8, 12, 4)
    assert torch.equal(_scattered(_gathered(values)), values)
    assert torch.equal(_gathered(values)[0, :, 0, 0, 0], values[0, 0, :2, :2, :2].flatten())
    assert FocusNetwork()(torch.rand(1, 1, 32, 24, 16)).shape == (1, 1, 16, 12, 8)


def test_tissue_is_what_lies_in_focus_on_any_grid():
    cube = head()
    found = focused(cube, Box(4, 12))
    inside = found.tissue[0, 0] > 0
    assert 0 < inside.sum() < cube.tissue.sum()
    assert not (inside & ~(cube.tissue[0, 0] > 0)).any()
    places = inside.nonzero()
    assert places.min() >= 7 and places.max() <= 24  # voxels 8 to 23, half a coarse voxel softer
    finer = found.on(cube.grid.with_shape((64, 64, 64))).tissue
    volume_mm3 = finer.sum() / 8
    assert abs(volume_mm3 - inside.sum()) < 0.12 * inside.sum()
    # The focus belongs to the volume: on a grid that was moved it stays where the anatomy is.
    shift = geometry.from_parts(np.eye(3), cube.grid.voxel_to_ras[:3, :3] @ [5, 0, 0])
    moved = found.on(cube.grid.moved(shift)).tissue[0, 0] > 0
    assert torch.equal(moved[:-5], inside[5:])


def test_a_focus_on_nothing_or_on_nearly_everything_is_left_out():
    cube = head()
    assert focused(cube, Box(0, 1)) is None
    assert focused(cube, Box(0, 16)) is cube
    once = focused(cube, Box(4, 12))
    assert focused(once, Box(6, 10)) is once


class Bright(torch.nn.Module):
    """Is sure of the brightest tissue."""

    def forward(self, values):
        return torch.where(half(values) > 0.7, 9.0, -9.0)


def test_a_cube_moves_to_a_focus_that_lies_aside():
    """A body of 400 mm whose bright part lies 70 to 170 mm from its middle; the cube's edges are 224 mm long."""
    data = np.zeros((20, 20, 80), np.float32)
    data[4:16, 4:16] = 100
    data[4:16, 4:16, 54:74] = 250
    body = volume.Volume(data, np.diag([5.0, 5, 5, 1]), "body")
    cube = on_model_cube(prepare(body), "ct-head-neck", GRID, "cpu")
    assert cube.tissue[0, 0, :, :, -1].any()  # the body goes on beyond the cube
    found = focused(cube, Bright())
    middle = cube.grid.voxel_to_ras[:3, :3] @ np.full(3, 15.5) + cube.grid.voxel_to_ras[:3, 3]
    moved = found.grid.voxel_to_ras[:3, :3] @ np.full(3, 15.5) + found.grid.voxel_to_ras[:3, 3]
    assert np.linalg.norm(moved - middle) > 80 and np.linalg.norm(moved - [47.5, 47.5, 317.5]) < 35
    assert float(found.tissue.sum()) * 343 == pytest.approx(12 * 12 * 20 * 125, rel=0.25)
    near = volume.Volume(np.roll(data, -22, axis=2), body.voxel_to_ras, "body")
    still = on_model_cube(prepare(near), "ct-head-neck", GRID, "cpu")
    assert focused(still, Bright()).grid is still.grid


def test_two_volumes_are_in_focus_or_neither_is():
    cubes, some, other = (head(), head()), Box(4, 12), Box(5, 11)

    def chosen(networks, masked=(False, False)):
        return in_common_focus(*(with_focus(*of_one) for of_one in zip(cubes, networks, masked)))

    for cube, network in zip(chosen((some, other)), (some, other)):
        assert torch.equal(cube.focus[0], torch.sigmoid(network(cube.values)))
    for networks in ((some, None), (None, some), (some, Box(0, 1)), (Box(0, 1), some), (None, None)):
        assert all(a is b for a, b in zip(chosen(networks), cubes))
    # A brain without a skull is in focus as it is, and so is what the user masked.
    assert [c.focus is None for c in chosen((some, Box(0, 16)))] == [False, True]
    assert [c.focus is None for c in chosen((some, None), (False, True))] == [False, True]
    assert all(a is b for a, b in zip(chosen((some, other), (True, True)), cubes))


def test_a_model_file_keeps_its_focus(tmp_path):
    model = load_model("retina", "oct", "oct")
    network = FocusNetwork((8, 8, 16))
    focus = ModelPart({"channels": [8, 8, 16], "groups": 4})
    card = replace(model.card, name="with-focus", parts={"focus": focus})
    path = tmp_path / "with-focus.safetensors"
    save_model(path, model.network, card, focus=network)
    assert any(key.startswith("focus.") for key in read_weights(path))
    loaded = load_model(path, "oct", "oct")
    values = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(loaded.focus_on("oct")(values), network.eval()(values))
    assert loaded.focus_on("ct-head-neck") is None  # not what it was trained on
    assert loaded.focus_on("any") is None  # what may be anything may have no such part
    assert load_model("retina", "oct", "oct").focus is None
    save_model(
        path,
        model.network,
        replace(card, parts={"focus": replace(focus, modalities=("octa",))}, agreement={"octa": 0.5}),
        focus=network,
    )
    loaded = load_model(path, "oct", "oct")
    told = [loaded.agreement_from(*keys) for keys in (("octa", "octa"), ("octa", "oct"), ("oct", "oct"))]
    assert told == [0.5, None, None]
    assert loaded.focus_on("oct") is None and loaded.focus_on("octa") is loaded.focus
    other = replace(card, parts={"focus": ModelPart({"channels": [8, 16, 16]})})
    save_model(path, model.network, other, focus=network)
    with pytest.raises(ModelError, match="at8.0.0.weight"):
        load_model(path, "oct", "oct")
    save_model(path, model.network, replace(card, parts={"focus": ModelPart({"colors": 3})}), focus=network)
    with pytest.raises(ModelError, match="entry 'focus' that cannot be built"):
        load_model(path, "oct", "oct")
    save_model(path, model.network, model.card, focus=network)
    with pytest.raises(ModelError, match="does not have"):
        load_model(path, "oct", "oct")


def test_masks_of_the_user_say_where_to_look_instead():
    """A registration inside masks is the same with and without a focus in the model."""
    from SpatialDiffusionCore import register

    scan = phantom(3)
    fixed = volume.Volume(np.asarray(scan.dataobj), scan.affine)
    moving = fixed.moved(geometry.from_parts(geometry.rotation_about([1, 2, 1], 0.2), (4, -3, 6)))
    mask = volume.Volume((fixed.data > np.percentile(fixed.data, 80)).astype(np.uint8), fixed.voxel_to_ras)
    model = load_model("t1-brain", "t1-brain", "t1-brain")
    answers = [
        register(
            moving,
            fixed,
            model=replace(model, focus=network),
            modality="t1-brain",
            fixed_mask=mask,
            moving_mask=mask.moved(moving.voxel_to_ras @ np.linalg.inv(fixed.voxel_to_ras)),
        ).matrix
        for network in (None, Box(8, 24))
    ]
    assert np.array_equal(*answers)


def test_whole_heads_of_two_people_meet_at_their_brains(data_folder, tmp_path):
    """Labelled brains in heads of two held-out people, turned by 90°: the labels overlap as those of bare brains."""
    from Benchmark import cases
    from Benchmark.heads import TASKS
    from SpatialDiffusionCore import register

    arguments = cases.Arguments(data_folder, tmp_path, rotations=(90,), conditions=("head on head",))
    case = TASKS[0].cases(arguments)[2].make()
    measure = TASKS[0].measure(arguments)
    assert case.name == "head on head/oasis_1002-oasis_1005"
    moving, fixed = volume_file.load(case.moving).moved(case.moved), volume_file.load(case.fixed)
    found = register(moving, fixed, modality="t1-brain")
    assert measure(case, found.matrix)["dice"] > 0.585  # 0.575 over the whole heads
    assert (
        found.quality.confidence == "good" and found.quality.spread_mm < 1.1
    )  # "fair" and 1.36 mm over the whole heads
