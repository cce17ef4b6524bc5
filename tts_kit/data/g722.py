"""G.722 at 64 kbit/s, the telephone's wideband code, to samples: ITU-T's integer arithmetic, many files side by side."""

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

RATE = 16_000
BYTES_A_SECOND = 8_000
# of the two bands, low and high: quantizer steps, and what moves and bounds the logarithm of their size
LOW_FINE = np.array(
    [-17, -17, -17, -17, -3101, -2738, -2376, -2088, -1873, -1689, -1535, -1399, -1279, -1170, -1072, -982,
     -899, -822, -750, -682, -618, -558, -501, -447, -396, -347, -300, -254, -211, -170, -130, -91,
     3101, 2738, 2376, 2088, 1873, 1689, 1535, 1399, 1279, 1170, 1072, 982, 899, 822, 750, 682,
     618, 558, 501, 447, 396, 347, 300, 254, 211, 170, 130, 91, 54, 17, -54, -17], np.int32)
LOW_COARSE = np.array([0, -2557, -1612, -1121, -786, -530, -323, -150, 2557, 1612, 1121, 786, 530, 323, 150, 0], np.int32)
HIGH = np.array([-926, -202, 926, 202], np.int32)
LOW_MOVES = np.array([-60, 3042, 1198, 538, 334, 172, 58, -30, 3042, 1198, 538, 334, 172, 58, -30, -60], np.int32)
HIGH_MOVES = np.array([798, -214, 798, -214], np.int32)
HIGHEST = np.array([[18432], [22528]], np.int32)
SHIFTS = np.array([[8], [10]], np.int32)
FRACTIONS = np.array([2048, 2093, 2139, 2186, 2233, 2282, 2332, 2383, 2435, 2489, 2543, 2599, 2656, 2714, 2774, 2834,
                      2896, 2960, 3025, 3091, 3158, 3228, 3298, 3371, 3444, 3520, 3597, 3676, 3756, 3838, 3922, 4008],
                     np.int32)
MIRROR = np.array([3, -11, 12, 32, -210, 951, 3876, -805, 362, -156, 53, -11])
LARGEST = 2 ** 15


def decode(files: Sequence[bytes]) -> list[np.ndarray]:
    """The contents of files as int16 (samples,) each at 16 kHz, two samples for every byte."""
    order = sorted((number for number in range(len(files)) if files[number]), key=lambda number: -len(files[number]))
    lengths = np.array([len(files[number]) for number in order], int)
    codes = np.zeros((lengths.max(initial=0), len(order)), np.int32)
    for lane, number in enumerate(order):
        codes[:lengths[lane], lane] = np.frombuffer(files[number], np.uint8)
    values, bands = np.zeros((2, *codes.shape), np.int32), Bands(len(order))
    lanes = len(order)
    for moment in tqdm(range(len(codes)), desc="decoding", unit=" bytes"):
        if lengths[lanes - 1] == moment:  # the longest come first, so those that have ended are the last
            lanes = int(np.searchsorted(-lengths, -moment))
            bands.keep(lanes)
        values[:, moment, :lanes] = bands.step(codes[moment, :lanes])
    decoded = [np.zeros(0, np.int16)] * len(files)
    for lane, number in enumerate(order):
        decoded[number] = _joined(*values[:, :lengths[lane], lane])
    return decoded


class Bands:
    """What the decoder remembers of the low and the high band of every file; files are the last axis throughout."""

    def __init__(self, files: int):
        self.predicted = np.zeros((2, files), np.int32)
        self.reconstructed = np.zeros((2, files), np.int32)
        self.negative, self.negative_before = np.zeros((2, 2, files), bool)
        self.first_pole, self.second_pole = np.zeros((2, 2, files), np.int32)
        self.differences = np.zeros((6, 2, files), np.int32)
        self.zeros = np.zeros((6, 2, files), np.int32)
        self.zero_part = np.zeros((2, files), np.int32)
        self.logarithm = np.zeros((2, files), np.int32)
        self.scale = np.array([[8], [2]], np.int32).repeat(files, axis=1)

    def keep(self, files: int) -> None:
        """Forget all but the first `files`."""
        for name, state in vars(self).items():
            setattr(self, name, state[..., :files])

    def step(self, codes: np.ndarray) -> np.ndarray:
        """The next value of both bands, (2, files), out of the next byte of each file."""
        low, high = codes & 63, codes >> 6
        values = np.stack((LOW_FINE[low], HIGH[high])) * self.scale >> 10
        coarse = LOW_COARSE[low >> 2] * self.scale[0] >> 10
        spoken = np.clip(values + self.predicted, -LARGEST // 2, LARGEST // 2 - 1)
        self._predict(np.stack((coarse, values[1])))
        moves = np.stack((LOW_MOVES[low >> 2], HIGH_MOVES[high]))
        self.logarithm = np.clip((self.logarithm * 127 >> 7) + moves, 0, HIGHEST)
        shift = (self.logarithm >> 11) - SHIFTS
        self.scale = FRACTIONS[self.logarithm >> 6 & 31] << np.maximum(shift, 0) >> np.maximum(-shift, 0)
        return spoken

    def _predict(self, difference: np.ndarray) -> None:
        """Adapt the two poles and six zeros to `difference` (2, files), and predict the next value with them."""
        negative = self.zero_part + difference < 0
        turned = np.where(negative != self.negative, 1, -1).astype(np.int32)
        lasting = np.where(negative == self.negative_before, 128, -128).astype(np.int32)
        self.negative, self.negative_before = negative, self.negative
        pull = turned * np.clip(self.first_pole, -8191, 8191) >> 5
        self.second_pole = np.clip(pull + lasting + (self.second_pole * 127 >> 7), -12288, 12288)
        limit = 15360 - self.second_pole
        self.first_pole = np.clip((self.first_pole * 255 >> 8) - 192 * turned, -limit, limit)
        agreed = np.where((self.differences ^ difference) < 0, -128, 128) * (difference != 0)
        self.zeros = ((self.zeros * 255 >> 8) + agreed).astype(np.int32)
        self.differences = np.concatenate((2 * difference[None], self.differences[:-1]))
        self.zero_part = (self.differences * self.zeros >> 15).sum(axis=0, dtype=np.int32)
        before, self.reconstructed = self.reconstructed, _clipped(2 * (self.predicted + difference))
        poles = (self.first_pole * self.reconstructed >> 15) + (self.second_pole * before >> 15)
        self.predicted = _clipped(self.zero_part + poles)


def _joined(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Both bands (n,) as (2 n,) samples of the whole, through the mirror filter."""
    even, odd = (np.pad(band, (len(MIRROR) - 1, 0)) for band in (low - high, low + high))
    pairs = np.stack((np.convolve(even, MIRROR, "valid"), np.convolve(odd, MIRROR[::-1], "valid")), axis=1)
    return _clipped(pairs >> 11).astype(np.int16).ravel()


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -LARGEST, LARGEST - 1)
