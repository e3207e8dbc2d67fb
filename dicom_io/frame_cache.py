"""Compressed frames kept for tiles that come later, by a byte budget."""

from __future__ import annotations

from collections import OrderedDict


class FrameCache:
    """Least recently used frames go first. Used from one thread at a time."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._frames: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._held = 0
        self._seen = 0
        self._seen_bytes = 0

    @property
    def mean_bytes(self) -> float | None:
        """Mean size of the frames put so far."""
        return self._seen_bytes / self._seen if self._seen else None

    def get(self, key: tuple[int, int]) -> bytes | None:
        frame = self._frames.get(key)
        if frame is not None:
            self._frames.move_to_end(key)
        return frame

    def put(self, key: tuple[int, int], frame: bytes) -> None:
        """Keep a frame that is not held yet."""
        self._seen += 1
        self._seen_bytes += len(frame)
        self._frames[key] = frame
        self._held += len(frame)
        while self._held > self._budget:
            _, oldest = self._frames.popitem(last=False)
            self._held -= len(oldest)
