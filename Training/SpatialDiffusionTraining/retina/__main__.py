"""`python -m SpatialDiffusionTraining.retina`."""

from __future__ import annotations

from .files import main

raise SystemExit(main())
