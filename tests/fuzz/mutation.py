"""Seeded mutations: the same seed gives the same input, on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000000]
ODD_VALUES: list[Any] = [
    None,
    [],
    {},
    "",
    -1,
    0,
    1,
    2**31 - 1,
    2**40,
    1e308,
    float("nan"),
    "9" * 400,
    "NaN",
    "\0",
    [[]],
    [None],
    [{}],
    {"Value": [None]},
    True,
]


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """Input `number`, made of one of the seeds."""
    chance = random.Random(number)  # noqa: S311 - not for secrets
    data = chance.choice(seeds)
    if data[:2] == b"[{" and chance.random() < 0.7:
        return _structure(data, chance)
    spoilt = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        chance.choice(MUTATIONS)(spoilt, chance, seeds)
    return bytes(spoilt)


def _structure(data: bytes, chance: random.Random) -> bytes:
    """JSON that is still JSON."""
    tree = json.loads(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        places = list(_places(tree))
        holder, key = chance.choice(places)
        if chance.random() < 0.15:
            del holder[key]
        else:
            holder[key] = deepcopy(chance.choice(ODD_VALUES))  # the next place may lie in it
        if not tree:
            break
    return json.dumps(tree).encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) of a tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    found = [(tree, key) for key in keys]
    for key in keys:
        if isinstance(tree[key], dict | list):
            found += _places(tree[key])
    return found


Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def _flip(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    """A number of 1, 2 or 4 bytes, of either order, near the start more often."""
    width = chance.choice([1, 2, 4])
    at = int(len(data) * chance.random() ** 3)
    value = chance.choice(INTERESTING) & ((1 << 8 * width) - 1)
    data[at : at + width] = value.to_bytes(width, chance.choice(["little", "big"]))


def _cut(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    del data[at : at + chance.choice([1, 2, 8, 64, 100_000])]


def _double(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = data[at : at + chance.choice([1, 4, 32, 1000])] * chance.choice([1, 2, 50])


def _insert(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.randbytes(chance.choice([1, 2, 4, 16]))


def _splice(data: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    other = chance.choice(seeds)
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other) + 1) :]


MUTATIONS: list[Mutation] = [_flip, _set, _set, _cut, _double, _insert, _splice]
