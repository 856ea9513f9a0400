"""Where the ridge's matrices are stored and multiplied: numpy's BLAS and LAPACK, or torch on a device.

The formulas of this package are written once, with what numpy arrays and torch tensors share (``@``, ``+``,
``*``, ``.T``, slices, ``sum``); a :class:`Backend` does the rest. Functions take and return numpy arrays.

========  ==========================================  ============================================
backend   Gram matrix, factor, solutions              products with targets
========  ==========================================  ============================================
numpy     BLAS (syrk, one triangle), LAPACK           BLAS
torch     on the device (CPU, CUDA)                   on the device
torch     numpy, where the device is Apple's MPS:     on the device, float32
          it has neither float64 nor eigenvalues
========  ==========================================  ============================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

from bidsapp.decoding import _lapack

if TYPE_CHECKING:
    import torch

#: An array of the backend: numpy.ndarray or torch.Tensor.
Matrix = Any
#: With fewer multiplications (a second on two CPU cores), copying to a device costs more than it saves.
DEVICE_WORTH = 1e11


class Backend(Protocol):
    """What differs between numpy and torch.

    Attributes
    ----------
    factorises : bool
        Whether Gram matrices are computed and factorised here; if not, numpy does that part.
    """

    name: str
    factorises: bool

    def put(self, a: npt.NDArray[Any]) -> Matrix:
        """Copy a numpy array to the backend, with the same dtype."""

    def take(self, a: Matrix) -> npt.NDArray[Any]:
        """Copy an array back to numpy."""

    def zeros(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Matrix:
        """Make a matrix of zeros."""

    def add_products(self, gram: Matrix, block: Matrix, *, of_rows: bool) -> Matrix:
        """Add ``block @ block.T`` (``of_rows``) or ``block.T @ block`` to ``gram``, in place.

        Here and below, only the lower triangle of ``gram`` needs to be right.
        """

    def largest_eigenvalue(self, gram: Matrix) -> float:
        """Estimate the largest eigenvalue, from below."""

    def cholesky(self, gram: Matrix, alpha: float) -> Matrix:
        """Give L, lower triangular, of ``gram + alpha I = L L^T``; ``gram`` is not changed.

        Raises
        ------
        ValueError
            Where the matrix is not positive definite in this precision.
        """

    def solve(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve ``L L^T z = right``."""

    def solve_lower(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve ``L z = right``."""

    def eigh(self, gram: Matrix) -> tuple[Matrix, Matrix]:
        """Give eigenvalues (k,), ascending, and eigenvectors in columns; ``gram`` may be overwritten."""


def _power_iteration(multiply: Callable[[Matrix], Matrix], start: Matrix, norm: Callable[..., Any]) -> float:
    """Estimate a matrix's largest eigenvalue from below, closely enough to judge its condition."""
    vector = start
    for _ in range(12):
        length = float(norm(vector))
        if length == 0:
            return 0.0
        vector = multiply(vector / length)
    return float(norm(vector))


class NumpyBackend:
    """numpy's BLAS and LAPACK, and scipy's for long calls (:mod:`bidsapp.decoding._lapack`)."""

    name = "numpy"
    factorises = True

    def put(self, a: npt.NDArray[Any]) -> Matrix:
        """Give the array itself."""
        return a

    def take(self, a: Matrix) -> npt.NDArray[Any]:
        """Give the array itself."""
        return a  # type: ignore[no-any-return]

    def zeros(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Matrix:
        """Make a matrix of zeros, column-major as LAPACK needs it."""
        return np.zeros(shape, dtype=dtype, order="F")

    def add_products(self, gram: Matrix, block: Matrix, *, of_rows: bool) -> Matrix:
        """Add a block's products to the lower triangle (syrk: half the work of a general product)."""
        return _lapack.add_syrk(gram, block, of_rows=of_rows)

    def largest_eigenvalue(self, gram: Matrix) -> float:
        """Estimate the largest eigenvalue by power iteration."""
        symv = blas.ssymv if gram.dtype == np.float32 else blas.dsymv
        start = np.random.default_rng(0).normal(size=(gram.shape[0],)).astype(gram.dtype)
        return _power_iteration(lambda v: symv(1.0, gram, v, lower=1), start, np.linalg.norm)

    def cholesky(self, gram: Matrix, alpha: float) -> Matrix:
        """Factorise ``gram + alpha I``."""
        shifted = gram.copy(order="F")
        shifted[np.diag_indices_from(shifted)] += alpha
        try:
            return _lapack.cholesky(shifted)
        except np.linalg.LinAlgError as error:
            raise ValueError(f"alpha {alpha:g} is too small: {error}") from error

    def solve(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve by both triangles."""
        return _lapack.solve_cholesky(factor, right)

    def solve_lower(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve by the lower triangle."""
        return _lapack.solve_lower(factor, right)

    def eigh(self, gram: Matrix) -> tuple[Matrix, Matrix]:
        """Decompose by LAPACK's divide and conquer."""
        return _lapack.eigh(gram)


class TorchBackend:
    """Torch's linear algebra on one device.

    ``device`` is "cpu", "cuda" or "mps", with an index where there are several (``cuda:1``).
    """

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._float32, self._float64 = torch.float32, torch.float64
        self.name = f"torch on {device}"
        self.factorises = self._device.type != "mps"

    def put(self, a: npt.NDArray[Any]) -> torch.Tensor:
        """Copy to the device (on the CPU, writable arrays are shared)."""
        import torch

        return torch.from_numpy(a if a.flags.writeable else a.copy()).to(self._device)

    def take(self, a: Matrix) -> npt.NDArray[Any]:
        """Copy from the device."""
        return a.cpu().numpy()  # type: ignore[no-any-return]

    def zeros(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> torch.Tensor:
        """Make a matrix of zeros."""
        import torch

        kind = self._float64 if dtype == np.float64 else self._float32
        return torch.zeros(shape, dtype=kind, device=self._device)

    def add_products(self, gram: Matrix, block: Matrix, *, of_rows: bool) -> Matrix:
        """Add a block's products, to both triangles."""
        return gram.addmm_(block, block.T) if of_rows else gram.addmm_(block.T, block)

    def largest_eigenvalue(self, gram: Matrix) -> float:
        """Estimate the largest eigenvalue by power iteration."""
        import torch

        start = self.put(np.random.default_rng(0).normal(size=(gram.shape[0],))).to(gram.dtype)
        return _power_iteration(lambda v: gram @ v, start, torch.linalg.vector_norm)

    def cholesky(self, gram: Matrix, alpha: float) -> Matrix:
        """Factorise ``gram + alpha I``."""
        import torch

        shifted = gram.clone()
        shifted.diagonal().add_(alpha)
        lower, failed = torch.linalg.cholesky_ex(shifted)
        if int(failed):
            raise ValueError(f"alpha {alpha:g} is too small: the matrix is not positive definite")
        return lower

    def solve(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve by both triangles."""
        import torch

        return torch.cholesky_solve(right, factor)

    def solve_lower(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve by the lower triangle."""
        import torch

        return torch.linalg.solve_triangular(factor, right, upper=False)

    def eigh(self, gram: Matrix) -> tuple[Matrix, Matrix]:
        """Decompose on the device."""
        import torch

        values, vectors = torch.linalg.eigh(gram)
        return values, vectors


NUMPY = NumpyBackend()


def choose_backend(device: str, multiplications: float) -> Backend:
    """Choose where to compute.

    On the CPU it is always numpy. A device is chosen where the work is large enough to pay for copying.

    Parameters
    ----------
    device : str
        As resolved from ``--device``: "cuda" or "mps", else the CPU.
    multiplications : float
        Of the largest product, such as new images x training images x targets.
    """
    if device.partition(":")[0] not in ("cuda", "mps") or multiplications < DEVICE_WORTH:
        return NUMPY
    return TorchBackend(device)
