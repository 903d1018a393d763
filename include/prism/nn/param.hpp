// Param and Weight: the leaves of every module. A shape from the configuration, and values bound from a file.
#pragma once

#include "prism/backend/concept.hpp"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace prism {

namespace detail {

/// What both kinds of leaf share: a shape, a place, and who keeps it.
template <class B>
class Leaf {
public:
    Leaf() = default;
    explicit Leaf(std::vector<std::size_t> shape) : shape_(std::move(shape)) {}
    Leaf(Leaf&&) noexcept = default;
    Leaf& operator=(Leaf&&) noexcept = default;

    /// As in the file, outermost first; empty when the part is absent by configuration.
    const std::vector<std::size_t>& shape() const { return shape_; }
    std::size_t                     size() const {
        std::size_t n = shape_.empty() ? 0 : 1;
        for (std::size_t e : shape_) n *= e;
        return n;
    }
    bool  bound() const { return placed_.owner != nullptr || placed_.data != nullptr; }
    /// The type of the values.
    Dtype dtype() const { return dtype_; }

    /// The values as they lie in memory, to write them as they are.
    TensorInfo stored() const {
        TensorInfo t;
        t.dtype = dtype_, t.shape = shape_, t.data = static_cast<const std::byte*>(data()), t.owner = placed_.owner, t.panels = placed_.panels;
        return t;
    }

    /// Takes values that lie where the backend can read them, in a type that the parameter may have.
    void take(Placed values, Dtype dtype) noexcept { placed_ = std::move(values), dtype_ = dtype; }
    /// Makes the part absent, as if the configuration said so.
    void leave_out() noexcept { shape_.clear(), placed_ = {}; }

protected:
    const void* data() const {
        if (B::has_numbers && !placed_.data && size() > 0)
            throw Error("a parameter " + to_string(shape_) + " has no values yet: load the model first");
        return placed_.data;
    }

    std::vector<std::size_t> shape_;
    Placed                   placed_;
    Dtype                    dtype_ = Dtype::f32;
};

}  // namespace detail

/// A small parameter, kept in f32: biases, norms, tables. Move-only.
template <Backend B>
class Param : public detail::Leaf<B> {
public:
    using detail::Leaf<B>::Leaf;

    /// The type that values stored in another one are kept in.
    static constexpr Dtype kept_as(Dtype) { return Dtype::f32; }
    Placed place(B& be, const TensorInfo& tensor, Dtype dtype) const { return be.place(tensor, dtype); }
    /// Takes the values of a tensor of this shape: in place where the backend can, else converted to f32.
    void bind(B& be, const TensorInfo& tensor) { this->take(be.place(tensor, Dtype::f32), Dtype::f32); }

    /// All values in one row; empty when absent.
    Vec<B, const float> view() const { return {static_cast<const float*>(this->data()), {this->size()}}; }
    /// The values as rows of the last extent.
    In<B> mat() const {
        const std::size_t cols = this->shape_.empty() ? 0 : this->shape_.back();
        return {static_cast<const float*>(this->data()), {cols ? this->size() / cols : 0, cols}};
    }
};

/// What a matrix is for: products read it in the layout that their backend likes best, lookups row by row, as in its file.
enum class WeightUse { products, lookups };

/// A matrix of a product, [d_out, d_in...], in whatever format its file stores it. Move-only.
template <Backend B, class Formats = all_formats>
class Weight : public detail::Leaf<B> {
public:
    Weight() = default;
    explicit Weight(std::vector<std::size_t> shape, WeightUse use = WeightUse::products) : detail::Leaf<B>(std::move(shape)), use_(use) {}

    /// Values of a tensor of this shape where products or lookups can read them.
    Placed place(B& be, const TensorInfo& tensor, Dtype dtype) const {
        return use_ == WeightUse::products || tensor.panels ? be.place_matrix(tensor, dtype, rows()) : be.place(tensor, dtype);
    }

    /// The type that values stored in another one are kept in: that one where `Formats` lists it, else f32.
    static constexpr Dtype kept_as(Dtype stored) { return listed(stored, Formats{}) ? stored : Dtype::f32; }
    /// Takes the values of a tensor of this shape: in place where the backend can, else converted.
    void bind(B& be, const TensorInfo& tensor) { this->take(place(be, tensor, kept_as(tensor.dtype)), kept_as(tensor.dtype)); }

    std::size_t rows() const { return this->shape_.empty() ? 0 : this->shape_[0]; }
    std::size_t cols() const { return rows() ? this->size() / rows() : 0; }

    /// Calls f with the matrix [rows, cols] in its format: one branch per call, none per element.
    template <class Fn>
    void visit(Fn&& f) const {
        visit_rows(0, rows(), f);
    }
    /// The same with `count` rows from `first` on.
    template <class Fn>
    void visit_rows(std::size_t first, std::size_t count, Fn&& f) const {
        if (first + count > rows())
            throw ShapeError{"Weight", "rows", "at most " + std::to_string(rows()), std::to_string(first + count)};
        dispatch(first, count, f, Formats{});
    }

    /// The matrix, its format left for run time.
    AnyPacked<typename B::space> any() const {
        AnyPacked<typename B::space> matrix;
        visit([&](const auto& w) { matrix = w; });
        return matrix;
    }

private:
    template <class... F>
    static constexpr bool listed(Dtype dtype, format_list<F...>) {
        return ((dtype == F::dtype) || ...);
    }
    template <class Fn, class... F>
    void dispatch(std::size_t first, std::size_t count, Fn& f, format_list<F...>) const {
        const auto call = [&]<class G>(G) {
            if (this->dtype_ != G::dtype) return false;
            const std::size_t stride = blocks_per_row<G>(cols());
            if (this->placed_.panels) {
                f(Packed<G, typename B::space>{nullptr, count, cols(), 0, static_cast<const std::byte*>(this->data()), first, this->placed_.partial});
                return true;
            }
            const auto* blocks = static_cast<const typename G::block*>(this->data());
            f(Packed<G, typename B::space>{blocks ? blocks + first * stride : nullptr, count, cols(), stride, nullptr, 0, this->placed_.partial});
            return true;
        };
        static_assert(listed(Dtype::f32, format_list<F...>{}), "what is stored in other formats is kept in f32");
        static_cast<void>((call(F{}) || ...));
    }

    WeightUse use_ = WeightUse::products;
};

}  // namespace prism
