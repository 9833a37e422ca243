"""The kernels of `model.fused`, in Triton: on a GPU each of them is one pass over its tensors.

This module is only imported where Triton is there and one of them is about to run. Tensors lie as (B, N, M, C); packed
ones have queries, keys and values, or keys and values, side by side in their channels. A program holds heads apart in
a tile of registers, (tokens, heads, channels of a head), so that nothing has to lay them apart in memory. All sums are
in float32, in whatever precision the tensors are. No sum depends on which program is first: equal calls are equal.
"""

import triton
import triton.language as tl


@triton.jit
def keep_factor(seed, query, key, problem, rate):
    """Return 0 for weights that dropout takes, 1 / (1 - rate) for others: what it is follows from seed and place.

    The bits are Philox 4x32-10 at counter (query, key, problem, 0), of which the upper 24 of the first word count.
    """
    zero = (query + key + problem) * 0  # of the shape of all
    bits, _, _, _ = tl.philox(tl.load(seed), query + zero, key + zero, problem + zero, zero)
    return tl.where((bits >> 8).to(tl.float32) * (1.0 / 16777216.0) >= rate, 1.0 / (1.0 - rate), 0.0)


@triton.jit
def attend_tokens_forward(
    packed,  # (sensors, TOKENS, 3 C)
    output,  # (sensors, TOKENS, C)
    seed,
    scale,
    rate,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Let the tokens of one sensor attend to each other, in some heads."""
    C: tl.constexpr = HEADS * WIDTH
    sensor = tl.program_id(0)
    head = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    inner = tl.arange(0, WIDTH_TILE)
    token = tl.arange(0, TOKEN_TILE)
    channel = head[:, None] * WIDTH + inner[None, :]
    there = (head < HEADS)[:, None] & (inner < WIDTH)[None, :]
    tile_there = (token < TOKENS)[:, None, None] & there[None, :, :]
    rows = packed + sensor.to(tl.int64) * (TOKENS * 3 * C)
    place = token[:, None, None] * (3 * C) + channel[None, :, :]
    query = tl.load(rows + place, mask=tile_there, other=0.0).to(tl.float32) * scale
    best = tl.full((TOKEN_TILE, HEAD_TILE), -float("inf"), tl.float32)
    total = tl.zeros((TOKEN_TILE, HEAD_TILE), tl.float32)
    summed = tl.zeros((TOKEN_TILE, HEAD_TILE, WIDTH_TILE), tl.float32)
    for other in range(TOKENS):
        row = rows + other * (3 * C) + channel
        key = tl.load(row + C, mask=there, other=0.0).to(tl.float32)
        value = tl.load(row + 2 * C, mask=there, other=0.0).to(tl.float32)
        score = tl.sum(query * key[None, :, :], axis=2)
        if CAUSAL:
            score = tl.where((token >= other)[:, None], score, -float("inf"))
        highest = tl.maximum(best, score)
        share = tl.exp(best - highest)
        weight = tl.exp(score - highest)
        total = total * share + weight
        if DROPOUT:
            weight *= keep_factor(seed, token[:, None], other, sensor * HEADS + head[None, :], rate)
        summed = summed * share[:, :, None] + weight[:, :, None] * value[None, :, :]
        best = highest
    place = token[:, None, None] * C + channel[None, :, :]
    result = (summed / total[:, :, None]).to(output.dtype.element_ty)
    tl.store(output + sensor.to(tl.int64) * (TOKENS * C) + place, result, mask=tile_there)


@triton.jit
def attend_tokens_backward(
    gradient,  # (sensors, TOKENS, C)
    packed,  # (sensors, TOKENS, 3 C)
    packed_gradient,  # (sensors, TOKENS, 3 C)
    seed,
    scale,
    rate,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Go back through `attend_tokens_forward`: query after query against all keys, whose weights are made anew."""
    C: tl.constexpr = HEADS * WIDTH
    sensor = tl.program_id(0)
    head = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    inner = tl.arange(0, WIDTH_TILE)
    token = tl.arange(0, TOKEN_TILE)
    channel = head[:, None] * WIDTH + inner[None, :]
    there = (head < HEADS)[:, None] & (inner < WIDTH)[None, :]
    tile_there = (token < TOKENS)[:, None, None] & there[None, :, :]
    start = sensor.to(tl.int64) * (TOKENS * 3 * C)
    rows = packed + start
    row_gradients = packed_gradient + start
    gradients = gradient + sensor.to(tl.int64) * (TOKENS * C)
    place = token[:, None, None] * (3 * C) + channel[None, :, :]
    key = tl.load(rows + place + C, mask=tile_there, other=0.0).to(tl.float32)
    value = tl.load(rows + place + 2 * C, mask=tile_there, other=0.0).to(tl.float32)
    key_gradient = tl.zeros((TOKEN_TILE, HEAD_TILE, WIDTH_TILE), tl.float32)
    value_gradient = tl.zeros((TOKEN_TILE, HEAD_TILE, WIDTH_TILE), tl.float32)
    for own in range(TOKENS):
        query = tl.load(rows + own * (3 * C) + channel, mask=there, other=0.0).to(tl.float32) * scale
        output_gradient = tl.load(gradients + own * C + channel, mask=there, other=0.0).to(tl.float32)
        seen = token < TOKENS
        if CAUSAL:
            seen = token <= own
        score = tl.where(seen[:, None], tl.sum(query[None, :, :] * key, axis=2), -float("inf"))
        weight = tl.exp(score - tl.max(score, axis=0)[None, :])
        weight = weight / tl.sum(weight, axis=0)[None, :]
        kept = weight
        weight_gradient = tl.sum(output_gradient[None, :, :] * value, axis=2)
        if DROPOUT:
            factor = keep_factor(seed, own, token[:, None], sensor * HEADS + head[None, :], rate)
            kept = weight * factor
            weight_gradient = weight_gradient * factor
        score_gradient = weight * (weight_gradient - tl.sum(weight * weight_gradient, axis=0)[None, :])
        query_gradient = tl.sum(score_gradient[:, :, None] * key, axis=0) * scale
        tl.store(
            row_gradients + own * (3 * C) + channel, query_gradient.to(packed_gradient.dtype.element_ty), mask=there
        )
        key_gradient += score_gradient[:, :, None] * query[None, :, :]
        value_gradient += kept[:, :, None] * output_gradient[None, :, :]
    tl.store(row_gradients + place + C, key_gradient.to(packed_gradient.dtype.element_ty), mask=tile_there)
    tl.store(row_gradients + place + 2 * C, value_gradient.to(packed_gradient.dtype.element_ty), mask=tile_there)


@triton.jit(do_not_specialize=["step"])  # one kernel for all steps
def attend_step_forward(
    packed,  # (sensors, 3 C)
    cache,  # (sensors, TOKENS, 2 C), written at `step`
    output,  # (sensors, C)
    seed,
    scale,
    rate,
    step,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Let the newest token of one sensor attend to itself and those before it, in some heads."""
    C: tl.constexpr = HEADS * WIDTH
    sensor = tl.program_id(0)
    head = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    inner = tl.arange(0, WIDTH_TILE)
    token = tl.arange(0, TOKEN_TILE)
    channel = head[:, None] * WIDTH + inner[None, :]
    there = (head < HEADS)[:, None] & (inner < WIDTH)[None, :]
    row = packed + sensor.to(tl.int64) * (3 * C) + channel
    query = tl.load(row, mask=there, other=0.0).to(tl.float32) * scale
    own_key = tl.load(row + C, mask=there, other=0.0)
    own_value = tl.load(row + 2 * C, mask=there, other=0.0)
    kept_rows = cache + sensor.to(tl.int64) * (TOKENS * 2 * C)
    tl.store(kept_rows + step * (2 * C) + channel, own_key, mask=there)
    tl.store(kept_rows + step * (2 * C) + C + channel, own_value, mask=there)
    place = kept_rows + token[:, None, None] * (2 * C) + channel[None, :, :]
    before = (token < step)[:, None, None] & there[None, :, :]
    is_own = (token == step)[:, None, None]
    key = tl.where(is_own, own_key[None, :, :], tl.load(place, mask=before, other=0.0)).to(tl.float32)
    value = tl.where(is_own, own_value[None, :, :], tl.load(place + C, mask=before, other=0.0)).to(tl.float32)
    score = tl.where((token <= step)[:, None], tl.sum(query[None, :, :] * key, axis=2), -float("inf"))
    weight = tl.exp(score - tl.max(score, axis=0)[None, :])
    weight = weight / tl.sum(weight, axis=0)[None, :]
    if DROPOUT:
        weight *= keep_factor(seed, step, token[:, None], sensor * HEADS + head[None, :], rate)
    result = tl.sum(weight[:, :, None] * value, axis=0).to(output.dtype.element_ty)
    tl.store(output + sensor.to(tl.int64) * C + channel, result, mask=there)


@triton.jit(do_not_specialize=["step"])  # one kernel for all steps
def attend_step_backward(
    gradient,  # (sensors, C)
    packed,  # (sensors, 3 C)
    cache,  # (sensors, TOKENS, 2 C)
    cache_gradient,  # (sensors, TOKENS, 2 C), float32: what later steps had to say of each token
    packed_gradient,  # (sensors, 3 C)
    seed,
    scale,
    rate,
    step,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Go back through `attend_step_forward`, after all later steps: adds to the gradients of earlier keys and values.

    Of the newest token nobody else will speak: its gradient goes out, and is 0 in the cache afterwards.
    """
    C: tl.constexpr = HEADS * WIDTH
    sensor = tl.program_id(0)
    head = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    inner = tl.arange(0, WIDTH_TILE)
    token = tl.arange(0, TOKEN_TILE)
    channel = head[:, None] * WIDTH + inner[None, :]
    there = (head < HEADS)[:, None] & (inner < WIDTH)[None, :]
    row = packed + sensor.to(tl.int64) * (3 * C) + channel
    query = tl.load(row, mask=there, other=0.0).to(tl.float32) * scale
    own_key = tl.load(row + C, mask=there, other=0.0)
    own_value = tl.load(row + 2 * C, mask=there, other=0.0)
    output_gradient = tl.load(gradient + sensor.to(tl.int64) * C + channel, mask=there, other=0.0).to(tl.float32)
    start = sensor.to(tl.int64) * (TOKENS * 2 * C)
    place = token[:, None, None] * (2 * C) + channel[None, :, :]
    before = (token < step)[:, None, None] & there[None, :, :]
    is_own = (token == step)[:, None, None]
    key = tl.where(is_own, own_key[None, :, :], tl.load(cache + start + place, mask=before, other=0.0)).to(tl.float32)
    value = tl.where(is_own, own_value[None, :, :], tl.load(cache + start + place + C, mask=before, other=0.0))
    value = value.to(tl.float32)
    score = tl.where((token <= step)[:, None], tl.sum(query[None, :, :] * key, axis=2), -float("inf"))
    weight = tl.exp(score - tl.max(score, axis=0)[None, :])
    weight = weight / tl.sum(weight, axis=0)[None, :]
    kept = weight
    weight_gradient = tl.sum(output_gradient[None, :, :] * value, axis=2)
    if DROPOUT:
        factor = keep_factor(seed, step, token[:, None], sensor * HEADS + head[None, :], rate)
        kept = weight * factor
        weight_gradient = weight_gradient * factor
    score_gradient = weight * (weight_gradient - tl.sum(weight * weight_gradient, axis=0)[None, :])
    query_gradient = tl.sum(score_gradient[:, :, None] * key, axis=0) * scale
    key_gradient = score_gradient[:, :, None] * query[None, :, :]
    value_gradient = kept[:, :, None] * output_gradient[None, :, :]
    later = cache_gradient + start + place
    known = before | (is_own & there[None, :, :])
    key_gradient += tl.load(later, mask=known, other=0.0)
    value_gradient += tl.load(later + C, mask=known, other=0.0)
    tl.store(later, tl.where(is_own, 0.0, key_gradient), mask=known)
    tl.store(later + C, tl.where(is_own, 0.0, value_gradient), mask=known)
    result = packed_gradient + sensor.to(tl.int64) * (3 * C) + channel
    element = packed_gradient.dtype.element_ty
    own_key_gradient = tl.sum(tl.where(is_own, key_gradient, 0.0), axis=0)
    own_value_gradient = tl.sum(tl.where(is_own, value_gradient, 0.0), axis=0)
    tl.store(result, query_gradient.to(element), mask=there)
    tl.store(result + C, own_key_gradient.to(element), mask=there)
    tl.store(result + 2 * C, own_value_gradient.to(element), mask=there)


@triton.jit
def attend_sensors_forward(
    packed,  # (B, N, M, 3 C)
    output,  # (B, N, M, C)
    normalisers,  # (B, N, M, HEADS): the logarithm of the sum of exponentials
    heard_shares,  # (B, N, M, HEADS): the share of the weights that is heard; None without a voice
    starts,  # (N + 1,)
    others,  # (E,)
    voice,  # (B, N), or None
    seed,
    scale,
    rate,
    least_voice,
    sensors,
    tokens,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Let one sensor attend to its neighbours, at some tokens in all heads, and take the ReLU of what comes of it."""
    C: tl.constexpr = HEADS * WIDTH
    sample_sensor = tl.program_id(0)
    sample = sample_sensor // sensors
    sensor = sample_sensor % sensors
    first = sample.to(tl.int64) * sensors  # of the sample's sensors
    token = tl.program_id(1) * TOKEN_TILE + tl.arange(0, TOKEN_TILE)
    head = tl.arange(0, HEAD_TILE)
    inner = tl.arange(0, WIDTH_TILE)
    channel = head[:, None] * WIDTH + inner[None, :]
    pairs = (token < tokens)[:, None] & (head < HEADS)[None, :]
    there = pairs[:, :, None] & (inner < WIDTH)[None, None, :]
    place = token[:, None, None] * (3 * C) + channel[None, :, :]
    problem = (sample * tokens + token)[:, None] * HEADS + head[None, :]
    query = tl.load(packed + (first + sensor) * tokens * (3 * C) + place, mask=there, other=0.0).to(tl.float32) * scale
    best = tl.full((TOKEN_TILE, HEAD_TILE), -float("inf"), tl.float32)
    total = tl.zeros((TOKEN_TILE, HEAD_TILE), tl.float32)
    heard = tl.zeros((TOKEN_TILE, HEAD_TILE), tl.float32)
    summed = tl.zeros((TOKEN_TILE, HEAD_TILE, WIDTH_TILE), tl.float32)
    for entry in range(tl.load(starts + sensor), tl.load(starts + sensor + 1)):
        other = tl.load(others + entry)
        row = packed + (first + other) * tokens * (3 * C) + place
        key = tl.load(row + C, mask=there, other=0.0).to(tl.float32)
        value = tl.load(row + 2 * C, mask=there, other=0.0).to(tl.float32)
        score = tl.sum(query * key, axis=2)
        highest = tl.maximum(best, score)
        share = tl.exp(best - highest)
        weight = tl.exp(score - highest)
        total = total * share + weight
        if DROPOUT:
            weight *= keep_factor(seed, sensor, other.to(tl.int32), problem, rate)
        if voice is not None:
            weight *= tl.load(voice + first + other).to(tl.float32)
            heard = heard * share + weight
        summed = summed * share[:, :, None] + weight[:, :, None] * value
        best = highest
    statistic = (first + sensor) * tokens * HEADS + token[:, None] * HEADS + head[None, :]
    tl.store(normalisers + statistic, best + tl.log(total), mask=pairs)
    if voice is not None:
        tl.store(heard_shares + statistic, heard / total, mask=pairs)
        total *= tl.maximum(heard / total, least_voice)
    result = tl.maximum(summed / total[:, :, None], 0.0).to(output.dtype.element_ty)
    place = token[:, None, None] * C + channel[None, :, :]
    tl.store(output + (first + sensor) * tokens * C + place, result, mask=there)


@triton.jit
def attend_sensors_backward(
    gradient,  # (B, N, M, C)
    packed,  # (B, N, M, 3 C)
    output,  # (B, N, M, C)
    normalisers,  # (B, N, M, HEADS)
    heard_shares,  # (B, N, M, HEADS), or None
    starts,  # (N + 1,)
    others,  # (E,)
    seeing_starts,  # (N + 1,)
    seeing,  # (E,): which sensors have each as a neighbour
    voice,  # (B, N), or None
    packed_gradient,  # (B, N, M, 3 C)
    seed,
    scale,
    rate,
    least_voice,
    sensors,
    tokens,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Go back through `attend_sensors_forward`: one sensor as the query of its neighbours, then as a key of others."""
    C: tl.constexpr = HEADS * WIDTH
    sample_sensor = tl.program_id(0)
    sample = sample_sensor // sensors
    sensor = sample_sensor % sensors
    first = sample.to(tl.int64) * sensors
    token = tl.program_id(1) * TOKEN_TILE + tl.arange(0, TOKEN_TILE)
    head = tl.arange(0, HEAD_TILE)
    inner = tl.arange(0, WIDTH_TILE)
    channel = head[:, None] * WIDTH + inner[None, :]
    pairs = (token < tokens)[:, None] & (head < HEADS)[None, :]
    there = pairs[:, :, None] & (inner < WIDTH)[None, None, :]
    place = token[:, None, None] * (3 * C) + channel[None, :, :]
    output_place = token[:, None, None] * C + channel[None, :, :]
    statistic = token[:, None] * HEADS + head[None, :]
    problem = (sample * tokens + token)[:, None] * HEADS + head[None, :]
    own_row = (first + sensor) * tokens
    own_heard = 1.0
    if voice is not None:
        own_heard = tl.load(voice + first + sensor).to(tl.float32)

    # As a query.
    query = tl.load(packed + own_row * (3 * C) + place, mask=there, other=0.0).to(tl.float32) * scale
    result = tl.load(output + own_row * C + output_place, mask=there, other=0.0).to(tl.float32)
    output_gradient = tl.load(gradient + own_row * C + output_place, mask=there, other=0.0).to(tl.float32)
    output_gradient = tl.where(result > 0, output_gradient, 0.0)  # of the ReLU
    normaliser = tl.load(normalisers + own_row * HEADS + statistic, mask=pairs, other=0.0)
    mean = tl.sum(output_gradient * result, axis=2)  # of the gradients of the weights
    of_share = tl.zeros((TOKEN_TILE, HEAD_TILE), tl.float32)  # what each weight changes by the share that is heard
    if voice is not None:
        share = tl.load(heard_shares + own_row * HEADS + statistic, mask=pairs, other=1.0)
        of_share = tl.where(share < least_voice, 0.0, -mean / tl.maximum(share, least_voice))
        mean = tl.where(share < least_voice, mean, 0.0)
        output_gradient = output_gradient / tl.maximum(share, least_voice)[:, :, None]
    query_gradient = tl.zeros((TOKEN_TILE, HEAD_TILE, WIDTH_TILE), tl.float32)
    for entry in range(tl.load(starts + sensor), tl.load(starts + sensor + 1)):
        other = tl.load(others + entry)
        row = packed + (first + other) * tokens * (3 * C) + place
        key = tl.load(row + C, mask=there, other=0.0).to(tl.float32)
        value = tl.load(row + 2 * C, mask=there, other=0.0).to(tl.float32)
        weight = tl.exp(tl.sum(query * key, axis=2) - normaliser)
        weight_gradient = tl.sum(output_gradient * value, axis=2) + of_share
        if DROPOUT:
            weight_gradient *= keep_factor(seed, sensor, other.to(tl.int32), problem, rate)
        if voice is not None:
            weight_gradient *= tl.load(voice + first + other).to(tl.float32)
        query_gradient += (weight * (weight_gradient - mean))[:, :, None] * key
    target = packed_gradient + own_row * (3 * C) + place
    tl.store(target, (query_gradient * scale).to(packed_gradient.dtype.element_ty), mask=there)

    # As a key.
    key = tl.load(packed + own_row * (3 * C) + place + C, mask=there, other=0.0).to(tl.float32)
    value = tl.load(packed + own_row * (3 * C) + place + 2 * C, mask=there, other=0.0).to(tl.float32)
    key_gradient = tl.zeros((TOKEN_TILE, HEAD_TILE, WIDTH_TILE), tl.float32)
    value_gradient = tl.zeros((TOKEN_TILE, HEAD_TILE, WIDTH_TILE), tl.float32)
    for entry in range(tl.load(seeing_starts + sensor), tl.load(seeing_starts + sensor + 1)):
        other = tl.load(seeing + entry)
        row = (first + other) * tokens
        query = tl.load(packed + row * (3 * C) + place, mask=there, other=0.0).to(tl.float32) * scale
        result = tl.load(output + row * C + output_place, mask=there, other=0.0).to(tl.float32)
        output_gradient = tl.load(gradient + row * C + output_place, mask=there, other=0.0).to(tl.float32)
        output_gradient = tl.where(result > 0, output_gradient, 0.0)
        normaliser = tl.load(normalisers + row * HEADS + statistic, mask=pairs, other=0.0)
        mean = tl.sum(output_gradient * result, axis=2)
        of_share = tl.zeros((TOKEN_TILE, HEAD_TILE), tl.float32)
        if voice is not None:
            share = tl.load(heard_shares + row * HEADS + statistic, mask=pairs, other=1.0)
            of_share = tl.where(share < least_voice, 0.0, -mean / tl.maximum(share, least_voice))
            mean = tl.where(share < least_voice, mean, 0.0)
            output_gradient = output_gradient / tl.maximum(share, least_voice)[:, :, None]
        weight = tl.exp(tl.sum(query * key, axis=2) - normaliser)
        factor = tl.zeros((TOKEN_TILE, HEAD_TILE), tl.float32) + own_heard
        if DROPOUT:
            factor *= keep_factor(seed, other.to(tl.int32), sensor, problem, rate)
        weight_gradient = (tl.sum(output_gradient * value, axis=2) + of_share) * factor
        key_gradient += (weight * (weight_gradient - mean))[:, :, None] * query
        value_gradient += (weight * factor)[:, :, None] * output_gradient
    tl.store(target + C, key_gradient.to(packed_gradient.dtype.element_ty), mask=there)
    tl.store(target + 2 * C, value_gradient.to(packed_gradient.dtype.element_ty), mask=there)


@triton.jit
def token_columns_forward(
    x,  # (sensors, TOKENS, C)
    columns,  # (sensors, TOKENS, TAPS C)
    rows,
    TOKENS: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    LEFT: tl.constexpr,
    ROW_TILE: tl.constexpr,
    CHANNEL_TILE: tl.constexpr,
):
    """Lay beside each token those under a convolution's taps, and zeros where there are none."""
    row = tl.program_id(0).to(tl.int64) * ROW_TILE + tl.arange(0, ROW_TILE)[:, None]
    channel = tl.arange(0, CHANNEL_TILE)[None, :]
    there = (row < rows) & (channel < C)
    token = row % TOKENS
    for tap in tl.static_range(TAPS):
        source = token + (tap - LEFT)
        known = there & (source >= 0) & (source < TOKENS)
        value = tl.load(x + (row + (tap - LEFT)) * C + channel, mask=known, other=0.0)
        tl.store(columns + row * (TAPS * C) + tap * C + channel, value, mask=there)


@triton.jit
def token_columns_backward(
    gradient,  # (sensors, TOKENS, TAPS C)
    x_gradient,  # (sensors, TOKENS, C)
    rows,
    TOKENS: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    LEFT: tl.constexpr,
    ROW_TILE: tl.constexpr,
    CHANNEL_TILE: tl.constexpr,
):
    """Sum the gradients of all places where `token_columns_forward` laid a token."""
    row = tl.program_id(0).to(tl.int64) * ROW_TILE + tl.arange(0, ROW_TILE)[:, None]
    channel = tl.arange(0, CHANNEL_TILE)[None, :]
    there = (row < rows) & (channel < C)
    token = row % TOKENS
    total = tl.zeros((ROW_TILE, CHANNEL_TILE), tl.float32)
    for tap in tl.static_range(TAPS):
        target = token - (tap - LEFT)
        known = there & (target >= 0) & (target < TOKENS)
        place = (row - (tap - LEFT)) * (TAPS * C) + tap * C + channel
        total += tl.load(gradient + place, mask=known, other=0.0).to(tl.float32)
    tl.store(x_gradient + row * C + channel, total.to(x_gradient.dtype.element_ty), mask=there)


@triton.jit
def add_norm_forward(
    x,  # (rows, C)
    y,  # (rows, C)
    weight,  # (C,)
    bias,  # (C,)
    summed,  # (rows, C)
    normed,  # (rows, C)
    rows,
    epsilon,
    C: tl.constexpr,
    ROW_TILE: tl.constexpr,
    CHANNEL_TILE: tl.constexpr,
):
    """Add two tensors, and norm the channels of their sum."""
    row = tl.program_id(0).to(tl.int64) * ROW_TILE + tl.arange(0, ROW_TILE)[:, None]
    channel = tl.arange(0, CHANNEL_TILE)[None, :]
    there = (row < rows) & (channel < C)
    place = row * C + channel
    total = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    total += tl.load(y + place, mask=there, other=0.0).to(tl.float32)
    total = total.to(summed.dtype.element_ty)
    tl.store(summed + place, total, mask=there)
    total = total.to(tl.float32)
    mean = tl.sum(total, axis=1)[:, None] / C
    centred = tl.where(channel < C, total - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=1)[:, None] / C + epsilon)
    slope = tl.load(weight + channel, mask=channel < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
    result = centred / deviation * slope + shift
    tl.store(normed + place, result.to(normed.dtype.element_ty), mask=there)


@triton.jit
def add_norm_backward(
    sum_gradient,  # (rows, C), or None
    norm_gradient,  # (rows, C)
    summed,  # (rows, C)
    weight,  # (C,)
    x_gradient,  # (rows, C)
    partial,  # (programs, 2, C): what each program's rows say of weight and bias
    rows,
    epsilon,
    C: tl.constexpr,
    ROW_TILE: tl.constexpr,
    CHANNEL_TILE: tl.constexpr,
):
    """Go back through `add_norm_forward`; both summands have the same gradient."""
    channel = tl.arange(0, CHANNEL_TILE)[None, :]
    slope = tl.load(weight + channel, mask=channel < C, other=0.0).to(tl.float32)
    of_weight = tl.zeros((ROW_TILE, CHANNEL_TILE), tl.float32)
    of_bias = tl.zeros((ROW_TILE, CHANNEL_TILE), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROW_TILE), tl.num_programs(0)):
        row = (tile * ROW_TILE + tl.arange(0, ROW_TILE)).to(tl.int64)[:, None]
        there = (row < rows) & (channel < C)
        place = row * C + channel
        total = tl.load(summed + place, mask=there, other=0.0).to(tl.float32)
        mean = tl.sum(total, axis=1)[:, None] / C
        centred = tl.where(channel < C, total - mean, 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1)[:, None] / C + epsilon)
        scaled = centred / deviation
        incoming = tl.load(norm_gradient + place, mask=there, other=0.0).to(tl.float32)
        of_weight += incoming * scaled
        of_bias += incoming
        incoming *= slope
        along = tl.sum(incoming * scaled, axis=1)[:, None] / C
        result = (incoming - tl.sum(incoming, axis=1)[:, None] / C - scaled * along) / deviation
        if sum_gradient is not None:
            result += tl.load(sum_gradient + place, mask=there, other=0.0).to(tl.float32)
        tl.store(x_gradient + place, result.to(x_gradient.dtype.element_ty), mask=there)
    target = partial + tl.program_id(0) * (2 * C) + tl.arange(0, CHANNEL_TILE)
    kept = tl.arange(0, CHANNEL_TILE) < C
    tl.store(target, tl.sum(of_weight, axis=0), mask=kept)
    tl.store(target + C, tl.sum(of_bias, axis=0), mask=kept)


@triton.jit
def scaled_add_forward(x, y, scale, output, size, GELU: tl.constexpr, TILE: tl.constexpr):
    """Add x and y, or GELU(y), times a number."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = place < size
    value = tl.load(y + place, mask=there, other=0.0).to(tl.float32)
    if GELU:
        value = value * 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
    result = tl.load(x + place, mask=there, other=0.0).to(tl.float32) + tl.load(scale).to(tl.float32) * value
    tl.store(output + place, result.to(output.dtype.element_ty), mask=there)


@triton.jit
def scaled_add_backward(gradient, y, scale, y_gradient, partial, size, GELU: tl.constexpr, TILE: tl.constexpr):
    """Go back through `scaled_add_forward`: to y, and each program's part of the scale's gradient (programs,)."""
    factor = tl.load(scale).to(tl.float32)
    of_scale = tl.zeros((TILE,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(size, TILE), tl.num_programs(0)):
        place = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        there = place < size
        incoming = tl.load(gradient + place, mask=there, other=0.0).to(tl.float32)
        value = tl.load(y + place, mask=there, other=0.0).to(tl.float32)
        if GELU:
            below = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
            slope = below + value * 0.3989422804014327 * tl.exp(-0.5 * value * value)
            value = value * below
            of_scale += incoming * value
            incoming *= slope
        else:
            of_scale += incoming * value
        tl.store(y_gradient + place, (incoming * factor).to(y_gradient.dtype.element_ty), mask=there)
    tl.store(partial + tl.program_id(0), tl.sum(of_scale, axis=0))


@triton.jit
def open_gate_forward(terms, output, rows, C: tl.constexpr, ROW_TILE: tl.constexpr, CHANNEL_TILE: tl.constexpr):
    """Return sigmoid(gate) + content of terms (rows, 2 C), gates first."""
    row = tl.program_id(0).to(tl.int64) * ROW_TILE + tl.arange(0, ROW_TILE)[:, None]
    channel = tl.arange(0, CHANNEL_TILE)[None, :]
    there = (row < rows) & (channel < C)
    gate = tl.load(terms + row * (2 * C) + channel, mask=there, other=0.0).to(tl.float32)
    content = tl.load(terms + row * (2 * C) + C + channel, mask=there, other=0.0).to(tl.float32)
    result = 1.0 / (1.0 + tl.exp(-gate)) + content
    tl.store(output + row * C + channel, result.to(output.dtype.element_ty), mask=there)


@triton.jit
def open_gate_backward(
    gradient, terms, terms_gradient, rows, C: tl.constexpr, ROW_TILE: tl.constexpr, CHANNEL_TILE: tl.constexpr
):
    """Go back through `open_gate_forward`."""
    row = tl.program_id(0).to(tl.int64) * ROW_TILE + tl.arange(0, ROW_TILE)[:, None]
    channel = tl.arange(0, CHANNEL_TILE)[None, :]
    there = (row < rows) & (channel < C)
    incoming = tl.load(gradient + row * C + channel, mask=there, other=0.0)
    gate = tl.load(terms + row * (2 * C) + channel, mask=there, other=0.0).to(tl.float32)
    opened = 1.0 / (1.0 + tl.exp(-gate))
    of_gate = (incoming.to(tl.float32) * opened * (1.0 - opened)).to(terms_gradient.dtype.element_ty)
    tl.store(terms_gradient + row * (2 * C) + channel, of_gate, mask=there)
    tl.store(terms_gradient + row * (2 * C) + C + channel, incoming.to(terms_gradient.dtype.element_ty), mask=there)


@triton.jit
def add_relu_forward(
    x,  # (sensors, tokens, C)
    y,  # (sensors, tokens, C), some of more tokens
    output,  # (sensors, tokens, C)
    size,
    sensor_size,  # tokens * C
    y_stride,  # from sensor to sensor
    TILE: tl.constexpr,
):
    """Return relu(x + y)."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = place < size
    y_place = place // sensor_size * y_stride + place % sensor_size
    total = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    total += tl.load(y + y_place, mask=there, other=0.0).to(tl.float32)
    tl.store(output + place, tl.maximum(total, 0.0).to(output.dtype.element_ty), mask=there)
