// Matrices of random numbers with room between their rows, and what every test of an operation asks of its result.
#pragma once

#include "prism/backend/cpu/cpu.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

namespace prism::test {

/// Unit roundoff of f32: the relative error of one rounding.
inline constexpr double u = 0x1p-24;

/// The instruction sets of this machine.
inline std::vector<Isa> isas() {
    std::vector<Isa> all;
    for (Isa isa : all_isas)
        if (runs(isa)) all.push_back(isa);
    return all;
}

/// `n` numbers of a normal distribution; the same for the same seed.
inline std::vector<float> normal(std::size_t n, unsigned seed, float spread = 1, float centre = 0) {
    std::mt19937                    random{seed};
    std::normal_distribution<float> draw{centre, spread};
    std::vector<float>              values(n);
    for (float& x : values) x = draw(random);
    return values;
}

/// A matrix [rows, cols] whose rows are `ld` apart. What lies between and behind the rows is poison.
class Array {
public:
    Array(std::size_t rows, std::size_t cols, std::size_t ld = 0) : rows_(rows), cols_(cols), ld_(ld ? ld : cols), values_(rows * ld_ + margin, poison) {}

    static Array random(std::size_t rows, std::size_t cols, unsigned seed, std::size_t ld = 0, float spread = 1, float centre = 0) {
        Array      a{rows, cols, ld};
        const auto values = normal(rows * cols, seed, spread, centre);
        for (std::size_t i = 0; i < rows; ++i)
            for (std::size_t j = 0; j < cols; ++j) a.values_[i * a.ld_ + j] = values[i * cols + j];
        return a;
    }

    Mat<Cpu>             mat() { return {values_.data(), {rows_, cols_}, {ld_, 1}}; }
    In<Cpu>              in() const { return {values_.data(), {rows_, cols_}, {ld_, 1}}; }
    Vec<Cpu, const float> row(std::size_t i = 0) const { return {values_.data() + i * ld_, {cols_}}; }
    std::size_t          rows() const { return rows_; }
    std::size_t          cols() const { return cols_; }
    float                operator()(std::size_t i, std::size_t j) const { return values_[i * ld_ + j]; }
    /// All values, poison included: what has to be equal where bits have to be.
    const std::vector<float>& values() const { return values_; }

    /// Whether nothing was written between the rows or behind the last.
    bool kept_to_its_rows() const {
        for (std::size_t i = 0; i < values_.size(); ++i)
            if ((i / ld_ >= rows_ || i % ld_ >= cols_) && values_[i] != poison) return false;
        return true;
    }

private:
    static constexpr float       poison = -7777;
    static constexpr std::size_t margin = 16;

    std::size_t        rows_, cols_, ld_;
    std::vector<float> values_;
};

inline double at(const Array& a, std::size_t i, std::size_t j) { return static_cast<double>(a(i, j)); }

/// What scores of attention are multiplied by.
inline float scale_of(std::size_t head_dim) { return 1 / std::sqrt(static_cast<float>(head_dim)); }

/// The largest ratio of |found - expected| to its bound over a matrix; expected(i, j) and bound(i, j) in f64. At most 1
/// where everything is within its bound, infinite for NaN.
template <class Expected, class Bound>
double worst(const Array& found, Expected expected, Bound bound) {
    double most = 0;
    for (std::size_t i = 0; i < found.rows(); ++i)
        for (std::size_t j = 0; j < found.cols(); ++j) {
            const double error = std::abs(static_cast<double>(found(i, j)) - expected(i, j)), limit = bound(i, j);
            const double ratio = error <= limit ? (limit > 0 ? error / limit : 0) : limit > 0 ? error / limit : std::numeric_limits<double>::infinity();
            if (!(ratio <= most)) most = std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
        }
    return most;
}

/// Bound of a sum of `n` products in f32, in any order, with `more` roundings after it: times the sum of magnitudes.
inline double sum_bound(std::size_t n, double magnitudes, double more = 2) { return (static_cast<double>(n) + more) * u * magnitudes; }

/// The element-wise functions in f64, from their definitions.
inline double activation(Activation a, double z) {
    switch (a) {
        case Activation::gelu_erf: return 0.5 * z * (1 + std::erf(z / std::sqrt(2.0)));
        case Activation::gelu_tanh: return 0.5 * z * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (z + 0.044715 * z * z * z)));
        case Activation::quick_gelu: return z / (1 + std::exp(-1.702 * z));
        case Activation::silu: return z / (1 + std::exp(-z));
        case Activation::none: break;
    }
    return z;
}
inline constexpr Activation activations[]{Activation::none, Activation::gelu_erf, Activation::gelu_tanh, Activation::quick_gelu, Activation::silu};

/// Bound of an activation in f32. All are z times a number s in [0, 1]; s has about ten roundings, those of its argument
/// weighing |a| s (1 - s) < 0.23 each. Where z s is lost in the subnormals, their step.
inline double activation_bound(double z) { return 10 * u * std::abs(z) + 0x1p-149; }
/// The largest slope of all of them: what an error of the argument grows by.
inline constexpr double activation_slope = 1.13;

}  // namespace prism::test
