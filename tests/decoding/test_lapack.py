"""Long calls of LAPACK: the bits of scipy's wrappers, and a process that a signal ends meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
from scipy import linalg
from scipy.linalg import blas

from bidsapp.decoding import _lapack


@pytest.fixture(params=["f4", "f8"])
def gram(request: pytest.FixtureRequest) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((70, 90)).astype(request.param)
    return np.asfortranarray(x @ x.T)


def test_the_bits_are_those_of_scipys_wrappers(gram):
    right = np.random.default_rng(1).standard_normal((70, 9)).astype(gram.dtype)
    factor, _ = linalg.cho_factor(gram, lower=True)
    same = np.testing.assert_array_equal
    same(_lapack.cholesky(gram.copy("F")), factor)
    for each in (right, right[:, 0], right.astype("f8")):
        same(_lapack.solve_cholesky(factor, each), linalg.cho_solve((factor, True), each))
        same(_lapack.solve_lower(factor, each), linalg.solve_triangular(factor, each, lower=True))
    for ours, theirs in zip(_lapack.eigh(gram.copy("F")), linalg.eigh(gram, driver="evd"), strict=True):
        same(ours, theirs)
    syrk = blas.ssyrk if gram.dtype == np.float32 else blas.dsyrk
    for of_rows, block in ((True, right), (False, np.ascontiguousarray(right.T))):
        expected = syrk(1.0, block.T, beta=1.0, c=gram, trans=int(of_rows), lower=1)
        same(np.tril(_lapack.add_syrk(gram.copy("F"), block, of_rows=of_rows)), np.tril(expected))


def test_what_was_given_is_left_alone_or_overwritten_as_documented(gram):
    factor, right = _lapack.cholesky(gram.copy("F")), np.ones((70, 2), gram.dtype)
    _lapack.solve_cholesky(factor, right)
    assert (right == 1).all()
    into = gram.copy("F")
    assert _lapack.add_syrk(into, right, of_rows=True) is into
    assert not np.array_equal(into, gram)


def test_a_matrix_without_a_factor_and_none_at_all(gram):
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        _lapack.cholesky(-gram)
    nothing = np.zeros((0, 0), gram.dtype)
    assert _lapack.cholesky(nothing).shape == _lapack.eigh(nothing)[1].shape == (0, 0)
    assert _lapack.solve_cholesky(nothing, np.zeros((0, 3))).shape == (0, 3)


# One call that uses the processor for a minute or so. "go" is printed once it has used a second, however
# busy the machine is: by then nothing but the call can be running. An interpreter that waits for the call
# prints "go" late or never, and reports the end.
CALL = """
import threading, time
import numpy as np
from bidsapp.system import signals
from bidsapp.decoding.backends import NUMPY
gram = np.asfortranarray(np.random.default_rng(0).standard_normal((6000, 6000)))

def report_the_call(start):
    while time.process_time() < start + 1:
        time.sleep(0.02)
    print("go", flush=True)

with signals.ending_cleanly(0.1):
    threading.Thread(target=report_the_call, args=(time.process_time(),), daemon=True).start()
    try:
        NUMPY.eigh(gram)
    finally:
        print("it came to an end", flush=True)
"""


def test_a_signal_ends_a_process_within_a_factorisation():
    process = subprocess.Popen(
        [sys.executable, "-c", CALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert (process.returncode, said) == (143, "")
