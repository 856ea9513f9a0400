"""Bytes and files of a subject in the work folder, from sizes alone: upper bounds."""

from __future__ import annotations

from collections.abc import Mapping

_FLOAT16, _FLOAT32, _FLOAT64 = 2, 4, 8
_STORED = {"float16": _FLOAT16, "float32": _FLOAT32}
#: Dimensions of a chunk of the targets' store (bidsapp.data.targets): the last one is kept whole.
_CHUNK = 4096
#: Arrays, records and masks of the stages that every run has, and what files have beside their values.
_FILES, _OVERHEAD = 130, 2000
#: Arrays of the ridge for each penalty (bidsapp.pipeline.decoding).
_OF_A_PENALTY = 6


def response_bytes(n_trials: int, n_train: int, n_test: int, n_voxels: int) -> int:
    """Bytes of betas, responses, z-scored responses and the test images' halves."""
    rows = n_trials + 2 * (n_train + n_test) + 2 * n_test
    return (rows * _FLOAT32 + 2 * _FLOAT64 + 2) * n_voxels


def operator_bytes(n_train: int, n_test: int, n_loo: int, n_ladder: int) -> int:
    """Bytes of one penalty's operators: of test images and their halves, held-out rows, and the probes."""
    return (3 * n_test + n_loo + n_ladder + 1) * n_train * _FLOAT32


def target_bytes(n_images: int, dims: Mapping[str, int], stored: Mapping[str, str]) -> int:
    """Bytes of the targets' store, in whole chunks where a target has several.

    Parameters
    ----------
    n_images : int
    dims, stored : mapping of str to int, and to str
        Dimensions of each target, and its number format.
    """
    of_image = (
        _STORED[stored[name]] * (n if n <= _CHUNK else -(-n // _CHUNK) * _CHUNK) for name, n in dims.items()
    )
    return n_images * (sum(of_image) + 128) + 20_000


def latent_bytes(dims: int, n_targets: int, n_train: int, n_test: int, n_ladder: int) -> int:
    """Bytes of the latents of all conditions and of their scores.

    Two conditions have raw and calibrated predictions of all test images, a further one of the ladder's; of
    these images alone are the true and the random ones; the mean is one row. Constants of calibration are
    float64, as are three scores of each dimension.
    """
    rows = 4 * n_test + 4 * n_ladder + 1
    scores = n_targets * n_test * (n_test + n_train) * _FLOAT32
    return dims * (rows * _FLOAT32 + (6 + 3) * _FLOAT64) + scores


def n_files(n_sessions: int, n_penalties: int) -> int:
    """Count the most files that a subject's part has while no optional analysis is asked for."""
    return _FILES + n_sessions + _OF_A_PENALTY * (n_penalties - 1)


def overhead_bytes(n_sessions: int, n_penalties: int) -> int:
    """Bytes of headers and records."""
    return _OVERHEAD * n_files(n_sessions, n_penalties)
