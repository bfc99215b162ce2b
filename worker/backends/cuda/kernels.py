"""The U-Net's kernels for a GPU, in Triton. worker/backends/cuda/layers.py launches them.

Images lie in memory as (B, H, W, C). A sum is made in the order of its layer's weights, and nothing
in it depends on how many images there are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolution(
    x, weight, bias, features, added, first, second, out,
    M, N, across, H, W, height, width, features_stride,
    C: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, UP: tl.constexpr,
    FEATURES: tl.constexpr, ADDED: tl.constexpr, SOURCES: tl.constexpr, PLANES: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute one tile: ROWS of the M positions of all images, COLUMNS of the N channels.

    A row of the weights is `across` long.
    """
    program, tiles = tl.program_id(0), tl.cdiv(N, COLUMNS)
    m = (program // tiles) * ROWS + tl.arange(0, ROWS)
    n = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    image, place = m // (height * width), m % (height * width)
    k = tl.arange(0, DEPTH)
    top, left = (place // width) * STRIDE - PAD, (place % width) * STRIDE - PAD
    parts: tl.constexpr = C // DEPTH
    # steps of the convolution, then of the first source, then of the second
    convolved: tl.constexpr = SIDE * SIDE * parts
    of_first: tl.constexpr = C1 // DEPTH if SOURCES > 0 else 0
    of_second: tl.constexpr = C2 // DEPTH if SOURCES > 1 else 0
    # The sum begins with the bias and not with zeros. If the bias were added to it, Triton would
    # begin a sum of one step with the bias, and add the bias at the end of a longer sum.
    total = tl.broadcast_to(tl.load(bias + n)[None, :], (ROWS, COLUMNS))
    # one loop: NVIDIA's assembler made wrong code of several
    for step in range(convolved + of_first + of_second):
        source = x
        if SIDE == 1:
            inside, here = m < M, m * C + step * DEPTH
        else:
            tap = step // parts
            row, column = top + tap // SIDE, left + tap % SIDE
            inside = (m < M) & (row >= 0) & (row < (H << UP)) & (column >= 0) & (column < (W << UP))
            position = (image * H + (row >> UP)) * W + (column >> UP)
            here = position * C + (step - tap * parts) * DEPTH
        if SOURCES > 0:
            beyond = step >= convolved
            source, inside = tl.where(beyond, first, source), tl.where(beyond, m < M, inside)
            here = tl.where(beyond, m * C1 + (step - convolved) * DEPTH, here)
        if SOURCES > 1:
            beyond = step >= convolved + of_first
            source = tl.where(beyond, second, source)
            here = tl.where(beyond, m * C2 + (step - convolved - of_first) * DEPTH, here)
        a = tl.load(source + here[:, None] + k[None, :], inside[:, None], 0.0)
        w = tl.load(weight + (step * DEPTH + k)[:, None] * across + n[None, :])
        total = tl.dot(a, w, total, input_precision=PRECISION)
    inside = (m < M)[:, None] & (n < N)[None, :]
    if FEATURES:
        at = image[:, None] * features_stride + n[None, :]
        total += tl.load(features + at, inside, 0.0).to(tl.float32)
    if ADDED:
        total += tl.load(added + m[:, None] * N + n[None, :], inside, 0.0).to(tl.float32)
    if PLANES:
        plane = image[:, None] * N + n[None, :]
        tl.store(out + plane * (height * width) + place[:, None], total, inside)
    else:
        tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), inside)


@triton.jit
def moments(
    first, second, sums, positions,
    C1: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, chunks: tl.constexpr,
    TWO: tl.constexpr, HELD: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Sum a chunk's values, and their squares, into sums (B, chunks, 2, groups)."""
    image, chunk = tl.program_id(0), tl.program_id(1)
    group, part = tl.arange(0, HELD), tl.arange(0, PART)
    width: tl.constexpr = C // GROUPS
    c = (group[:, None] * width + part[None, :])[None, :, :]
    there = ((group < GROUPS)[:, None] & (part < width)[None, :])[None, :, :]
    total = tl.zeros((ROWS, HELD, PART), tl.float32)
    squares = tl.zeros((ROWS, HELD, PART), tl.float32)
    for start in tl.static_range(0, CHUNK, ROWS):
        row = chunk * CHUNK + start + tl.arange(0, ROWS)
        inside = (row < positions)[:, None, None] & there
        at = (image * positions + row)[:, None, None]
        value = _side_by_side(first, second, at, c, inside, C1, C, TWO)
        total += value
        squares += value * value
    here = sums + (image * chunks + chunk) * 2 * GROUPS + group
    tl.store(here, tl.sum(tl.sum(total, 2), 0), group < GROUPS)
    tl.store(here + GROUPS, tl.sum(tl.sum(squares, 2), 0), group < GROUPS)


@triton.jit
def normalise(
    first, second, sums, weight, bias, out, positions, eps,
    C1: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, chunks: tl.constexpr,
    TWO: tl.constexpr, WIDE: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Normalise ROWS positions of one image, whose `moments` are in sums; then apply SiLU."""
    image, c = tl.program_id(0), tl.arange(0, WIDE)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = c < C
    here = sums + image * chunks * 2 * GROUPS + c // (C // GROUPS)
    total = tl.zeros((WIDE,), tl.float32)
    squares = tl.zeros((WIDE,), tl.float32)
    for chunk in range(chunks):
        total += tl.load(here + chunk * 2 * GROUPS, there, 0.0)
        squares += tl.load(here + chunk * 2 * GROUPS + GROUPS, there, 0.0)
    count = positions * (C // GROUPS)
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    scale = tl.load(weight + c, there, 0.0) * tl.rsqrt(variance + eps)
    shift = tl.load(bias + c, there, 0.0) - mean * scale
    at = (image * positions + row)[:, None]
    inside = (row < positions)[:, None] & there[None, :]
    value = _side_by_side(first, second, at, c[None, :], inside, C1, C, TWO)
    value = value * scale[None, :] + shift[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + at * C + c[None, :], value.to(out.dtype.element_ty), inside)


@triton.jit
def _side_by_side(
    first, second, row, c, inside, C1: tl.constexpr, C: tl.constexpr, TWO: tl.constexpr
):
    """Load float32 values of one tensor, or of two side by side; 0 outside."""
    if not TWO:
        return tl.load(first + row * C + c, inside, 0.0).to(tl.float32)
    left = tl.load(first + row * C1 + c, inside & (c < C1), 0.0)
    right = tl.load(second + row * (C - C1) + (c - C1), inside & (c >= C1), 0.0)
    return tl.where(c < C1, left, right).to(tl.float32)


@triton.jit
def patches(x, out, M, C, H, W, K: tl.constexpr, ROWS: tl.constexpr):
    """Write what a 3x3 convolution sees of ROWS of the M positions, K values each."""
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, K)
    image, place = m // (H * W), m % (H * W)
    tap, c = k // C, k % C
    row = (place // W)[:, None] + (tap // 3)[None, :] - 1
    column = (place % W)[:, None] + (tap % 3)[None, :] - 1
    there = (m < M)[:, None] & (tap < 9)[None, :]
    inside = there & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    value = tl.load(x + ((image[:, None] * C + c[None, :]) * H + row) * W + column, inside, 0.0)
    tl.store(out + m[:, None] * K + k[None, :], value.to(out.dtype.element_ty), (m < M)[:, None])
