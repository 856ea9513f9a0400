"""Make the README's picture from a finished demo: stimuli, first stage and reconstructions.

python tools/demo_picture.py DEMO_DIR docs/images/demo.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, GAP, N_IMAGES = 128, 4, 7


def main(demo: Path, out: Path) -> None:
    """Show a random sample of sub-01's test images, drawn without looking at any score."""
    func = demo / "out" / "sub-01" / "func"
    found = sorted(func.glob("*_desc-recon_image.png"))
    chosen = np.random.default_rng(0).choice(len(found), N_IMAGES, replace=False)
    height, width = 3 * (SIDE + GAP) - GAP, N_IMAGES * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    for column, index in enumerate(sorted(chosen)):
        recon = found[index]
        stimulus = recon.name.split("_stim-")[1].split("_")[0]
        rows = [
            demo / "bids" / "stimuli" / f"stim-{stimulus}_image.png",
            recon.with_name(recon.name.replace("desc-recon", "desc-vdvae")),
            recon,
        ]
        for row, path in enumerate(rows):
            image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(image, (column * (SIDE + GAP), row * (SIDE + GAP)))
    sheet.save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
