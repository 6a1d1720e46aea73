"""The registrations whose answers are stored: name, moving and fixed volume, options."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import sources as s


@dataclass(frozen=True)
class Case:
    """One registration: sources of its volumes and masks, and the options of ``register``."""

    moving: s.Source
    fixed: s.Source
    options: dict = field(default_factory=dict)
    moving_mask: s.Source | None = None
    fixed_mask: s.Source | None = None


def case(moving: s.Source, fixed: s.Source, *, moving_mask=None, fixed_mask=None, **options) -> Case:
    """A Case; everything else is an option of ``register``."""
    return Case(moving, fixed, options, moving_mask, fixed_mask)


def _undone(axis, degrees: float, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """About the transform that leads a turned volume back, as an initial transform."""
    return np.linalg.inv(s.rotation(axis, degrees, shift))


def _demo() -> dict[str, Case]:
    moving, fixed = s.demo("moving_t1_brain"), s.demo("fixed_mni152_brain")
    tilted = s.turned(moving, (1, 2, 3), 70, (20, -10, 15))
    return {
        "demo": case(moving, fixed),
        "demo-back": case(fixed, moving),
        "demo-turned-rigid": case(tilted, fixed, transform="rigid"),
        "demo-no-network": case(tilted, fixed, steps=0, transform="similarity", modality="any"),
    }


def _brains() -> dict[str, Case]:
    a, b, c = s.data("t1/oasis_1010"), s.data("t1/oasis_1011"), s.data("t1/ds002748_sub-03")
    return {
        "brains": case(a, b),
        "brains-back": case(b, a),
        "brains-two-scanners": case(c, s.data("t1/oasis_1017")),
        "brains-turned-60": case(s.turned(a, (1, 0, 1), 60, (10, 20, -30)), b),
        "brains-turned-120": case(s.turned(c, (1, 1, 1), 120), s.data("t1/ds002748_sub-07"), transform="rigid"),
        "brains-turned-180": case(s.turned(b, (0, 1, 0), 180, (0, 40, 0)), c, transform="similarity"),
        "brains-template-1mm": case(s.data("t1/ds002748_sub-12"), s.data("templates/mni152_t1_brain_1mm")),
        "brains-mirrored": case(s.mirrored(a), b),
        "brains-search-network": case(s.turned(a, (1, 0, 1), 60), b, search="network"),
        "brains-search-none": case(a, b, search=False),
        "brains-search-none-turned": case(s.turned(a, (0, 0, 1), 90), b, search=False),
        "brains-search-screen": case(s.turned(a, (1, 0, 1), 60), b, search="screen"),
        "brains-reference": case(a, b, sampler="reference"),
        "brains-reference-both-ways": case(c, b, sampler="reference", bidirectional=True, polish=True),
        "brains-steps-0": case(a, b, steps=0),
        "brains-steps-2": case(a, b, steps=2),
        "brains-steps-8": case(a, b, steps=8, polish=False),
        "brains-polish-off": case(a, b, polish=False),
        "brains-alone": case(a, b, polish=False, search=False, transform="rigid"),
        "brains-any": case(a, b, modality="any"),
        "brains-told": case(s.turned(a, (0, 1, 1), 45), b, modality="t1-brain"),
        "brains-foundation": case(a, b, model="foundation"),
        "brains-another-seed": case(a, b, seed=5),
    }


def _heads() -> dict[str, Case]:
    a, b, c = s.data("t1/ixi_012"), s.data("t1/ixi_049"), s.data("t1/ds000011_sub-01")
    brain, head = s.data("t1/oasis_1018"), s.data("templates/mni152_t1_2mm")
    return {
        "heads": case(a, b),
        "heads-defaced": case(c, s.data("t1/ds000011_sub-02"), transform="similarity"),
        "heads-two-scanners": case(a, c),
        "heads-turned-90": case(s.turned(c, (0, 0, 1), 90, (30, 0, 0)), a),
        "heads-turned-150": case(s.turned(a, (2, -1, 1), 150), b),
        "heads-template": case(b, head, transform="rigid"),
        "heads-any-screen": case(s.turned(b, (1, 0, 0), 50), head, modality="any", search="screen"),
        "heads-brain-in-head": case(brain, a),
        "heads-head-on-brain": case(s.turned(a, (1, 0, 0), 30), brain),
        "heads-mirrored": case(s.mirrored(a), head),
        "heads-noisy": case(s.noisy(s.turned(a, (0, 1, 0), 25), 0.15), b),
        "heads-thick": case(s.thick(a, 2, 4), s.turned(b, (1, 1, 0), 35)),
        "heads-cropped": case(s.cropped(c, 2, 0.35, 0.85), s.data("t1/ds000011_sub-03")),
        "heads-half": case(s.cropped(a, 2, 0.0, 0.5), b),
        "heads-spoiled": case(s.noisy(s.thick(s.cropped(a, 1, 0.2, 1.0), 2, 3), 0.1), s.turned(b, (1, 2, 0), 100)),
        "heads-moving-mask": case(a, b, moving_mask=s.box(a, (0.2, 0.1, 0.1), (0.8, 0.6, 0.9))),
        "heads-both-masks": case(
            c, brain, moving_mask=s.box(c, (0.1, 0.1, 0.4), (0.9, 0.9, 1.0)), fixed_mask=s.inside(brain)
        ),
        "heads-fixed-mask-turned": case(
            s.turned(b, (0, 0, 1), 70), a, transform="rigid", fixed_mask=s.box(a, (0.1, 0.1, 0.1), (0.9, 0.7, 0.9))
        ),
        "heads-init": case(s.turned(a, (1, 0, 1), 100, (9, 8, 7)), b, init=_undone((1, 0, 1), 93, (5, 12, 2))),
        "heads-init-wrong": case(a, b, init=s.rotation((0, 1, 0), 120)),
        "heads-init-alone": case(
            s.turned(a, (0, 1, 0), 60), b, init=_undone((0, 1, 0), 55), polish=False, transform="similarity"
        ),
    }


def _ct() -> dict[str, Case]:
    ct = {number: s.data(f"ct_head_neck/openkbp_{number}_ct") for number in (24, 25, 26, 27, 28, 29, 30, 33)}
    return {
        "ct": case(ct[24], ct[25]),
        "ct-turned-45": case(s.turned(ct[26], (0, 1, 2), 45, (30, 0, 10)), ct[27], modality="ct-head-neck"),
        "ct-turned-170": case(s.turned(ct[28], (1, 0.2, 0), 170), ct[29], transform="similarity"),
        "ct-screen": case(ct[30], ct[33], search="screen", transform="rigid"),
        "ct-steps-0": case(ct[28], ct[33], steps=0, modality="ct-head-neck"),
        "ct-search-none": case(ct[29], ct[28], search=False),
        "ct-cropped": case(s.cropped(ct[29], 2, 0.3, 0.8), ct[28], modality="ct-head-neck"),
    }


def _contrasts() -> dict[str, Case]:
    multi = {
        name: s.data(f"multi/{name}")
        for name in (
            "adi_t1",
            "adi_t2",
            "openms_01_study1_t1",
            "openms_01_study1_flair",
            "openms_01_study2_t2",
            "openms_03_study2_flair",
        )
    }
    pd, t1, t2 = (s.data(f"templates/{name}") for name in ("avg152_pd_2mm", "mni152_t1_2mm", "mni152_t2_2mm"))
    return {
        "t1-t2": case(multi["adi_t1"], multi["adi_t2"], transform="rigid"),
        "t1-t2-turned": case(s.turned(multi["adi_t1"], (1, 1, 0), 80), multi["adi_t2"], transform="rigid"),
        "t1-flair": case(multi["openms_01_study1_t1"], multi["openms_01_study1_flair"], transform="rigid"),
        "t2-flair-visits": case(multi["openms_01_study2_t2"], multi["openms_01_study1_flair"]),
        "flair-t1-people": case(multi["openms_03_study2_flair"], s.data("t1/ixi_049")),
        "t1-t2-thick-told": case(
            s.data("t1/ds000011_sub-01"),
            s.data("t2/ds000011_sub-01"),
            moving_modality="t1-brain",
            fixed_modality="t2-head-neck",
        ),
        "t2-t2-people": case(s.data("t2/m2208"), s.data("t2/m2307"), modality="t2-head-neck"),
        "pd-t1": case(pd, t1),
        "t2-pd-turned": case(s.turned(t2, (0, 1, 1), 130), pd),
        "t2-necks": case(
            s.data("t2_neck/sct_tutorial_t2_ms"),
            s.data("t2_neck/sct_example_t2"),
            modality="t2-head-neck",
            search="screen",
        ),
    }


def _eyes() -> dict[str, Case]:
    even, odd = s.data("oct/amd01_even"), s.data("oct/amd01_odd")
    first, second = s.eye("first"), s.eye("second")
    return {
        "oct-real": case(even, odd, modality="oct"),
        "oct-real-rigid": case(odd, even, modality="oct", transform="rigid"),
        "oct": case(second, first, modality="oct"),
        "oct-similarity": case(s.eye("third"), first, modality="oct", transform="similarity", polish=False),
        "oct-network": case(s.eye("third"), first, modality="oct", model="foundation", search=False, polish=False),
        "oct-another-eye": case(s.eye("second", number=8), first, modality="oct"),
        "octa": case(s.eye("second", "octa"), s.eye("first", "octa"), modality="octa"),
        "octa-mirrored": case(s.mirrored(s.eye("third", "octa")), s.eye("first", "octa"), modality="octa"),
    }


def _hopeless() -> dict[str, Case]:
    """Slow ones: the search goes on, for as long as nothing convinces."""
    brain = s.data("t1/oasis_1010")
    return {
        "hopeless-noise": case(s.noise((40, 44, 48), 4.0, 3), brain, modality="t1-brain"),
        "hopeless-ct-in-head": case(s.data("templates/ct_head_2mm"), s.data("ct_head_neck/openkbp_30_ct")),
        "doubtful-ct-t1": case(s.data("templates/ct_head_2mm"), s.data("templates/mni152_t1_2mm")),
        "doubtful-ct-t1-screen": case(
            s.turned(s.data("templates/ct_head_2mm"), (0, 0, 1), 60), s.data("templates/mni152_t1_2mm"), search="screen"
        ),
    }


CASES: dict[str, Case] = {
    name: one for group in (_demo, _brains, _heads, _ct, _contrasts, _eyes, _hopeless) for name, one in group().items()
}

#: What the test suite runs: the first on every machine, the others where the development data are.
QUICK = ("demo", "brains-turned-60", "heads-defaced", "ct", "t1-t2", "oct-real")
