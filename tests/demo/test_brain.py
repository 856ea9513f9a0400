"""The simulated brains: where the ROIs are, and that smoothing keeps the variance."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage

from bidsapp.demo.brain import ROI_NAMES, make_brain, smooth, smooth_fields


@pytest.mark.parametrize("subject", ["01", "02", "03"])
def test_rois_are_compact_blobs_inside_the_brain(subject: str) -> None:
    brain = make_brain(0, subject)
    assert set(np.unique(brain.labels)) == {0, 1, 2}
    assert np.all(brain.inside[brain.labels > 0])
    assert not brain.inside.all()
    assert 0.3 < brain.inside.mean() < 0.6
    for number, (roi, patches) in enumerate(zip(ROI_NAMES, (1, 2), strict=True), start=1):
        voxels = brain.voxels(roi)
        assert 650 <= len(voxels) <= 750
        assert np.all(brain.labels[tuple(voxels.T)] == number)
        components, n = scipy.ndimage.label(brain.labels == number)
        largest = np.sort(np.bincount(components.ravel())[1:])[::-1][:patches]
        assert largest.sum() > 0.95 * len(voxels), f"{roi} falls into {n} pieces"
    # The early ROI lies behind the higher one (y grows forwards).
    assert brain.voxels("early")[:, 1].mean() < brain.voxels("higher")[:, 1].mean() - 3


def test_the_affine_turns_and_scales_only() -> None:
    affine = make_brain(0, "01").affine
    assert nib.affines.voxel_sizes(affine) == pytest.approx([3, 3, 3], rel=1e-6)
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    turn = affine[:3, :3] / 3
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-6)
    assert np.array_equal(affine, affine.astype(np.float32))


def test_subjects_differ_and_seeds_repeat() -> None:
    brains = [make_brain(0, s) for s in ("01", "02", "03", "04")]
    assert len({b.shape for b in brains}) > 1
    assert len({len(b.voxels("early")) for b in brains}) > 1
    assert len({b.affine.tobytes() for b in brains}) == 4
    again = make_brain(0, "01")
    assert np.array_equal(again.labels, brains[0].labels)
    assert np.array_equal(again.affine, brains[0].affine)
    assert make_brain(1, "01").affine.tobytes() != again.affine.tobytes()


def test_smoothing_keeps_the_variance_of_white_noise_at_every_voxel() -> None:
    shape = (3, 5, 4)
    n = int(np.prod(shape))
    # Each field is one at one voxel: a voxel's variance is the sum of its squared answers to all.
    impulses = np.eye(n, dtype=np.float32).reshape(n, *shape)
    variance = np.sum(smooth(impulses, 1.3).astype(np.float64) ** 2, axis=0)
    assert variance == pytest.approx(np.ones(shape), abs=1e-5)


def test_smooth_fields_are_alike_nearby_only() -> None:
    fields = smooth_fields(np.random.default_rng(0), (20, 6, 6), 400, width=1.5)[:, :, 3, 3]
    r = np.corrcoef(fields.T)
    # Two Gaussian kernels a distance d apart overlap by exp(-d^2 / (4 width^2)).
    assert r[10, 11] == pytest.approx(np.exp(-1 / 9), abs=0.05)
    assert r[10, 12] == pytest.approx(np.exp(-4 / 9), abs=0.1)
    assert abs(r[2, 17]) < 0.2
