"""The mosaic of the voxels used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bidsapp.data.betas import N_BACKGROUND, background_of
from bidsapp.errors import AppError
from bidsapp.report.mosaic import N_CUTS, Slices, colour_range, cuts, write_mosaic

TURN = np.deg2rad(5)
AFFINE = np.array(
    [
        [-2 * np.cos(TURN), 2 * np.sin(TURN), 0, 12.0],
        [2 * np.sin(TURN), 2 * np.cos(TURN), 0, -14.0],
        [0, 0, 3.0, -9.0],
        [0, 0, 0, 1.0],
    ]
)


def brain() -> tuple[np.ndarray, np.ndarray]:
    """A ball, and a box in it."""
    grid = np.indices((12, 14, 10)) - np.array([5.5, 6.5, 4.5])[:, None, None, None]
    ground = (np.square(grid / np.array([6, 7, 5])[:, None, None, None]).sum(0) < 1).astype(np.float32)
    used = np.zeros(ground.shape, bool)
    used[3:8, 2:6, 3:7] = True
    return used, ground


def green(path: Path) -> int:
    """How many pixels have a colour: the ground is grey, the words nearly so."""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB")).astype(int)
    return int((np.ptp(rgb, axis=2) > 40).sum())


def test_the_voxels_used_are_visible_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    used, ground = brain()
    values = np.where(used, np.linspace(0, 60, used.size).reshape(used.shape), np.nan).astype(np.float32)
    for name in ("a.png", "b.png"):
        write_mosaic(tmp_path / name, Slices(used, AFFINE, ground, values, "Noise ceiling, %"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    write_mosaic(tmp_path / "few.png", Slices(used & (np.arange(12) < 5)[:, None, None], AFFINE, ground))
    write_mosaic(tmp_path / "all.png", Slices(used, AFFINE, ground))
    assert 0 < green(tmp_path / "few.png") < green(tmp_path / "all.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 960
        assert "Software" not in image.info


def test_voxels_without_a_noise_ceiling_are_visible_too(tmp_path: Path) -> None:
    used, ground = brain()
    # All of them at 0, or unknown: the least colour, not no colour.
    for name, value in (("zero", 0.0), ("unknown", np.nan)):
        shown = Slices(used, AFFINE, ground, np.full(used.shape, value, np.float32))
        write_mosaic(tmp_path / f"{name}.png", shown)
    assert green(tmp_path / "zero.png") == green(tmp_path / "unknown.png") > 2000


def test_without_a_background_only_the_mask_is_shown(tmp_path: Path) -> None:
    used, ground = brain()
    write_mosaic(tmp_path / "a.png", Slices(used, AFFINE, np.zeros_like(ground)))
    assert green(tmp_path / "a.png") > 2000


def test_slices_are_where_the_voxels_are() -> None:
    used, _ = brain()
    world = np.argwhere(used) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    for axis in range(3):
        places = cuts(used, AFFINE, axis)
        assert len(places) == N_CUTS
        assert world[:, axis].min() <= places[0] < places[-1] <= world[:, axis].max()
    one = np.zeros_like(used)
    one[3, 3, 3] = True
    assert len(cuts(one, AFFINE, 0)) == 1


@pytest.mark.parametrize(
    ("values", "high"), [([0, 61.0], 60.0), ([73.0], 75.0), ([4.2], 4.5), ([0.0], 1.0), ([np.nan], 1.0)]
)
def test_the_colours_end_at_a_round_number(values: list[float], high: float) -> None:
    assert colour_range(np.asarray(values, np.float32)) == (0.0, pytest.approx(high))


def test_the_background_is_the_mean_size_of_the_first_responses(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(-900, 900, (4, 5, 6, N_BACKGROUND + 5)).astype(np.int16)
    path = tmp_path / "betas.nii.gz"
    nib.Nifti1Image(stored, np.eye(4)).to_filename(path)
    session = SimpleNamespace(betas=path, scale=300.0)
    expected = np.abs(stored[..., :N_BACKGROUND].astype(float)).mean(-1) / 300
    np.testing.assert_allclose(background_of(session, (4, 5, 6)), expected, rtol=1e-5)  # type: ignore[arg-type]
    with pytest.raises(AppError, match="shape"):
        background_of(session, (4, 5, 7))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "tkagg"])
def test_the_backend_of_a_notebook_does_not_matter(tmp_path: Path, backend: str) -> None:
    code = (
        "import os, sys, numpy as np, pathlib\n"
        "from bidsapp.report.mosaic import Slices, write_mosaic\n"
        "used = np.ones((4, 4, 4), bool)\n"
        "write_mosaic(pathlib.Path(sys.argv[1]), Slices(used, np.eye(4), used.astype(np.float32)))\n"
        "print(os.environ['MPLBACKEND'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        env=os.environ | {"MPLBACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{backend}\n", done.stderr
    assert (tmp_path / "a.png").stat().st_size > 1000
