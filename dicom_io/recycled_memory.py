"""Memory for arrays of one size, used again as soon as nobody holds an array in it."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]


class RecycledMemory:
    """Where one array after the other is made: fresh pages cost half as much as decoding JPEG.

    An array lives as long as itself or any view of it does: only then is its memory given to the
    next one. May be used from several threads.

    Parameters
    ----------
    shape
        Of each array.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._bytes = shape, int(np.prod(shape))
        self._free: list[memoryview] = []

    def array(self) -> UInt8:
        """An array of unknown content."""
        try:
            memory = self._free.pop()
        except IndexError:
            # Not a bytearray: zeros would be written, for milliseconds, with the interpreter held.
            memory = np.empty(self._bytes, np.uint8).data
        # Views of views refer to this array and never to the memory view, which is no array.
        owner = np.frombuffer(memory, np.uint8)
        weakref.finalize(owner, self._free.append, memory).atexit = False
        return owner.reshape(self._shape)
