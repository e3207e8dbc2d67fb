"""JPEG-LS decoded in child processes, which can be ended.

CharLS, behind every Python package for JPEG-LS, runs through a loop of 2³² steps on some damaged
streams (10–20 s, or without end) with nothing to stop it; the other decoder there is, libjpeg of
pylibjpeg, takes damaged streams for good ones. A child costs 0.3 ms a tile beside 5 ms of decoding.
"""

from __future__ import annotations

import os
import queue
import select
import struct
import subprocess
import sys
import time
from typing import BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SlideProcessDied

UInt8 = NDArray[np.uint8]

START_S = 30.0
# CharLS takes 0.1 s for a megapixel.
DEADLINE_S, DEADLINE_S_PER_MEGAPIXEL = 2.0, 1.0
LENGTH, ANSWER = struct.Struct("<I"), struct.Struct("<?III")

_idle: queue.LifoQueue[_Child] = queue.LifoQueue()


def decode_jpeg_ls(frame: bytes, size_px: tuple[int, int]) -> UInt8:
    """Decode a stream whose header is known to say `size_px`, 3 samples and 8 bit.

    Raises
    ------
    ValueError
        It is damaged.
    SlideProcessDied
        There is no process to decode it in.
    """
    try:
        child = _idle.get_nowait()
    except queue.Empty:
        child = _Child()
    width, height = size_px
    deadline_s = DEADLINE_S + DEADLINE_S_PER_MEGAPIXEL * width * height / 1e6
    try:
        decoded = child.decode(frame, time.monotonic() + deadline_s)
    except (OSError, EOFError, TimeoutError) as error:
        child.end()
        raise ValueError("decoding did not end") from error
    _idle.put(child)
    return decoded


class _Child:
    """One process, for one frame at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "dicom_io.kept_apart"]
        self._process = subprocess.Popen(  # noqa: S603 - this module itself
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        try:
            self._read(1, time.monotonic() + START_S)
        except (OSError, EOFError) as error:  # also a time-out
            self.end()
            raise SlideProcessDied(
                f"The process that decodes JPEG-LS did not begin ({type(error).__name__}): see"
                " whether the machine has too much to do, or too little memory."
            ) from error

    def decode(self, frame: bytes, deadline: float) -> UInt8:
        stdin = self._process.stdin
        if stdin is None:
            raise EOFError
        view = memoryview(LENGTH.pack(len(frame)) + frame)
        while view:
            view = view[stdin.write(view) or 0 :]
        good, *shape = ANSWER.unpack(self._read(ANSWER.size, deadline))
        if not good:
            raise ValueError("CharLS refused it")
        decoded = np.frombuffer(self._read(int(np.prod(shape)), deadline), np.uint8)
        return decoded.reshape(shape)

    def _read(self, size: int, deadline: float) -> bytes:
        stdout = self._process.stdout
        if stdout is None:
            raise EOFError
        found = bytearray()
        while len(found) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise TimeoutError
            part = os.read(stdout.fileno(), size - len(found))
            if not part:
                raise EOFError
            found += part
        return bytes(found)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _serve(asked: BinaryIO, answer: BinaryIO) -> None:
    """Until the parent closes its end, or ends itself."""
    answer.write(b"\0")
    answer.flush()
    while len(head := asked.read(LENGTH.size)) == LENGTH.size:
        frame = asked.read(LENGTH.unpack(head)[0])
        try:
            decoded = imagecodecs.jpegls_decode(frame)
            good = decoded.ndim == 3 and decoded.dtype == np.uint8
        except (ValueError, RuntimeError, TypeError):
            good = False
        answer.write(ANSWER.pack(good, *decoded.shape) if good else ANSWER.pack(False, 0, 0, 0))
        if good:
            answer.write(decoded.tobytes())
        answer.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
