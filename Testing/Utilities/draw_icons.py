"""Draw the extension's icon and the Sample Data thumbnails.  Needs Pillow; thumbnails need nibabel and the volumes.

python Testing/Utilities/draw_icons.py
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

REPOSITORY = Path(__file__).resolve().parents[2]
ICONS = REPOSITORY / "SpatialDiffusionRegistration" / "Resources" / "Icons"
ORANGE, BLUE = (255, 149, 43), (43, 125, 214)


def head(size, center, radius, degrees):
    """Outline of a head seen from above (an egg with a nose), as polygon points."""
    points = []
    for step in range(360):
        angle = math.radians(step)
        length = radius * (1 + 0.10 * math.cos(2 * angle) + 0.04 * math.cos(3 * angle))
        length += radius * 0.16 * math.exp(-(((step + 180) % 360 - 180) ** 2) / 60)  # the nose
        turned = angle + math.radians(degrees) - math.pi / 2
        points.append((center[0] + length * math.cos(turned), center[1] + length * math.sin(turned)))
    return points


def stroke(draw, points, color, width):
    """A closed line without the gaps that wide joints have."""
    for start, end in zip(points, points[1:] + points[:1]):
        for part in range(6):
            x, y = (a + (b - a) * part / 6 for a, b in zip(start, end))
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=color)


def icon(size=256):
    """The moving head, blurred copies of it on its way, and the fixed head it comes to rest on."""
    scale = 4
    canvas = Image.new("RGBA", (size * scale, size * scale), (0, 0, 0, 0))
    pixels = size * scale
    end = (0.61 * pixels, 0.60 * pixels)
    steps = 5
    for step in range(steps):
        left = 1 - step / (steps - 1)
        center = (end[0] - 0.20 * pixels * left, end[1] - 0.20 * pixels * left)
        layer = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
        outline = head(pixels, center, 0.285 * pixels, -75 * left)
        stroke(
            ImageDraw.Draw(layer),
            outline,
            (*ORANGE, int(80 + 175 * (1 - left) ** 1.5)),
            pixels * (0.022 + 0.014 * (1 - left)),
        )
        canvas = Image.alpha_composite(canvas, layer.filter(ImageFilter.GaussianBlur(pixels * 0.012 * left)))
    layer = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
    outline = head(pixels, end, 0.335 * pixels, 0)
    stroke(ImageDraw.Draw(layer), outline, (*BLUE, 255), pixels * 0.036)
    return Image.alpha_composite(canvas, layer).resize((size, size), Image.LANCZOS)


def coronal(path, width):
    """Middle coronal slice of a volume, as a gray picture of the given width."""
    import nibabel
    import numpy as np

    image = nibabel.as_closest_canonical(nibabel.load(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    middle = data[:, data.shape[1] // 2, :]
    gray = np.clip(middle / np.percentile(data[data > 0], 99.5), 0, 1) * 255
    picture = Image.fromarray(gray.T[::-1].astype(np.uint8))
    zooms = image.header.get_zooms()
    height = int(width * middle.shape[1] * zooms[2] / (middle.shape[0] * zooms[0]))
    return picture.resize((width, height), Image.BICUBIC)


def thumbnail(volumes, path, size=(260, 280)):
    """Two volumes side by side on black."""
    picture = Image.new("RGB", size, "black")
    draw = ImageDraw.Draw(picture)
    for index, (volume, label, color) in enumerate(zip(volumes, ("moving", "fixed"), (ORANGE, BLUE))):
        if volume is not None:
            slice_ = coronal(volume, size[0] // 2 - 4)
            slice_ = slice_.crop((0, 0, slice_.width, min(slice_.height, size[1] - 40)))
            picture.paste(slice_, (index * size[0] // 2 + 2, (size[1] - 24 - slice_.height) // 2))
        else:
            center = (size[0] * (0.26 + 0.48 * index), size[1] * 0.45)
            outline = head(size[0], center, size[0] * 0.17, -40 if index == 0 else 0)
            draw.line([*outline, outline[0]], fill=color, width=5, joint="curve")
        draw.text(
            (size[0] * (1 + 2 * index) / 4, size[1] - 14),
            label,
            fill=color,
            anchor="mm",
            font=ImageFont.load_default(16),
        )
    picture.save(path, optimize=True)


def main():
    picture = icon()
    picture.save(REPOSITORY / "SpatialDiffusionRegistration.png", optimize=True)
    ICONS.mkdir(parents=True, exist_ok=True)
    picture.resize((128, 128), Image.LANCZOS).save(ICONS / "SpatialDiffusionRegistration.png", optimize=True)
    demo = REPOSITORY / "SpatialDiffusionCore" / "demo"
    thumbnail((demo / "moving_t1_brain.nii.gz", demo / "fixed_mni152_brain.nii.gz"), ICONS / "BrainToTemplate.png")
    thumbnail((None, None), ICONS / "HeadToHead.png")


if __name__ == "__main__":
    main()
