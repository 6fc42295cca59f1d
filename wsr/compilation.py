"""What is compiled, and where is the result kept?"""

from collections.abc import Callable
from typing import Any

Compiled = Callable[..., Any]


def compiled(function: Compiled) -> Compiled:
    """Return the function compiled by numba at its first call, cached on disk if possible."""
    import numba  # here, because importing it takes longer than many a program that imports wsr

    try:
        result: Compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder to cache it in: a read-only installation
        result = numba.njit(nogil=True)(function)
    return result
