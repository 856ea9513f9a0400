"""Long BLAS and LAPACK calls, made without holding Python's global interpreter lock.

scipy's own wrappers (``scipy.linalg``) hold the lock while they compute: no other thread runs, not even the
one that ends a run after SIGTERM (:mod:`bidsapp.system.signals`). Here ctypes, which releases the lock, calls
the same routines of the same library at the addresses that scipy exports (``scipy.linalg.cython_lapack``,
``cython_blas``). Results have the same bits.

All matrices are float32 or float64 and column-major; symmetric ones are given by their lower triangle.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cython_blas, cython_lapack

Array = npt.NDArray[Any]
_MOST = np.iinfo(np.intc).max


@functools.cache
def _routine(name: str) -> Callable[..., None]:
    """Give a routine by its full name, such as ``dpotrf``."""
    module = cython_lapack if name in cython_lapack.__pyx_capi__ else cython_blas
    capsule = module.__pyx_capi__[name]
    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = get_name(capsule)
    n_arguments = signature.count(b",") + 1
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)  # releases the lock
    made: Callable[..., None] = prototype(get_pointer(capsule, signature))
    return made


def _call(name: str, dtype: np.dtype[Any], *arguments: str | int | float | Array) -> int:
    """Call a routine for a dtype, and return the last integer argument, in which LAPACK reports errors.

    Integers are passed as C's ``int``, floats as the dtype, arrays by address.
    """
    kept: list[Any] = []
    info = ctypes.c_int(0)
    for value in arguments:
        if isinstance(value, np.ndarray):
            kept.append(value.ctypes)
        elif isinstance(value, str):
            kept.append(ctypes.create_string_buffer(value.encode()))
        elif isinstance(value, int):
            info = ctypes.c_int(value)
            kept.append(info)
        else:
            kept.append((ctypes.c_float if dtype == np.float32 else ctypes.c_double)(value))
    pointers = [k.data if hasattr(k, "data_as") else ctypes.addressof(k) for k in kept]
    _routine(("s" if dtype == np.float32 else "d") + name)(*pointers)
    return info.value


def _checked(name: str, info: int) -> None:
    if info:
        raise np.linalg.LinAlgError(f"{name} failed ({info})")


def add_syrk(lower: Array, block: Array, *, of_rows: bool) -> Array:
    """Add ``block @ block.T`` (``of_rows``) or ``block.T @ block`` to a lower triangle, in place.

    BLAS's syrk computes only one triangle, which is half the work of a general product.

    Parameters
    ----------
    lower : ndarray, (k, k)
        Values above the diagonal are not changed.
    block : ndarray of the same dtype, C-contiguous
        (k, b) with ``of_rows``, (b, k) without.
    """
    # The transpose of a C-contiguous block is column-major: nothing is copied.
    a = np.asfortranarray(block.T, dtype=lower.dtype)
    c = np.asfortranarray(lower)
    n, k = (a.shape[1], a.shape[0]) if of_rows else a.shape
    if n and k:
        trans = "T" if of_rows else "N"
        _call("syrk", c.dtype, "L", trans, n, k, 1.0, a, a.shape[0], 1.0, c, n)
    return c


def cholesky(a: Array) -> Array:
    """Overwrite the lower triangle of ``a`` (n, n) with its Cholesky factor.

    Raises
    ------
    numpy.linalg.LinAlgError
        Where the matrix is not positive definite.
    """
    a = np.asfortranarray(a)
    n = a.shape[0]
    info = _call("potrf", a.dtype, "L", n, a, max(1, n), 0)
    if info > 0:
        raise np.linalg.LinAlgError(f"{info}-th leading minor of the array is not positive definite")
    _checked("potrf", info)
    return a


def solve_cholesky(factor: Array, right: Array) -> Array:
    """Solve ``L L^T z = right``, (n, m) or (n,)."""
    return _solved("potrs", ("L",), factor, right)


def solve_lower(factor: Array, right: Array) -> Array:
    """Solve ``L z = right``, (n, m) or (n,)."""
    return _solved("trtrs", ("L", "N", "N"), factor, right)


def _solved(name: str, how: tuple[str, ...], factor: Array, right: Array) -> Array:
    dtype = np.result_type(factor, right, np.float32)
    a, b = np.asfortranarray(factor, dtype=dtype), np.array(right, dtype=dtype, order="F")
    n, m = a.shape[0], b.shape[1] if b.ndim == 2 else 1
    if n and m:
        _checked(name, _call(name, dtype, *how, n, m, a, n, b, n, 0))
    return b


def eigh(a: Array) -> tuple[Array, Array]:
    """Decompose a symmetric matrix by divide and conquer; it is overwritten.

    Returns
    -------
    values : ndarray, (n,)
        In ascending order.
    vectors : ndarray, (n, n)
        In columns.

    Raises
    ------
    ValueError
        Where the workspace is larger than LAPACK's integers count (n above 32,000).
    numpy.linalg.LinAlgError
        Where it does not converge.
    """
    a = np.asfortranarray(a)
    n = a.shape[0]
    values = np.empty(n, a.dtype)
    if not n:
        return values, a
    size, whole = np.zeros(1, a.dtype), np.zeros(1, np.intc)
    _checked("syevd", _call("syevd", a.dtype, "V", "L", n, a, n, values, size, -1, whole, -1, 0))
    # Some versions round the size down where float32 cannot hold it: take at least the documented minimum.
    length = max(int(np.nextafter(size[0], size.dtype.type(np.inf))), 1 + 6 * n + 2 * n * n)
    if length > _MOST:
        raise ValueError(f"a matrix of {n} rows is too large for LAPACK's eigenvalue routine")
    work, iwork = np.empty(length, a.dtype), np.empty(max(int(whole[0]), 3 + 5 * n), np.intc)
    info = _call("syevd", a.dtype, "V", "L", n, a, n, values, work, length, iwork, len(iwork), 0)
    _checked("syevd", info)
    return values, a
