"""Fixtures for the tests of the relevance kernels, among them the same mathematics in float64.

The references share nothing with the twins: contrast is taken from the pixels themselves, tokens
are given one by one.
"""

import heapq

import numpy as np
import pytest


def entropy(features):
    result = []
    for row in features.astype(np.float64):
        if not np.isfinite(row).all():
            result.append(np.nan)
            continue
        p = np.exp(row - np.logaddexp.reduce(row))
        result.append(-sum(x * np.log(x) for x in p if x > 0))
    return np.array(result)


def luminance(image):
    red, green, blue = image.astype(np.float64)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def neighbours(rows, columns, patch, radius):
    """Yield the patches around one, itself included."""
    row, column = divmod(patch, columns)
    for y in range(max(row - radius, 0), min(row + radius + 1, rows)):
        for x in range(max(column - radius, 0), min(column + radius + 1, columns)):
            yield y * columns + x


def patches_of(image, size):
    """Return the luminance of each patch's pixels, and rows and columns of patches."""
    y = luminance(image)
    rows, columns = y.shape[0] // size, y.shape[1] // size
    patches = [
        y[row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(rows)
        for column in range(columns)
    ]
    return patches, rows, columns


def contrast(image, size, radius=1, saturation=0.01):
    patches, rows, columns = patches_of(image, size)
    valid = [bool(np.isfinite(patch).all()) for patch in patches]
    result = []
    for index, patch in enumerate(patches):
        if not valid[index]:
            result.append(np.nan)
            continue
        window = [patches[q] for q in neighbours(rows, columns, index, radius) if valid[q]]
        result.append(np.std(patch) / (np.std(np.concatenate(window)) + saturation))
    return np.array(result)


def similarity(features, query):
    asked = query.astype(np.float64)
    result = []
    for row in features.astype(np.float64):
        finite = np.isfinite(row).all() and np.isfinite(asked).all()
        norms = max(np.linalg.norm(row) * np.linalg.norm(asked), 1e-8)
        result.append(np.dot(row, asked) / norms if finite else np.nan)
    return np.array(result)


def balance(scores, columns, weights=(1.0, 1.0, 1.0), radius=1, inhibition=0.5):
    scores = [np.asarray(score, np.float64) for score in scores]
    patches = len(scores[0])
    valid = [p for p in range(patches) if all(np.isfinite(score[p]) for score in scores)]
    excitation = dict.fromkeys(valid, 0.0)
    for weight, score in zip(weights, scores, strict=True):
        known = score[valid]
        for p in valid:
            z = (score[p] - known.mean()) / np.sqrt(known.var() + 1e-8)
            excitation[p] += weight * z
    result = np.full(patches, np.nan)
    for p in valid:
        around = neighbours(patches // columns, columns, p, radius)
        others = [excitation[q] for q in around if q != p and q in excitation]
        result[p] = excitation[p] - inhibition * (np.mean(others) if others else 0.0)
    return result


def select(values, k):
    order = sorted(
        (p for p in range(len(values)) if not np.isnan(values[p])), key=lambda p: (-values[p], p)
    )
    order = order[:k]
    return np.array(order + [-1] * (k - len(order)))


def tokens(selected, total, least=64, most=400):
    """Give one token at a time, to whoever reaches its next at the lowest level."""
    selected = np.asarray(selected, np.float32)
    valid = [i for i, value in enumerate(selected) if np.isfinite(value)]
    raised = {i: max(selected[i], np.float32(1e-3)) for i in valid}
    largest = max(raised.values(), default=None)
    units = {i: max(int(np.rint(raised[i] / largest * np.float32(2**20))), 1) for i in valid}
    result = np.zeros(len(selected), np.int64)
    result[valid] = least

    def level(i):
        return -(-(int(result[i]) + 1) * 2**20 // units[i])

    waiting = [(level(i), i) for i in valid if least < most]
    heapq.heapify(waiting)
    for _ in range(total - least * len(valid)):
        if not waiting:
            break
        _, i = heapq.heappop(waiting)
        result[i] += 1
        if result[i] < most:
            heapq.heappush(waiting, (level(i), i))
    return result


class Reference:
    """The functions of this file, for tests that cannot import it."""

    entropy = staticmethod(entropy)
    luminance = staticmethod(luminance)
    patches_of = staticmethod(patches_of)
    contrast = staticmethod(contrast)
    similarity = staticmethod(similarity)
    balance = staticmethod(balance)
    select = staticmethod(select)
    tokens = staticmethod(tokens)


@pytest.fixture(scope="session")
def reference():
    return Reference
