// The kernels of model/fused.py for attention on a CPU: what model/triton_kernels.py has for GPUs, the same numbers.
//
// Tensors are contiguous, (samples, sensors, tokens, channels), in float32 or bfloat16; packed ones have queries, keys
// and values, or keys and values, side by side in their channels. All sums are in float32. No thread adds to what
// another writes, so equal calls are equal to the bit, whatever the number of threads.
//
// model/cpu_kernels.py compiles this file, and calls its functions. PyTorch's own threads run it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int LANES = 16;  // numbers in a vector; a compiler splits it where a machine has fewer

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

struct BFloat16 {
    uint16_t bits;
    operator float() const {
        const uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    BFloat16& operator=(float value) {  // the nearest, of two the even one
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = uint16_t((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
        return *this;
    }
};

#ifdef BFLOAT16
using Number = BFloat16;
typedef uint16_t Row __attribute__((vector_size(2 * LANES)));  // as many numbers as a vector has, as tensors have them
typedef uint16_t HalfRow __attribute__((vector_size(LANES)));
#else
using Number = float;
typedef float Row __attribute__((vector_size(4 * LANES)));
typedef float HalfRow __attribute__((vector_size(2 * LANES)));
#endif

// e^x for x <= 0, to about a unit in the last place; 0 from -87 down, where float32 ends.
static Vector exponential(Vector x) {
    const Vector shifted = x * 1.44269504f - 0.5f;
    const Integers power = __builtin_convertvector(shifted > -126.0f ? shifted : Vector{} - 126.0f, Integers);
    const Vector whole = __builtin_convertvector(power, Vector);
    const Vector rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // within half of log 2
    Vector y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    const Vector scaled = y * (Vector)((power + 127) << 23);
    return x < -87.0f ? Vector{} : scaled;  // what is no number stays so
}

// What dropout makes of a weight: 0, or 1 / (1 - rate). It follows from seed and place, by Philox 4x32-10.
struct Dropout {
    bool on;
    uint32_t low, high;
    float rate;

    Dropout(const int64_t* seed, float rate)
        : on(seed), low(seed ? uint32_t(*seed) : 0), high(seed ? uint32_t(uint64_t(*seed) >> 32) : 0), rate(rate) {}

    // Of LANES problems, numbered from `problem` on, `stride` apart.
    Vector factors(uint32_t query, uint32_t key, uint32_t problem, uint32_t stride) const {
        uint32_t words[4][LANES], first = low, second = high;
        float result[LANES];
        for (uint32_t lane = 0; lane < LANES; ++lane) {
            words[0][lane] = query, words[1][lane] = key, words[2][lane] = problem + lane * stride, words[3][lane] = 0;
        }
        for (int round = 0; round < 10; ++round, first += 0x9E3779B9, second += 0xBB67AE85)
#pragma omp simd
            for (int lane = 0; lane < LANES; ++lane) {
                const uint64_t x = uint64_t(words[0][lane]) * 0xD2511F53, y = uint64_t(words[2][lane]) * 0xCD9E8D57;
                words[0][lane] = uint32_t(y >> 32) ^ words[1][lane] ^ first;
                words[1][lane] = uint32_t(y);
                words[2][lane] = uint32_t(x >> 32) ^ words[3][lane] ^ second;
                words[3][lane] = uint32_t(x);
            }
#pragma omp simd
        for (int lane = 0; lane < LANES; ++lane)
            result[lane] = float(int32_t(words[0][lane] >> 8)) * (1.0f / (1 << 24)) >= rate ? 1.0f / (1.0f - rate) : 0;
        Vector vector;
        std::memcpy(&vector, result, sizeof(vector));
        return vector;
    }
};

static Vector dot(long width, const Vector* a, const Vector* b) {
    Vector sum = {};
    for (long c = 0; c < width; ++c) sum += a[c] * b[c];
    return sum;
}

static void add_scaled(long width, Vector factor, const Vector* a, Vector* sum) {
    for (long c = 0; c < width; ++c) sum[c] += factor * a[c];
}

// Of 16 rows of 16: swap rows and columns, block by block of 1, 2, 4 and 8.
template <int SIZE>
static void swap_blocks(Vector* rows) {
    Integers first, second;
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; ++lane) {
        first[lane] = lane & SIZE ? LANES + lane - SIZE : lane;
        second[lane] = lane & SIZE ? LANES + lane : lane + SIZE;
    }
#pragma GCC unroll 16
    for (int row = 0; row < LANES; ++row)
        if (!(row & SIZE)) {
            const Vector one = rows[row], other = rows[row + SIZE];
            rows[row] = __builtin_shuffle(one, other, first);
            rows[row + SIZE] = __builtin_shuffle(one, other, second);
        }
}

static void transpose(Vector* rows) {
    swap_blocks<1>(rows);
    swap_blocks<2>(rows);
    swap_blocks<4>(rows);
    swap_blocks<8>(rows);
}

static Vector widened(Row row) {
#ifdef BFLOAT16
    return (Vector)(__builtin_convertvector(row, Bits) << 16);
#else
    return row;
#endif
}

static Row narrowed(Vector vector) {
#ifdef BFLOAT16  // the nearest, of two the even one
    const Bits wide = (Bits)vector;
    return __builtin_convertvector((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16, Row);
#else
    return vector;
#endif
}

// Read as many numbers that lie together as are known; the others are 0.
static Vector read(const Number* source, long known) {
    if (known == LANES) {
        Row row;
        std::memcpy(&row, source, sizeof(row));
        return widened(row);
    }
    if (known == LANES / 2) {
        HalfRow half;
        std::memcpy(&half, source, sizeof(half));
        return widened(__builtin_shufflevector(half, HalfRow{}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    }
    Row row = {};
    std::memcpy(&row, source, known * sizeof(Number));
    return widened(row);
}

// Write as many.
static void write(Vector vector, Number* target, long known) {
    const Row row = narrowed(vector);
    if (known == LANES) {
        std::memcpy(target, &row, sizeof(row));
    } else if (known == LANES / 2) {
        const HalfRow half = __builtin_shufflevector(row, row, 0, 1, 2, 3, 4, 5, 6, 7);
        std::memcpy(target, &half, sizeof(half));
    } else {
        std::memcpy(target, &row, known * sizeof(Number));
    }
}

// Lay up to LANES numbers that lie together in each of LANES places side by side; a place that is null has zeros.
template <class Place>
static void gather(const Place& place, long known, Vector* rows) {
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; ++lane) {
        const Number* source = place(lane);
        rows[lane] = source ? read(source, known) : Vector{};
    }
    transpose(rows);
}

// Put them back.
template <class Place>
static void scatter(Vector* rows, long known, const Place& place) {
    transpose(rows);
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; ++lane)
        if (Number* target = place(lane)) write(rows[lane], target, known);
}

// ---------------------------------------------------------------------------------------- attention over tokens
//
// A vector has the same number of LANES sensors, which are laid side by side head by head: (tokens, width, LANES).

struct Lanes {
    long first, count;  // of sensors; those that are missing in the last vector are 0

    template <class T>
    auto place(T* numbers, long size) const {
        return [=, this](int lane) { return lane < count ? numbers + (first + lane) * size : nullptr; };
    }
    // Lay numbers that lie together in each sensor, of all heads one after another; there they are `head` vectors apart.
    void lay(const Number* source, long size, long numbers, long width, long head, Vector* target) const {
        Vector rows[LANES];
        for (long n = 0, c = 0; n < numbers; n += LANES) {
            const long known = std::min<long>(LANES, numbers - n);
            gather(place(source + n, size), known, rows);
            for (long k = 0; k < known; ++k) {
                target[c] = rows[k];
                if (++c == width) c = 0, target += head;
            }
        }
    }
    // Put them back.
    void put(const Vector* source, Number* target, long size, long numbers, long width, long head) const {
        Vector rows[LANES] = {};
        for (long n = 0, c = 0; n < numbers; n += LANES) {
            const long known = std::min<long>(LANES, numbers - n);
            for (long k = 0; k < known; ++k) {
                rows[k] = source[c];
                if (++c == width) c = 0, source += head;
            }
            scatter(rows, known, place(target + n, size));
        }
    }
};

// Turn scores into weights that sum to 1.
static void softmax(Vector* scores, long count) {
    Vector best = scores[0], total = {};
    for (long j = 1; j < count; ++j) best = scores[j] > best ? scores[j] : best;
    for (long j = 0; j < count; ++j) total += scores[j] = exponential(scores[j] - best);
    const Vector share = 1.0f / total;
    for (long j = 0; j < count; ++j) scores[j] *= share;
}

extern "C" void attend_tokens(const Number* packed, Number* output, long sensors, long tokens, long heads, long width,
                              long causal, float scale, const int64_t* seed, float rate, long threads) {
    const Dropout dropout(seed, rate);
    const long channels = heads * width, size = tokens * width;
#pragma omp parallel num_threads(threads)
    {
        // Of all heads, one after another: queries, keys and values; and what is attended to.
        std::vector<Vector> laid(3 * heads * size), attended(heads * size), weights(tokens);
#pragma omp for
        for (long first = 0; first < sensors; first += LANES) {
            const Lanes lanes{first, std::min<long>(LANES, sensors - first)};
            for (long m = 0; m < tokens; ++m)
                lanes.lay(packed + m * 3 * channels, tokens * 3 * channels, 3 * channels, width, size, &laid[m * width]);
            for (long h = 0; h < heads; ++h) {
                const Vector *query = &laid[h * size], *key = query + heads * size, *value = key + heads * size;
                Vector* result = &attended[h * size];
                for (long m = 0; m < tokens; ++m) {
                    const long limit = causal ? m + 1 : tokens;
                    for (long j = 0; j < limit; ++j)
                        weights[j] = scale * dot(width, &query[m * width], &key[j * width]);
                    softmax(weights.data(), limit);
                    std::fill_n(&result[m * width], width, Vector{});
                    for (long j = 0; j < limit; ++j) {
                        if (dropout.on) weights[j] *= dropout.factors(m, j, first * heads + h, heads);
                        add_scaled(width, weights[j], &value[j * width], &result[m * width]);
                    }
                }
            }
            for (long m = 0; m < tokens; ++m)
                lanes.put(&attended[m * width], output + m * channels, tokens * channels, channels, width, size);
        }
    }
}

extern "C" void attend_tokens_backward(const Number* gradient, const Number* packed, Number* packed_gradient,
                                       long sensors, long tokens, long heads, long width, long causal, float scale,
                                       const int64_t* seed, float rate, long threads) {
    const Dropout dropout(seed, rate);
    const long channels = heads * width, size = tokens * width;
#pragma omp parallel num_threads(threads)
    {
        // Of all heads, one after another: queries, keys and values, and their gradients; that of the output.
        std::vector<Vector> laid(3 * heads * size), sums(3 * heads * size), coming(heads * size);
        std::vector<Vector> weights(tokens), changes(tokens);
#pragma omp for
        for (long first = 0; first < sensors; first += LANES) {
            const Lanes lanes{first, std::min<long>(LANES, sensors - first)};
            for (long m = 0; m < tokens; ++m) {
                const Number *own = packed + m * 3 * channels, *incoming = gradient + m * channels;
                lanes.lay(own, tokens * 3 * channels, 3 * channels, width, size, &laid[m * width]);
                lanes.lay(incoming, tokens * channels, channels, width, size, &coming[m * width]);
            }
            std::fill(sums.begin(), sums.end(), Vector{});
            for (long h = 0; h < heads; ++h) {
                const Vector *query = &laid[h * size], *key = query + heads * size, *value = key + heads * size;
                Vector *of_query = &sums[h * size], *of_key = of_query + heads * size;
                Vector* of_value = of_key + heads * size;
                const Vector* incoming = &coming[h * size];
                for (long m = 0; m < tokens; ++m) {
                    const long limit = causal ? m + 1 : tokens;
                    for (long j = 0; j < limit; ++j)
                        weights[j] = scale * dot(width, &query[m * width], &key[j * width]);
                    softmax(weights.data(), limit);
                    Vector mean = {};
                    for (long j = 0; j < limit; ++j) {
                        changes[j] = dot(width, &incoming[m * width], &value[j * width]);
                        Vector kept = weights[j];
                        if (dropout.on) {
                            const Vector factor = dropout.factors(m, j, first * heads + h, heads);
                            changes[j] *= factor;
                            kept *= factor;
                        }
                        mean += weights[j] * changes[j];
                        add_scaled(width, kept, &incoming[m * width], &of_value[j * width]);
                    }
                    for (long j = 0; j < limit; ++j) {
                        const Vector change = scale * weights[j] * (changes[j] - mean);  // of the products
                        add_scaled(width, change, &key[j * width], &of_query[m * width]);
                        add_scaled(width, change, &query[m * width], &of_key[j * width]);
                    }
                }
            }
            for (long m = 0; m < tokens; ++m) {
                Number* target = packed_gradient + m * 3 * channels;
                lanes.put(&sums[m * width], target, tokens * 3 * channels, 3 * channels, width, size);
            }
        }
    }
}

// ---------------------------------------------------------------------- attention of a rollout's newest token

// The cache, and its gradients, have the keys and values of LANES sensors side by side, as vectors have them:
// (vectors of sensors, heads, keys and values, tokens, width, LANES). Only the newest token is laid so.

extern "C" void attend_step(const Number* packed, Vector* cache, Number* output, long sensors, long tokens, long heads,
                            long width, long step, float scale, const int64_t* seed, float rate, long threads) {
    const Dropout dropout(seed, rate);
    const long channels = heads * width, size = tokens * width;
#pragma omp parallel num_threads(threads)
    {
        std::vector<Vector> queries(channels), results(channels), weights(tokens);
#pragma omp for
        for (long first = 0; first < sensors; first += LANES) {
            const Lanes lanes{first, std::min<long>(LANES, sensors - first)};
            Vector *keys = cache + first / LANES * heads * 2 * size, *values = keys + size;
            lanes.lay(packed, 3 * channels, channels, width, width, queries.data());
            lanes.lay(packed + channels, 3 * channels, channels, width, 2 * size, keys + step * width);
            lanes.lay(packed + 2 * channels, 3 * channels, channels, width, 2 * size, values + step * width);
            std::fill(results.begin(), results.end(), Vector{});
            for (long h = 0; h < heads; ++h) {
                const Vector *key = keys + h * 2 * size, *value = key + size;
                for (long j = 0; j <= step; ++j) weights[j] = scale * dot(width, &queries[h * width], key + j * width);
                softmax(weights.data(), step + 1);
                for (long j = 0; j <= step; ++j) {
                    if (dropout.on) weights[j] *= dropout.factors(step, j, first * heads + h, heads);
                    add_scaled(width, weights[j], value + j * width, &results[h * width]);
                }
            }
            lanes.put(results.data(), output, channels, channels, width, width);
        }
    }
}

// After all later steps: adds to the gradients of earlier keys and values. The newest token's go out, and are 0 then.
extern "C" void attend_step_backward(const Number* gradient, const Number* packed, const Vector* cache,
                                     Vector* cache_gradient, Number* packed_gradient, long sensors, long tokens,
                                     long heads, long width, long step, float scale, const int64_t* seed, float rate,
                                     long threads) {
    const Dropout dropout(seed, rate);
    const long channels = heads * width, size = tokens * width;
#pragma omp parallel num_threads(threads)
    {
        std::vector<Vector> queries(channels), coming(channels), of_queries(channels), weights(tokens), changes(tokens);
#pragma omp for
        for (long first = 0; first < sensors; first += LANES) {
            const Lanes lanes{first, std::min<long>(LANES, sensors - first)};
            const long place = first / LANES * heads * 2 * size;
            lanes.lay(packed, 3 * channels, channels, width, width, queries.data());
            lanes.lay(gradient, channels, channels, width, width, coming.data());
            std::fill(of_queries.begin(), of_queries.end(), Vector{});
            for (long h = 0; h < heads; ++h) {
                const Vector *query = &queries[h * width], *incoming = &coming[h * width];
                const Vector *key = cache + place + h * 2 * size, *value = key + size;
                Vector *of_key = cache_gradient + place + h * 2 * size, *of_value = of_key + size;
                for (long j = 0; j <= step; ++j) weights[j] = scale * dot(width, query, key + j * width);
                softmax(weights.data(), step + 1);
                Vector mean = {};
                for (long j = 0; j <= step; ++j) {
                    const Vector factor =
                        dropout.on ? dropout.factors(step, j, first * heads + h, heads) : Vector{} + 1.0f;
                    changes[j] = factor * dot(width, incoming, value + j * width);
                    mean += weights[j] * changes[j];
                    add_scaled(width, factor * weights[j], incoming, of_value + j * width);
                }
                for (long j = 0; j <= step; ++j) {
                    const Vector change = scale * weights[j] * (changes[j] - mean);  // of the product
                    add_scaled(width, change, key + j * width, &of_queries[h * width]);
                    add_scaled(width, change, query, of_key + j * width);
                }
            }
            lanes.put(of_queries.data(), packed_gradient, 3 * channels, channels, width, width);
            Vector *newest = cache_gradient + place + step * width;
            lanes.put(newest, packed_gradient + channels, 3 * channels, channels, width, 2 * size);
            lanes.put(newest + size, packed_gradient + 2 * channels, 3 * channels, channels, width, 2 * size);
            for (long part = 0; part < heads * 2; ++part) std::fill_n(newest + part * size, width, Vector{});
        }
    }
}

// --------------------------------------------------------------------------------------- attention over sensors
//
// A vector has LANES of the triples of sample, token and head of a sensor. Block by block of these, all sensors are laid
// side by side, (sensors, parts, width, LANES): that fits a cache, so what neighbours share is read from there.

struct Triples {
    long width, parts, all, count;  // `all` channels a part; what is missing in the last vector is 0
    // Where the first sensor has the channels of each, a number of each, and a number of its sample.
    long channels[LANES], numbers[LANES], voices[LANES];

    // From `first` on, in a tensor of some parts that each have the channels of all heads.
    Triples(long first, long samples, long sensors, long tokens, long heads, long width, long parts)
        : width(width),
          parts(parts),
          all(heads * width),
          count(std::min<long>(LANES, samples * tokens * heads - first)) {
        for (long lane = 0; lane < count; ++lane) {
            const long head = (first + lane) % heads, row = (first + lane) / heads;
            const long first_sensor = row / tokens * sensors, token = first_sensor * tokens + row % tokens;
            channels[lane] = (token * parts * heads + head) * width;
            numbers[lane] = token * heads + head;
            voices[lane] = first_sensor;
        }
    }
    template <class T>
    auto place(T* numbers) const {
        return [=, this](int lane) { return lane < count ? numbers + channels[lane] : nullptr; };
    }
    void lay(const Number* source, Vector* target) const {
        Vector rows[LANES];
        for (long part = 0; part < parts; ++part, source += all)
            for (long c = 0; c < width; c += LANES) {
                const long known = std::min<long>(LANES, width - c);
                gather(place(source + c), known, rows);
                for (long k = 0; k < known; ++k) *target++ = rows[k];
            }
    }
    void put(const Vector* source, Number* target) const {
        Vector rows[LANES] = {};
        for (long part = 0; part < parts; ++part, target += all)
            for (long c = 0; c < width; c += LANES) {
                const long known = std::min<long>(LANES, width - c);
                for (long k = 0; k < known; ++k) rows[k] = *source++;
                scatter(rows, known, place(target + c));
            }
    }
    Vector at(const float* source, const long* lanes) const {
        Vector result = {};
        for (long lane = 0; lane < count; ++lane) result[lane] = source[lanes[lane]];
        return result;
    }
    void put_numbers(Vector result, float* target) const {
        for (long lane = 0; lane < count; ++lane) target[numbers[lane]] = result[lane];
    }
};

extern "C" void attend_sensors(const Number* packed, Number* output, float* normalisers, float* shares,
                               const int64_t* starts, const int64_t* others, const float* voice, long samples,
                               long sensors, long tokens, long heads, long width, float scale, const int64_t* seed,
                               float rate, float least_voice, long threads) {
    const Dropout dropout(seed, rate);
    const long channels = heads * width, size = 3 * width;
#pragma omp parallel num_threads(threads)
    {
        std::vector<Vector> laid(sensors * size), voices(voice ? sensors : 0), weights, result(width);
#pragma omp for
        for (long first = 0; first < samples * tokens * heads; first += LANES) {
            const Triples triples(first, samples, sensors, tokens, heads, width, 3);
            const Triples results(first, samples, sensors, tokens, heads, width, 1);
            for (long sensor = 0; sensor < sensors; ++sensor)
                triples.lay(packed + sensor * tokens * 3 * channels, &laid[sensor * size]);
            for (long sensor = 0; voice && sensor < sensors; ++sensor)
                voices[sensor] = triples.at(voice + sensor, triples.voices);
            for (long sensor = 0; sensor < sensors; ++sensor) {
                const long neighbours = starts[sensor + 1] - starts[sensor];
                const int64_t* own = others + starts[sensor];
                Vector best = Vector{} - INFINITY, total = {}, heard = {};
                weights.resize(neighbours);
                for (long e = 0; e < neighbours; ++e) {
                    weights[e] = scale * dot(width, &laid[sensor * size], &laid[own[e] * size + width]);
                    best = weights[e] > best ? weights[e] : best;
                }
                std::fill(result.begin(), result.end(), Vector{});
                for (long e = 0; e < neighbours; ++e) {
                    Vector weight = exponential(weights[e] - best);
                    total += weight;
                    if (dropout.on) weight *= dropout.factors(sensor, own[e], first, 1);
                    if (voice) weight *= voices[own[e]];
                    heard += weight;
                    add_scaled(width, weight, &laid[own[e] * size + 2 * width], result.data());
                }
                for (int lane = 0; lane < LANES; ++lane) best[lane] += std::log(total[lane]);
                results.put_numbers(best, normalisers + sensor * tokens * heads);
                if (voice) {
                    const Vector share = heard / total;
                    results.put_numbers(share, shares + sensor * tokens * heads);
                    total *= share < least_voice ? Vector{} + least_voice : share;
                }
                for (Vector& attended : result) attended = attended < 0.0f ? Vector{} : attended / total;
                results.put(result.data(), output + sensor * tokens * channels);
            }
        }
    }
}

extern "C" void attend_sensors_backward(const Number* gradient, const Number* packed, const Number* output,
                                        const float* normalisers, const float* shares, Number* packed_gradient,
                                        const int64_t* starts, const int64_t* others, const int64_t* seeing_starts,
                                        const int64_t* seeing, const float* voice, long samples, long sensors,
                                        long tokens, long heads, long width, float scale, const int64_t* seed,
                                        float rate, float least_voice, long threads) {
    const Dropout dropout(seed, rate);
    const long channels = heads * width, size = 4 * width;
#pragma omp parallel num_threads(threads)
    {
        // Queries, keys, values, and the gradient of the output before ReLU and the division by the share heard.
        std::vector<Vector> laid(sensors * size), voices(sensors, Vector{} + 1.0f), result(width), sums(3 * width);
        // Of each query: normalisers, the mean of the gradients of its weights, and what each changes by that share.
        std::vector<Vector> logarithms(sensors), means(sensors), of_shares(sensors);
#pragma omp for
        for (long first = 0; first < samples * tokens * heads; first += LANES) {
            const Triples triples(first, samples, sensors, tokens, heads, width, 3);
            const Triples results(first, samples, sensors, tokens, heads, width, 1);
            for (long sensor = 0; sensor < sensors; ++sensor) {
                const long row = sensor * tokens;
                Vector *own = &laid[sensor * size], *incoming = own + 3 * width;
                triples.lay(packed + row * 3 * channels, own);
                results.lay(output + row * channels, result.data());
                results.lay(gradient + row * channels, incoming);
                for (long c = 0; c < width; ++c) incoming[c] = result[c] > 0.0f ? incoming[c] : Vector{};
                logarithms[sensor] = results.at(normalisers + row * heads, results.numbers);
                const Vector mean = dot(width, incoming, result.data());
                means[sensor] = mean;
                of_shares[sensor] = Vector{};
                if (!voice) continue;
                voices[sensor] = results.at(voice + sensor, results.voices);
                const Vector share = results.at(shares + row * heads, results.numbers);
                const Vector divisor = share < least_voice ? Vector{} + least_voice : share;
                of_shares[sensor] = share < least_voice ? Vector{} : -mean / divisor;
                means[sensor] = share < least_voice ? mean : Vector{};
                for (long c = 0; c < width; ++c) incoming[c] /= divisor;
            }
            // From query to key: the gradient of the product, and the weight with all factors on it.
            const auto between = [&](long query, long key, Vector& change, Vector& weight) {
                const Vector *own = &laid[query * size], *other = &laid[key * size];
                weight = exponential(scale * dot(width, own, other + width) - logarithms[query]);
                change = dot(width, own + 3 * width, other + 2 * width) + of_shares[query];
                Vector factor = voices[key];
                if (dropout.on) factor *= dropout.factors(query, key, first, 1);
                change = scale * weight * (change * factor - means[query]);
                weight *= factor;
            };
            for (long sensor = 0; sensor < sensors; ++sensor) {
                Vector change, weight;
                std::fill(sums.begin(), sums.end(), Vector{});
                for (long e = starts[sensor]; e < starts[sensor + 1]; ++e) {
                    between(sensor, others[e], change, weight);
                    add_scaled(width, change, &laid[others[e] * size + width], &sums[0]);
                }
                for (long e = seeing_starts[sensor]; e < seeing_starts[sensor + 1]; ++e) {
                    between(seeing[e], sensor, change, weight);
                    add_scaled(width, change, &laid[seeing[e] * size], &sums[width]);
                    add_scaled(width, weight, &laid[seeing[e] * size + 3 * width], &sums[2 * width]);
                }
                triples.put(sums.data(), packed_gradient + sensor * tokens * 3 * channels);
            }
        }
    }
}

// ------------------------------------------------------------------------------------ convolutions over tokens

extern "C" void token_columns(const Number* x, Number* columns, long sensors, long tokens, long channels, long taps,
                              long left, long threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < sensors * tokens; ++row)
        for (long tap = 0; tap < taps; ++tap) {
            const long shift = tap - left, source = row % tokens + shift;
            Number* target = columns + (row * taps + tap) * channels;
            if (source < 0 || source >= tokens)
                std::memset(target, 0, channels * sizeof(Number));
            else
                std::memcpy(target, x + (row + shift) * channels, channels * sizeof(Number));
        }
}

extern "C" void token_columns_backward(const Number* gradient, Number* x_gradient, long sensors, long tokens,
                                       long channels, long taps, long left, long threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sum(channels);
#pragma omp for
        for (long row = 0; row < sensors * tokens; ++row) {
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (long tap = 0; tap < taps; ++tap) {
                const long shift = left - tap, target = row % tokens + shift;
                if (target < 0 || target >= tokens) continue;
                const Number* own = gradient + ((row + shift) * taps + tap) * channels;
#pragma omp simd
                for (long c = 0; c < channels; ++c) sum[c] += float(own[c]);
            }
            for (long c = 0; c < channels; ++c) x_gradient[row * channels + c] = sum[c];
        }
    }
}

