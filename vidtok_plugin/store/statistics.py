"""Mean and standard deviation of the columns of many arrays, without holding more than one in memory."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

RESOLUTION = 1e-7  # of float32, relative: a column that varies less is constant


@dataclass(frozen=True, kw_only=True)
class ColumnStatistics:
    """Mean and standard deviation (a,) float64 of each column; the deviation of a constant column is 1."""

    mean: np.ndarray
    std: np.ndarray


def column_statistics(parts: Iterable[np.ndarray], columns: int) -> ColumnStatistics:
    """The statistics of all rows of some arrays (k, a); means of 0 and deviations of 1 if there are none.

    Parts are merged by Chan's formula (Chan, Golub and LeVeque, 1979), whose rounding errors stay small where the mean
    is far larger than the deviation.

    Example:
        >>> found = column_statistics([np.array([[1.0, 5.0]]), np.array([[3.0, 5.0]])], columns=2)
        >>> found.mean.tolist(), found.std.tolist()
        ([2.0, 5.0], [1.0, 1.0])
    """
    count, mean, squares = 0, np.zeros(columns), np.zeros(columns)
    for part in parts:
        if len(part) == 0:
            continue
        rows = part.astype(np.float64)
        own, total = rows.mean(0), count + len(rows)
        delta = own - mean
        squares = squares + np.square(rows - own).sum(0) + np.square(delta) * count * len(rows) / total
        mean, count = mean + delta * len(rows) / total, total
    std = np.sqrt(squares / max(count, 1))
    return ColumnStatistics(mean=mean, std=np.where(std > RESOLUTION * np.abs(mean), std, 1.0))
