"""Draw the window in every state (Testing/Output/Slicer) and put the best pictures into Screenshots.

    python Testing/Utilities/update_screenshots.py

Needs the environment of the Slicer tests, and Pillow.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
CHOSEN = {
    "1_ready": "Ready",
    "2_running": "Running",
    "3_registered": "Registered",
    "4_checkerboard": "Checkerboard",
    "12_batch_done": "Batch",
}


def main():
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "Testing/test_slicer_screenshots.py"], cwd=REPOSITORY, check=True
    )
    for source, target in CHOSEN.items():
        picture = Image.open(REPOSITORY / "Testing" / "Output" / "Slicer" / f"{source}.png").convert("RGB")
        # 256 colors: a third of the size, and no eye can tell.
        picture.quantize(256, dither=Image.Dither.NONE).save(
            REPOSITORY / "Screenshots" / f"{target}.png", optimize=True
        )


if __name__ == "__main__":
    main()
