"""Synthesised anatomies: what they are made of, that they are repeatable, and that training takes them as scans."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.spatial import sampling, volume_file  # noqa: E402
from SpatialDiffusionTraining import anatomies, datasets, scans  # noqa: E402
from SpatialDiffusionTraining.pairs import seeded  # noqa: E402


@pytest.fixture(scope="module")
def made():
    return [anatomies.make(seed, 32) for seed in range(16)]


def test_the_same_seed_makes_the_same_anatomy_and_another_another(made):
    again = anatomies.make(3, 32)
    assert torch.equal(again.labels, made[3].labels) and torch.equal(again.values, made[3].values)
    assert again.size == made[3].size and again.kinds == made[3].kinds
    assert not torch.equal(made[3].labels, made[4].labels)


def test_a_body_with_parts_lies_in_black_air(made):
    for one in made:
        share = (one.labels > 0).float().mean()
        assert 0.07 < share < 0.6 and (one.values[one.labels == 0] == 0).all()
        assert one.values.min() >= 0 and one.values.max() <= 1 and torch.isfinite(one.values).all()
        assert len(one.labels.unique()) >= 4  # air, body, and at least two parts that can be seen
        tissue = one.values[one.labels > 0]
        assert tissue.std() > 0.03
    assert {kind for one in made for kind in one.kinds} == set(anatomies.KINDS)


def test_shapes_are_those_of_their_names():
    generator, points = seeded(5), anatomies._coordinates((40,) * 3, torch.device("cpu"))
    shell = anatomies._shell(generator, points)
    # A shell is hollow: what it encloses along some line is not part of it.
    lines = shell.flatten(1).float()
    assert shell.any() and (lines.diff(dim=0).abs().sum(0) >= 4).any()
    segment = torch.tensor([[[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]])
    far = anatomies._segments(points, segment)
    assert far[20, 20, 20] == pytest.approx(float(points[20, 20, 20, 1:].norm()), abs=1e-6)
    assert far[0, 20, 20] == pytest.approx(float((points[0, 20, 20] - segment[0, 0]).norm()), abs=1e-6)


def test_some_bodies_are_nearly_their_own_mirror_images(made):
    def own(one):
        both = (one.labels > 0) & (one.labels.flip(0) > 0)
        return float((one.labels == one.labels.flip(0))[both].float().mean())

    alike = sorted(own(one) for one in made)
    assert alike[-1] > 0.7 > alike[len(alike) // 4]


def test_sizes_span_two_decades_and_headers_say_them(made):
    sizes = [one.size for one in made]
    assert min(sizes) < 25 and max(sizes) > 100 and all(5 <= size <= 500 for size in sizes)
    for one in made[:4]:
        volume = anatomies.volume_of(one)
        places = np.argwhere(one.labels.numpy() > 0) * volume.spacing
        assert 2 * np.sqrt(places.var(axis=0).sum()) == pytest.approx(one.size, rel=1e-3)
        assert np.allclose(volume.center(), 0, atol=one.spacing)


def test_they_are_scans_like_any_other(tmp_path, capsys):
    assert anatomies.main(["--out", str(tmp_path / "shapes"), "--count", "3", "--edge", "24", "--seed", "7"]) == 0
    found = scans.find_scans(tmp_path / "shapes")
    stored = volume_file.load(found[1])
    assert np.array_equal(stored.data, anatomies.volume_of(anatomies.make(8, 24)).data)
    assert sampling.prepare(stored).tissue_covariance.shape == (3, 3)
    source = datasets.Source("any", 1, found, [])
    cache = datasets.build(tmp_path / "c", [source], {"size": [16] * 3, "spacing": 1.0}, report=lambda text: None)
    assert len(cache.entries) == 3 and not cache.skipped
    # Whatever their size: they fill the grid alike, as registration shows volumes of any kind to a network.
    cache = datasets.build(tmp_path / "s", [source], {"size": [16] * 3, "spacing": 14.0}, report=lambda text: None)
    shares = (cache.read([0, 1, 2]) > 0.1).float().mean((1, 2, 3, 4))
    assert (
        len({entry["size"] for entry in cache.entries}) == 3 and shares.min() > 0.05 and shares.max() < 4 * shares.min()
    )
    first = np.array(cache.entries[0]["to_ras"])
    assert np.linalg.norm(first[:3, 0]) * 2 == pytest.approx(16 * 14 * cache.entries[0]["size"] / 150, rel=1e-3)
    assert anatomies.main(["--out", str(tmp_path), "--count", "0"]) == 2
    assert "--count" in capsys.readouterr().err
