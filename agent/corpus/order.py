"""The order of training windows: seeded permutations that depend on nothing but their arguments.

Up to `LARGEST_SORTED` windows, numbers are sorted by hashes. Above that, sorting would take seconds and gigabytes an
epoch: there each place is computed alone, by a Feistel network over the next power of two whose results beyond the
length are sent through it again ("cycle walking", Black & Rogaway 2002, "Ciphers with arbitrary finite domains"):
a bijection of range(length) without a table.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LARGEST_SORTED = 2**20
"""The order is part of every result: this number must not change."""
_ROUNDS = 8  # four would pass for random (Luby & Rackoff 1988) with wide halves; halves here have about 11 bits


def permuted(positions: NDArray[np.int64], length: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """What stands at these positions of the permutation of range(length) that (seed, epoch) names."""
    if length <= LARGEST_SORTED:
        return _sorted_order(length, seed, epoch)[positions]
    return feistel(positions, length, key=_key(seed, epoch))


def permutation(length: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(length) by sorting.

    Numbers are sorted by SplitMix64 hashes (Steele, Lea & Flood 2014) of (seed, epoch, number): unlike a
    library's shuffle this cannot change with the version of a library, and the order is part of a result.
    """
    # Hashed again after the seed is mixed in: sorting by `key ^ seed` would only mirror blocks of one order.
    keys = _splitmix64(_splitmix64(np.arange(length, dtype=np.uint64)) ^ _key(seed, epoch))
    return np.argsort(keys, kind="stable")


def feistel(positions: NDArray[np.int64], length: int, *, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A bijection of range(length), each place on its own: time and memory follow the positions, not the length.

    Args:
        positions: in range(length).
        length: at least 2.
        key: one 64-bit word, shape (1,).
    """
    num_bits = max(2, (length - 1).bit_length())
    # Fewer than half of the numbers are beyond the length: few walk on, and every cycle leads back into the range.
    numbers = _rounds(positions.astype(np.uint64), num_bits, key)
    while (beyond := numbers >= length).any():
        numbers[beyond] = _rounds(numbers[beyond], num_bits, key)
    return numbers.astype(np.int64)


def _rounds(numbers: NDArray[np.uint64], num_bits: int, key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Alternately one half is changed by a hash of the other, which can be undone: a bijection of num_bits bits."""
    low_bits = np.uint64(num_bits // 2)
    high, low = numbers >> low_bits, numbers & _mask(num_bits // 2)
    for turn in range(_ROUNDS):
        round_key = _splitmix64(key + np.uint64(turn))
        if turn % 2:
            high = high ^ (_splitmix64(low ^ round_key) & _mask(num_bits - num_bits // 2))
        else:
            low = low ^ (_splitmix64(high ^ round_key) & _mask(num_bits // 2))
    return (high << low_bits) | low


def _mask(num_bits: int) -> np.uint64:
    return np.uint64((1 << num_bits) - 1)


@lru_cache(maxsize=4)  # a batch can straddle two epochs
def _sorted_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = permutation(length, seed=seed, epoch=epoch)
    order.flags.writeable = False
    return order


def _key(seed: int, epoch: int) -> NDArray[np.uint64]:
    return _splitmix64(_splitmix64(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = values + np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2**64, as intended
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
