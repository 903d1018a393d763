// Training on Cpu: the gradients of its operations.
//
//     prism::ops::linear_dx<prism::Cpu>(cpu, dy, w, dx);     // needs this header
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/training.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace prism {

template <>
struct Training<Cpu> {
    template <class T> using Matrix = View<T, host, dyn, dyn>;
    template <class T> using Vector = View<T, host, dyn>;
    Cpu& be;

    template <Format F>
    void linear_dx(Matrix<const float> dy, const Packed<F, host>& w, Matrix<float> dx, bool add) {
        const std::size_t blocks = blocks_per_row<F>(w.cols);
        be.parallel_for(dy.rows(), 64, [&](std::size_t begin, std::size_t end) {
            std::vector<typename F::block> row(blocks);
            std::vector<float>             values(blocks * F::values_per_block);
            for (std::size_t i = begin; i < end && !add; ++i) std::fill_n(dx.row(i).data(), dx.cols(), 0.0f);
            for (std::size_t o = 0; o < w.rows; ++o) {
                copy_row(w, o, row.data());
                F::decode(std::span<const typename F::block>(row), std::span(values));
                for (std::size_t i = begin; i < end; ++i)
                    for (std::size_t j = 0; j < w.cols; ++j) dx(i, j) += dy(i, o) * values[j];
            }
        });
    }

    void linear_dw(Matrix<const float> dy, Matrix<const float> x, Matrix<float> dw) {
        be.parallel_for(dw.rows(), 16, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = 0; i < dy.rows(); ++i)
                for (std::size_t o = begin; o < end; ++o)
                    for (std::size_t j = 0; j < x.cols(); ++j) dw(o, j) += dy(i, o) * x(i, j);
        });
    }

    void column_sums(Matrix<const float> dy, Vector<float> db) {
        be.parallel_for(dy.cols(), 64, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = 0; i < dy.rows(); ++i)
                for (std::size_t j = begin; j < end; ++j) db(j) += dy(i, j);
        });
    }

    void layer_norm(Matrix<const float> x, Vector<const float> weight, float eps, Matrix<const float> dy, Matrix<float> dx, Vector<float> dw, Vector<float> db) {
        const auto d = static_cast<float>(x.cols());
        rows(x, dw, db, [&](std::size_t i, float* w_sums, float* b_sums) {
            float mean = 0, variance = 0, h_sum = 0, hx_sum = 0;
            for (std::size_t j = 0; j < x.cols(); ++j) mean += x(i, j) / d;
            for (std::size_t j = 0; j < x.cols(); ++j) variance += (x(i, j) - mean) * (x(i, j) - mean) / d;
            const float r = 1 / std::sqrt(variance + eps);
            for (std::size_t j = 0; j < x.cols(); ++j) {
                const float normal = (x(i, j) - mean) * r, h = dy(i, j) * weight(j);
                h_sum += h / d, hx_sum += h * normal / d;
                if (w_sums) w_sums[j] += dy(i, j) * normal;
                if (b_sums) b_sums[j] += dy(i, j);
            }
            for (std::size_t j = 0; j < x.cols(); ++j) dx(i, j) += r * (dy(i, j) * weight(j) - h_sum - (x(i, j) - mean) * r * hx_sum);
        });
    }

    void rms_norm(Matrix<const float> x, Vector<const float> weight, float eps, Matrix<const float> dy, Matrix<float> dx, Vector<float> dw) {
        const auto d = static_cast<float>(x.cols());
        rows(x, dw, {}, [&](std::size_t i, float* w_sums, float*) {
            float squares = 0, hx_sum = 0;
            for (std::size_t j = 0; j < x.cols(); ++j) squares += x(i, j) * x(i, j) / d;
            const float r = 1 / std::sqrt(squares + eps);
            for (std::size_t j = 0; j < x.cols(); ++j) {
                hx_sum += dy(i, j) * weight(j) * x(i, j) * r / d;
                if (w_sums) w_sums[j] += dy(i, j) * x(i, j) * r;
            }
            for (std::size_t j = 0; j < x.cols(); ++j) dx(i, j) += r * (dy(i, j) * weight(j) - x(i, j) * r * hx_sum);
        });
    }

    void activate(Activation act, Matrix<const float> z, Matrix<float> dy) {
        rows(z, {}, {}, [&](std::size_t i, float*, float*) {
            for (std::size_t j = 0; j < z.cols(); ++j) dy(i, j) *= slope(act, z(i, j));
        });
    }

    void silu_mul(Matrix<const float> gate, Matrix<const float> up, Matrix<const float> dy, Matrix<float> dgate, Matrix<float> dup) {
        rows(gate, {}, {}, [&](std::size_t i, float*, float*) {
            for (std::size_t j = 0; j < gate.cols(); ++j) {
                const float g = dy(i, j), z = gate(i, j), v = up(i, j);
                dgate(i, j) = g * v * slope(Activation::silu, z);
                dup(i, j) = g * z / (1 + std::exp(-z));
            }
        });
    }

    void scaled(Matrix<const float> branch, Vector<const float> gamma, Matrix<const float> dy, Matrix<float> dbranch, Vector<float> dgamma) {
        rows(branch, dgamma, {}, [&](std::size_t i, float* sums, float*) {
            for (std::size_t j = 0; j < branch.cols(); ++j) {
                const float g = dy(i, j);
                if (sums) sums[j] += g * branch(i, j);
                dbranch(i, j) = g * gamma(j);
            }
        });
    }

    void attention(Matrix<const float> q, Matrix<const float> k, Matrix<const float> v, Matrix<const float> y, const AttentionShape& s, Matrix<const float> dy,
                   Matrix<float> dq, Matrix<float> dk, Matrix<float> dv) {
        const std::size_t n_q = q.rows() / s.n_sequences, n_kv = k.rows() / s.n_sequences, shared = s.n_heads / s.n_kv_heads, d = s.head_dim;
        be.parallel_for(s.n_sequences * s.n_kv_heads, 1, [&](std::size_t task, std::size_t) {
            const std::size_t sequence = task / s.n_kv_heads, kv_head = task % s.n_kv_heads, keys = sequence * n_kv, at_kv = kv_head * d;
            for (std::size_t j = 0; j < n_kv; ++j) std::fill_n(dk.row(keys + j).data() + at_kv, d, 0.0f), std::fill_n(dv.row(keys + j).data() + at_kv, d, 0.0f);
            std::vector<float> p(n_kv);
            for (std::size_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head)
                for (std::size_t i = 0; i < n_q; ++i) {
                    const std::size_t row = sequence * n_q + i, at = head * d;
                    const std::size_t end = s.causal ? s.q_pos + i + 1 : n_kv, begin = s.causal && s.window && end > s.window ? end - s.window : 0;
                    float             top = -INFINITY, total = 0, own = 0;
                    for (std::size_t j = begin; j < end; ++j) {
                        p[j] = 0;
                        for (std::size_t c = 0; c < d; ++c) p[j] += q(row, at + c) * k(keys + j, at_kv + c);
                        top = std::max(top, p[j] *= s.scale);
                    }
                    for (std::size_t j = begin; j < end; ++j) total += p[j] = std::exp(p[j] - top);
                    for (std::size_t c = 0; c < d; ++c) own += dy(row, at + c) * y(row, at + c), dq(row, at + c) = 0;
                    for (std::size_t j = begin; j < end; ++j) {
                        float slope = -own;
                        p[j] /= total;
                        for (std::size_t c = 0; c < d; ++c) slope += dy(row, at + c) * v(keys + j, at_kv + c);
                        slope *= p[j] * s.scale;
                        for (std::size_t c = 0; c < d; ++c) {
                            dv(keys + j, at_kv + c) += p[j] * dy(row, at + c);
                            dk(keys + j, at_kv + c) += slope * q(row, at + c);
                            dq(row, at + c) += slope * k(keys + j, at_kv + c);
                        }
                    }
                }
        });
    }

    void rope(Matrix<const float> cos, Matrix<const float> sin, std::size_t n_heads, Matrix<float> dx) {
        const std::size_t n = cos.cols(), head_dim = dx.cols() / n_heads;
        rows(dx, {}, {}, [&](std::size_t i, float*, float*) {
            for (std::size_t h = 0; h < n_heads; ++h)
                for (std::size_t j = 0; j < n; ++j) {
                    float &a = dx(i, h * head_dim + j), &b = dx(i, h * head_dim + j + n);
                    const float u = a, v = b;
                    a = u * cos(i, j) + v * sin(i, j), b = v * cos(i, j) - u * sin(i, j);
                }
        });
    }

    void scatter_add(std::span<const std::int32_t> ids, Matrix<const float> dy, Matrix<float> dw) {
        be.parallel_for(dy.cols(), 256, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = 0; i < ids.size(); ++i)
                for (std::size_t j = begin; j < end; ++j) dw(static_cast<std::size_t>(ids[i]), j) += dy(i, j);
        });
    }

    void add_table(Matrix<const float> dy, Matrix<float> dtable) {
        rows(dtable, {}, {}, [&](std::size_t i, float*, float*) {
            for (std::size_t from = i; from < dy.rows(); from += dtable.rows())
                for (std::size_t j = 0; j < dy.cols(); ++j) dtable(i, j) += dy(from, j);
        });
    }

    double cross_entropy(Matrix<float> logits, std::span<const std::int32_t> labels, float scale) {
        std::vector<double> losses(labels.size());
        be.parallel_for(labels.size(), 4, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) {
                const auto row = logits.row(i).span();
                if (labels[i] == ignored_label) {
                    std::fill(row.begin(), row.end(), 0.0f);
                    continue;
                }
                const auto  label = static_cast<std::size_t>(labels[i]);
                const float top = *std::max_element(row.begin(), row.end());
                double      total = 0;
                losses[i] = static_cast<double>(top) - static_cast<double>(row[label]);
                for (float& z : row) z = std::exp(z - top), total += static_cast<double>(z);
                losses[i] += std::log(total);
                for (float& z : row) z *= scale / static_cast<float>(total);
                row[label] -= scale;
            }
        });
        double sum = 0;
        for (double loss : losses) sum += loss;
        return sum;
    }

    double squared_norm(Vector<const float> x) {
        constexpr std::size_t piece = 16384;
        std::vector<double>   sums((x.size() + piece - 1) / piece);
        be.parallel_for(x.size(), piece, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) sums[begin / piece] += static_cast<double>(x(i)) * static_cast<double>(x(i));
        });
        double sum = 0;
        for (double s : sums) sum += s;
        return sum;
    }

    void adamw(Vector<float> theta, Vector<const float> grad, Vector<float> m, Vector<float> v, const AdamWStep& step) {
        const auto  t = static_cast<double>(step.step);
        const float keep = static_cast<float>(1 - step.lr * step.decay), to_m = static_cast<float>(1 - step.beta1), beta2 = static_cast<float>(step.beta2);
        const float to_v = static_cast<float>(1 - step.beta2), eps = static_cast<float>(step.eps);
        const float rate = static_cast<float>(step.lr / (1 - std::pow(step.beta1, t))), root = static_cast<float>(std::sqrt(1 - std::pow(step.beta2, t)));
        be.parallel_for(theta.size(), 16384, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) {
                const float g = grad(i) * step.clip;
                m(i) += (g - m(i)) * to_m;
                v(i) = beta2 * v(i) + to_v * g * g;
                theta(i) = theta(i) * keep - rate * m(i) / (std::sqrt(v(i)) / root + eps);
            }
        });
    }

private:
    static float slope(Activation act, float z) {
        const float pi = 3.14159265358979f;
        const auto  sigmoid = [](float u) { return 1 / (1 + std::exp(-u)); };
        switch (act) {
            case Activation::gelu_erf: return 0.5f * (1 + std::erf(z * 0.707106781f)) + z * std::exp(-0.5f * z * z) / std::sqrt(2 * pi);
            case Activation::gelu_tanh: {
                const float c = std::sqrt(2 / pi), t = std::tanh(c * (z + 0.044715f * z * z * z));
                return 0.5f * (1 + t) + 0.5f * z * (1 - t * t) * c * (1 + 3 * 0.044715f * z * z);
            }
            case Activation::quick_gelu: return sigmoid(1.702f * z) * (1 + 1.702f * z * sigmoid(-1.702f * z));
            case Activation::silu: return sigmoid(z) * (1 + z * sigmoid(-z));
            case Activation::none: break;
        }
        return 1;
    }

    /// body(i, first, second) for every row of x in pieces that depend on the shape alone. first and second point to sums of
    /// the piece, one for each column, which are added to `a` and `b` in order; null where those are empty.
    template <class Body>
    void rows(Matrix<const float> x, Vector<float> a, Vector<float> b, Body&& body) {
        const std::size_t  piece = std::max<std::size_t>(32, 16384 / std::max<std::size_t>(1, x.cols())), n_pieces = (x.rows() + piece - 1) / piece, d = x.cols();
        std::vector<float> sums(n_pieces * 2 * d);
        be.parallel_for(x.rows(), piece, [&](std::size_t begin, std::size_t end) {
            float* const first = sums.data() + begin / piece * 2 * d;
            for (std::size_t i = begin; i < end; ++i) body(i, a.empty() ? nullptr : first, b.empty() ? nullptr : first + d);
        });
        for (std::size_t p = 0; p < n_pieces; ++p)
            for (std::size_t j = 0; j < d; ++j) {
                if (!a.empty()) a(j) += sums[p * 2 * d + j];
                if (!b.empty()) b(j) += sums[p * 2 * d + d + j];
            }
    }
};

static_assert(TrainingBackend<Cpu>);

}  // namespace prism
