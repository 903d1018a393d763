// Attention on a device: every kernel against f64, any order of threads, one bit for the same.
#include "device.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;

namespace {

/// How an attention is called. A cache has room for more keys than there are; everything else has rows with room between them.
struct Case {
    AttentionShape shape;
    std::size_t    n_q = 1, n_kv = 1;
    std::size_t    capacity = 0;  // 0: heads side by side in the rows of k and v
    std::size_t    room = 8;      // values between two rows
    float          spread = 1;    // of q
};

/// The numbers of a case, as f64. Those of k and v are of type T.
template <class T>
struct Numbers {
    Case               c;
    std::vector<float> q;
    std::vector<T>     k, v;

    explicit Numbers(const Case& a, unsigned seed = 1)
        : c(a), q(normal(a.shape.n_sequences * a.n_q * a.shape.n_heads * a.shape.head_dim, seed, a.spread)), k(rounded(seed + 1)), v(rounded(seed + 2)) {}

    std::size_t query_at(std::size_t sequence, std::size_t i, std::size_t head) const {
        return ((sequence * c.n_q + i) * c.shape.n_heads + head) * c.shape.head_dim;
    }
    std::size_t key_at(std::size_t sequence, std::size_t j, std::size_t kv_head) const {
        return ((sequence * c.n_kv + j) * c.shape.n_kv_heads + kv_head) * c.shape.head_dim;
    }

    /// f64, or what bf16 makes of it: q, k, v and weights rounded, as the tensor cores' kernel does in any order.
    std::vector<double> attend(bool in_bf16) const {
        const AttentionShape& s = c.shape;
        const auto            round = [&](double x) { return in_bf16 ? static_cast<double>(static_cast<float>(bf16_t{static_cast<float>(x)})) : x; };
        std::vector<double>   y(q.size()), weights(c.n_kv);
        for (std::size_t sequence = 0; sequence < s.n_sequences; ++sequence)
            for (std::size_t head = 0; head < s.n_heads; ++head)
                for (std::size_t i = 0; i < c.n_q; ++i) {
                    const std::size_t kv_head = head * s.n_kv_heads / s.n_heads, at = s.q_pos + i, from = query_at(sequence, i, head);
                    const std::size_t begin = s.causal && s.window && at + 1 > s.window ? at + 1 - s.window : 0, end = s.causal ? at + 1 : c.n_kv;
                    double            top = -std::numeric_limits<double>::infinity(), total = 0;
                    for (std::size_t j = begin; j < end; ++j) {
                        double sum = 0;
                        for (std::size_t d = 0; d < s.head_dim; ++d) sum += round(q[from + d]) * round(k[key_at(sequence, j, kv_head) + d]);
                        weights[j] = sum * s.scale, top = std::max(top, weights[j]);
                    }
                    for (std::size_t j = begin; j < end; ++j) total += weights[j] = std::exp(weights[j] - top);
                    for (std::size_t j = begin; j < end; ++j)
                        for (std::size_t d = 0; d < s.head_dim; ++d) y[from + d] += round(weights[j]) / total * round(v[key_at(sequence, j, kv_head) + d]);
                }
        return y;
    }

private:
    std::vector<T> rounded(unsigned seed) const {
        const auto     x = normal(c.shape.n_sequences * c.n_kv * c.shape.n_kv_heads * c.shape.head_dim, seed);
        std::vector<T> y;
        for (float value : x) y.push_back(T(value));
        return y;
    }
};

template <class T>
T poison() {
    return T(std::numeric_limits<float>::quiet_NaN());
}

/// Runs a case in memory that is NaN wherever the case says nothing. `n_kv` and `q_pos` may be given `shift` less. Returns y, dense.
template <class T>
std::vector<float> run(const Numbers<T>& n, bool fast, Wishes options = {}, std::size_t shift = 0, std::size_t offset = 0) {
    const Case&       c = n.c;
    AttentionShape    s = c.shape;
    const std::size_t d = s.head_dim, q_ld = s.n_heads * d + c.room, kv_ld = c.capacity ? d : s.n_kv_heads * d + c.room, rows = s.n_sequences * c.n_q;
    const std::size_t guard = 64 / sizeof(float);
    TestDriver        driver(options);
    const auto        filled = [&]<class U>(std::size_t elements, U) { return std::vector<U>(elements + offset + guard, poison<U>()); };
    const auto        sent = [&]<class U>(const std::vector<U>& values) {
        auto memory = driver.allocate(values.size() * sizeof(U));
        driver.to_device(memory.data(), values.data(), values.size() * sizeof(U));
        return memory;
    };
    auto         q = filled(rows * q_ld, float{}), y = q;
    const auto   kv_size = c.capacity ? s.n_kv_heads * c.capacity * d : s.n_sequences * c.n_kv * kv_ld;
    auto         k = filled(kv_size, T{}), v = k;
    for (std::size_t i = 0; i < rows; ++i) std::copy_n(n.q.data() + i * s.n_heads * d, s.n_heads * d, q.data() + offset + i * q_ld);
    for (std::size_t j = 0; j < s.n_sequences * c.n_kv; ++j)
        for (std::size_t h = 0; h < s.n_kv_heads; ++h) {
            const std::size_t to = offset + (c.capacity ? (h * c.capacity + j) * d : j * kv_ld + h * d), from = (j * s.n_kv_heads + h) * d;
            std::copy_n(n.k.data() + from, d, k.data() + to), std::copy_n(n.v.data() + from, d, v.data() + to);
        }
    if (c.capacity) s.kv_head_stride = c.capacity * d;
    s.q_pos -= shift;
    const std::size_t  kv_rows = s.n_sequences * c.n_kv - shift, bytes = cuda::attend_scratch_bytes(s, rows, kv_rows, shift != 0);
    const auto         device_q = sent(q), device_k = sent(k), device_v = sent(v);
    const auto         scratch = sent(std::vector<std::byte>(bytes + 64, std::byte{0xff}));
    const auto         by = sent(std::vector<std::int32_t>{static_cast<std::int32_t>(shift)});
    if (bytes) driver.clear(scratch.data(), cuda::attend_counter_bytes);
    const auto rows_of = [&]<class U>(const Buffer<device>& data, U, std::size_t n_rows, std::size_t cols, std::size_t ld) {
        return cuda::Rows<U>{data.template as<U>() + offset, static_cast<std::int32_t>(n_rows), static_cast<std::int32_t>(cols), static_cast<std::int64_t>(ld)};
    };
    const std::size_t  kv_cols = c.capacity ? d : s.n_kv_heads * d;
    std::vector<float> first;
    for (int time = 0; time < 2; ++time) {  // the second call finds the counters that the first has left
        const auto to = sent(y);
        const auto constant = []<class U>(cuda::Rows<U> m) { return cuda::Rows<const U>{m.data, m.rows, m.cols, m.ld}; };
        cuda::attend(driver, scratch.template as<std::byte>(), constant(rows_of(device_q, float{}, rows, s.n_heads * d, q_ld)), constant(rows_of(device_k, T{}, kv_rows, kv_cols, kv_ld)),
                     constant(rows_of(device_v, T{}, kv_rows, kv_cols, kv_ld)), s, fast, shift ? by.template as<const std::int32_t>() : nullptr,
                     rows_of(to, float{}, rows, s.n_heads * d, q_ld));
        std::vector<float>     back(y.size()), found(n.q.size());
        std::vector<std::byte> behind(64);
        driver.to_host(back.data(), to.data(), back.size() * sizeof(float));
        driver.to_host(behind.data(), scratch.template as<std::byte>() + bytes, behind.size());
        bool kept = std::ranges::count(behind, std::byte{0xff}) == 64;
        for (std::size_t i = 0; i < back.size(); ++i)
            if (const std::size_t at = i - offset; i >= offset && at / q_ld < rows && at % q_ld < s.n_heads * d) found[at / q_ld * s.n_heads * d + at % q_ld] = back[i];
            else kept = kept && std::isnan(back[i]);
        CHECK_MESSAGE(kept, "wrote where it must not");
        if (time) CHECK(std::memcmp(first.data(), found.data(), found.size() * sizeof(float)) == 0);
        first = std::move(found);
    }
    return first;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) { return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

/// ||found - expected|| / ||expected||; infinite where a number is none.
template <class Found>
double error_of(const Found& found, const std::vector<double>& expected) {
    double difference = 0, all = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        difference += (static_cast<double>(found[i]) - expected[i]) * (static_cast<double>(found[i]) - expected[i]);
        all += expected[i] * expected[i];
    }
    return std::isfinite(difference) ? std::sqrt(difference / all) : std::numeric_limits<double>::infinity();
}

/// In f32: 2e-6 in all, and each value within 2e-5 of the rms and 1e-5 of itself. Sums have fewer than 4096 terms.
template <class T>
void check_exact(const Case& c, Wishes options = {}, std::size_t offset = 0) {
    const Numbers<T> n{c};
    const auto       expected = n.attend(false);
    const auto       found = run(n, false, options, 0, offset);
    CAPTURE(c.shape.head_dim);
    CAPTURE(c.n_q);
    CAPTURE(c.n_kv);
    CAPTURE(c.shape.q_pos);
    CAPTURE(c.shape.window);
    CHECK(error_of(found, expected) <= 2e-6);
    double squares = 0;
    for (double r : expected) squares += r * r;
    const double rms = std::sqrt(squares / static_cast<double>(expected.size()));
    bool         all = true;
    for (std::size_t i = 0; i < expected.size(); ++i) all = all && std::abs(found[i] - expected[i]) <= 2e-5 * rms + 1e-5 * std::abs(expected[i]);
    CHECK(all);
}

/// In bf16: at most twice as far from f64 as the plain way in bf16 is.
template <class T>
void check_fast(const Case& c, Wishes options = {}) {
    const Numbers<T> n{c};
    const auto       expected = n.attend(false);
    const double     plain = error_of(n.attend(true), expected), found = error_of(run(n, true, options), expected);
    CAPTURE(c.shape.head_dim);
    CAPTURE(c.n_q);
    CAPTURE(c.n_kv);
    CAPTURE(c.shape.q_pos);
    CAPTURE(c.shape.window);
    CHECK(found <= 2 * plain + 1e-5);
    CHECK(found >= plain / 2);  // that it was the tensor cores' kernel
}

AttentionShape shape(std::size_t n_heads, std::size_t n_kv_heads, std::size_t head_dim, bool causal = false, std::size_t q_pos = 0, std::size_t window = 0, std::size_t n_sequences = 1) {
    return {.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim, .n_sequences = n_sequences, .causal = causal, .q_pos = q_pos, .window = window,
            .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

/// Many rows, with and without masks, in rows of several heads and in a cache.
std::vector<Case> many_rows(std::size_t d) {
    return {{shape(2, 2, d), 65, 131},
            {shape(2, 1, d, true), 67, 67},
            {shape(1, 1, d, true, 70), 9, 79, 96},
            {shape(2, 1, d, true, 100, 33), 70, 170, 172},
            {shape(1, 1, d, false, 0, 0, 2), 7, 63},
            {shape(1, 1, d, true, 230, 200), 66, 296},  // a whole tile before the diagonal that only some rows see
            {shape(2, 2, d, true, 3, 5, 2), 31, 34}};
}

constexpr cuda::Order orders[]{cuda::Order::forward, cuda::Order::reversed, cuda::Order::shuffled};

}  // namespace

TEST_CASE("cuda/attention: many rows in f32 are those of f64, whatever the head and the mask") {
    for (std::size_t d : {1, 5, 16, 64, 72, 80, 96, 128})
        for (const Case& c : many_rows(d)) check_exact<float>(c);
    for (std::size_t d : {36, 72, 128})
        for (const Case& c : many_rows(d)) check_exact<bf16_t>(c);
    check_exact<float>({shape(2, 1, 129, true, 30), 40, 70});
    check_exact<bf16_t>({shape(2, 1, 256, true, 30, 20), 33, 70, 80});
}

TEST_CASE("cuda/attention: many rows on tensor cores are as near to f64 as bf16 is") {
    for (std::size_t d : {24, 64, 72, 80, 96, 128})
        for (const Case& c : many_rows(d)) {
            check_fast<float>(c, {.n_processors = 100});  // blocks of 64 queries
            check_fast<bf16_t>(c, {.n_processors = 100});
        }
    for (std::size_t d : {64, 72, 128})
        for (const Case& c : many_rows(d)) {
            check_fast<float>(c, {.n_processors = 1});  // and of 128
            check_fast<bf16_t>(c, {.n_processors = 1});
        }
}

TEST_CASE("cuda/attention: few rows take the cache in parts, at any length") {
    for (std::size_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511}) {
        check_exact<float>({shape(2, 2, 64, true, n - 1), 1, n, 512});
        check_exact<bf16_t>({shape(4, 1, 128, true, n - 1), 1, n, 512});
    }
    for (std::size_t d : {1, 7, 72, 80, 96, 127, 130, 256}) {
        check_exact<float>({shape(4, 2, d, true, 148), 2, 150, 160});
        check_exact<bf16_t>({shape(4, 2, d, true, 148), 2, 150, 160});
    }
    check_exact<bf16_t>({shape(32, 4, 64, true, 299), 1, 300, 301});
    check_exact<float>({shape(32, 4, 64, true, 126), 4, 130, 301});    // a row that sees none of the last part
    check_exact<float>({shape(12, 4, 32, true, 299, 100), 1, 300, 301});  // parts before the window
    check_exact<float>({shape(14, 2, 32, true, 126, 3), 4, 130, 301});
    check_exact<float>({shape(3, 3, 64, false, 0, 0, 2), 1, 200});        // a query over a picture
    check_exact<bf16_t>({shape(2, 1, 64, true, 100, 0, 3), 4, 104});
    check_exact<float>({shape(1, 1, 16, true, 4499), 1, 4500, 4500});     // more parts than are put together at a time
}

TEST_CASE("cuda/attention: more sequences than there are counters take several launches") {
    const Case c{shape(2, 2, 8, false, 0, 0, 3000), 1, 65};
    CHECK(cuda::AttendPlan::of(c.shape, 3000, 3000 * 65, false).n_sequences == cuda::attend_counters / 2);
    check_exact<float>(c);
}

TEST_CASE("cuda/attention: rows that start anywhere are read value by value") {
    Case c{shape(3, 3, 64, true), 40, 40};
    c.room = 3;
    check_exact<float>(c, {}, 1);
    check_exact<bf16_t>(c, {}, 1);
    c.n_q = 2, c.shape.q_pos = 38;
    check_exact<float>(c, {}, 1);
    check_exact<bf16_t>(c, {}, 3);
    // what tensor cores cannot take is computed in f32
    const Numbers<bf16_t> n{{shape(2, 2, 36, true), 40, 40}};
    CHECK(same_bits(run(n, true), run(n, false)));
}

TEST_CASE_TEMPLATE("cuda/attention: no bit depends on the order of threads, nor on the size of blocks", T, float, bf16_t) {
    for (const Case& c : {Case{shape(2, 1, 72, true, 60, 50), 66, 126, 130}, Case{shape(4, 1, 72, true, 190), 3, 193, 200}, Case{shape(1, 1, 72), 70, 70}}) {
        const Numbers<T> n{c};
        for (bool fast : {false, true}) {
            const auto expected = run(n, fast);
            for (cuda::Order order : orders)
                for (int n_processors : {1, 100}) CHECK(same_bits(run(n, fast, {order, n_processors}), expected));
        }
    }
}

TEST_CASE_TEMPLATE("cuda/attention: no kernel misses a barrier, nor a wait for copies", T, float, bf16_t) {
    for (const Case& c : {Case{shape(2, 1, 72, true, 60, 50), 66, 126, 130}, Case{shape(4, 1, 72, true, 190), 3, 193, 200}}) {
        const Numbers<T> n{c};
        for (bool fast : {false, true}) {
            const auto expected = run(n, fast);
            for (cuda::Order order : {cuda::Order::forward, cuda::Order::reversed})
                for (cuda::Threads threads : {cuda::Threads::fibers, cuda::Threads::fibers_with_late_copies})
                    CHECK(same_bits(run(n, fast, {.order = order, .threads = threads}), expected));
        }
    }
}

TEST_CASE_TEMPLATE("cuda/attention: a shift on the device is a later position, bit for bit", T, float, bf16_t) {
    for (std::size_t n_q : {1, 3, 20})
        for (std::size_t window : {0, 70})
            for (bool fast : {false, true}) {
                const Numbers<T> n{{shape(4, 2, 64, true, 180 - n_q, window), n_q, 180, 1000}};
                const auto       expected = run(n, fast);
                CHECK(same_bits(run(n, fast, {}, 1), expected));
                CHECK(same_bits(run(n, fast, {cuda::Order::reversed}, 150), expected));
            }
}

TEST_CASE("cuda/attention: in f32 a row has the same bits alone and among others") {
    const Numbers<float> n{{shape(2, 1, 80, true, 10, 100), 140, 150}};
    const auto           all = run(n, false);
    for (std::size_t i : {0, 63, 64, 131}) {
        Numbers<float> some = n;
        some.c.n_q = 8, some.c.shape.q_pos += i;
        some.q.assign(n.q.begin() + static_cast<std::ptrdiff_t>(i * 160), n.q.begin() + static_cast<std::ptrdiff_t>((i + 8) * 160));
        CHECK(same_bits(run(some, false), {all.begin() + static_cast<std::ptrdiff_t>(i * 160), all.begin() + static_cast<std::ptrdiff_t>((i + 8) * 160)}));
    }
}

TEST_CASE("cuda/attention: large scores, and any sign of the scale") {
    for (float scale : {0.5f, -0.5f, 0.0f}) {
        Case c{shape(2, 2, 64, true), 70, 70};
        c.shape.scale = scale;
        check_fast<float>(c), check_fast<bf16_t>(c);
        // scores of hundreds, where a rounding of the score is one of the weight: 2^-24 of the largest score, in each
        c.spread = 4;
        const Numbers<float> n{c};
        CHECK(error_of(run(n, false), n.attend(false)) <= 2e-5);
        Numbers<float> last{c};
        last.c.n_q = 3, last.c.shape.q_pos = 67;
        last.q.assign(n.q.begin() + 67 * 128, n.q.end());
        CHECK(error_of(run(last, false), last.attend(false)) <= 2e-5);
    }
}

TEST_CASE("cuda/attention: NaN goes through, to the rows that see it and no others") {
    for (bool fast : {false, true})
        for (std::size_t n_q : {3, 130}) {
            Numbers<float> n{{shape(1, 1, 64, true, 200), n_q, 200 + n_q, 400}};
            const auto     expected = run(n, fast);
            n.q[64] = std::numeric_limits<float>::quiet_NaN();  // row 1
            auto found = run(n, fast);
            for (std::size_t i = 0; i < n_q; ++i)
                for (std::size_t d = 0; d < 64; ++d) CHECK((i == 1 ? std::isnan(found[i * 64 + d]) : found[i * 64 + d] == expected[i * 64 + d]));
            n = Numbers<float>{n.c};
            n.k[5 * 64] = std::numeric_limits<float>::quiet_NaN();
            found = run(n, fast);
            for (float x : found) CHECK(std::isnan(x));
        }
}
