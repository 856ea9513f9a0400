"""Where the ridge's matrices lie and are multiplied: numpy's BLAS and LAPACK, or torch on a device.

The rest of the room writes its formulas once, with what numpy's arrays and torch's tensors share
(``@``, ``+``, ``*``, ``.T``, slices, ``sum``), and asks a :class:`Backend` for everything else. Arrays that
enter and leave the room are numpy's.

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

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bidsapp.decoding import _lapack
from bidsapp.decoding._products import add_products, largest_eigenvalue

if TYPE_CHECKING:
    import torch

#: An array of the backend's: numpy.ndarray or torch.Tensor.
Matrix = Any
#: Multiplications below which a device is not worth the way there and back (a second of two CPU cores).
DEVICE_WORTH = 1e11


class Backend(Protocol):
    """What differs between numpy and torch.

    Attributes
    ----------
    name : str
    factorises : bool
        Whether Gram matrices are made and factorised here; if not, numpy does that part.
    """

    name: str
    factorises: bool

    def put(self, a: npt.NDArray[Any]) -> Matrix:
        """Bring a numpy array here, of the same dtype."""
        ...

    def take(self, a: Matrix) -> npt.NDArray[Any]:
        """Bring an array back to numpy."""
        ...

    def zeros(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Matrix:
        """Make a matrix of zeros."""
        ...

    def add_products(self, gram: Matrix, block: Matrix, *, of_rows: bool) -> Matrix:
        """Add ``block @ block.T`` (``of_rows``) or ``block.T @ block`` to ``gram``, in place.

        Only the lower triangle of ``gram`` need be right, here and below.
        """
        ...

    def largest_eigenvalue(self, gram: Matrix) -> float:
        """Estimate the largest eigenvalue."""
        ...

    def cholesky(self, gram: Matrix, alpha: float) -> Matrix:
        """Give L, lower triangular, of ``gram + alpha I = L L^T``; ``gram`` is left as it is.

        Raises
        ------
        ValueError
            Where rounding leaves the matrix without one.
        """
        ...

    def solve(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve ``L L^T z = right``."""
        ...

    def solve_lower(self, factor: Matrix, right: Matrix) -> Matrix:
        """Solve ``L z = right``."""
        ...

    def eigh(self, gram: Matrix) -> tuple[Matrix, Matrix]:
        """Give eigenvalues (k,), rising, and eigenvectors (k, k) in columns; ``gram`` may be overwritten."""
        ...


class NumpyBackend:
    """BLAS and LAPACK by numpy, and those of scipy for what takes long (:mod:`bidsapp.decoding._lapack`)."""

    name = "numpy"
    factorises = True

    def put(self, a: npt.NDArray[Any]) -> Matrix:
        """Give the array itself."""
        return a

    def take(self, a: Matrix) -> npt.NDArray[Any]:
        """Give the array itself."""
        return a  # type: ignore[no-any-return]

    def zeros(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Matrix:
        """Make a matrix of zeros, column-major as LAPACK wants it."""
        return np.zeros(shape, dtype=dtype, order="F")

    def add_products(self, gram: Matrix, block: Matrix, *, of_rows: bool) -> Matrix:
        """Add a block's products to the lower triangle (syrk: half the work of a general product)."""
        return add_products(gram, block, of_rows=of_rows)

    def largest_eigenvalue(self, gram: Matrix) -> float:
        """Estimate the largest eigenvalue by power iteration."""
        return largest_eigenvalue(gram)

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

    Parameters
    ----------
    device : {"cpu", "cuda", "mps"}
        With an index where there are several (``cuda:1``).
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
        """Estimate the largest eigenvalue by power iteration, as numpy's does."""
        start = np.random.default_rng(0).normal(size=(gram.shape[0],))
        vector, value = self.put(start).to(gram.dtype), 0.0
        for _ in range(12):
            norm = float(vector.norm())
            if norm == 0:
                return 0.0
            vector = gram @ (vector / norm)
            value = float(vector.norm())
        return value

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

    The CPU is numpy's in every case, so that its results are one machine's own. A device is taken
    where the work is large enough to pay for the way there.

    Parameters
    ----------
    device : str
        As resolved from ``--device``: "cuda" or "mps", else the CPU.
    multiplications : float
        Of the largest product, such as new images x training images x targets.

    Returns
    -------
    Backend
    """
    if device.partition(":")[0] not in ("cuda", "mps") or multiplications < DEVICE_WORTH:
        return NUMPY
    return TorchBackend(device)
