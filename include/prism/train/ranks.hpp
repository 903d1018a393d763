// Ranks: the processes that train one model together, as one of them sees the others. All that they do in common is made of one
// exchange of bytes between two of them, which is the business of whoever makes a Ranks (mpi.hpp; the tests use threads).
//
//     prism::Mpi mpi;                                             // mpi.hpp
//     const prism::Ranks& ranks = mpi.ranks();
//     const auto config = ranks.together([&] { return prism::TrainConfig::open(path); });   // fails on all ranks, or on none
//
// Calls are collective: every rank makes the same ones in the same order. Results do not depend on who is how fast.
#pragma once

#include "prism/core/error.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace prism {

/// Another rank failed, and has thrown what went wrong.
class RankError : public Error {
public:
    explicit RankError(std::size_t rank) : Error("stopped, because rank " + std::to_string(rank) + " failed"), rank(rank) {}

    std::size_t rank;
};

class Ranks {
public:
    static constexpr std::size_t nobody = std::numeric_limits<std::size_t>::max();
    /// Sends `out` to rank `to` while it receives `in` from rank `from`; either may be nobody. At most piece_bytes each way, but
    /// for what is gathered.
    using Exchange = std::function<void(std::size_t to, std::span<const std::byte> out, std::size_t from, std::span<std::byte> in)>;
    static constexpr std::size_t piece_bytes = std::size_t{1} << 20;  // n of them are the scratch of a sum

    /// A process that is alone.
    Ranks() = default;
    Ranks(std::size_t rank, std::size_t n, Exchange exchange) : rank_(rank), n_(n), exchange_(std::move(exchange)) {}

    std::size_t rank() const { return rank_; }
    std::size_t n() const { return n_; }
    bool        first() const { return rank_ == 0; }

    /// What `body` returns, once it has on every rank. Where it throws on some, the first of them throws that, and all others
    /// RankError. `body` itself calls nothing collective.
    template <class Fn>
    auto together(Fn&& body) const {
        using Result = std::invoke_result_t<Fn&>;
        if (n_ == 1) return body();
        std::optional<std::conditional_t<std::is_void_v<Result>, char, Result>> result;
        std::exception_ptr                                                      problem;
        try {
            if constexpr (std::is_void_v<Result>) body();
            else result.emplace(body());
        } catch (...) { problem = std::current_exception(); }
        const auto failed = gather<char>(problem != nullptr);
        if (const auto r = static_cast<std::size_t>(std::ranges::find(failed, 1) - failed.begin()); r < n_) {
            *stopped_ = true;
            if (r == rank_) std::rethrow_exception(problem);
            throw RankError{r};
        }
        if constexpr (!std::is_void_v<Result>) return std::move(*result);
    }
    /// Whether `together` has thrown: every rank knows then that it is over.
    bool stopped() const { return *stopped_; }

    /// The values of all ranks, as many of each, in the order of ranks.
    template <class T>
        requires std::is_trivially_copyable_v<T>
    std::vector<T> gather(std::span<const T> mine) const {
        std::vector<T> all(n_ * mine.size());
        const auto     of = [&](std::size_t r) { return std::span(all).subspan(r * mine.size(), mine.size()); };
        std::ranges::copy(mine, of(rank_).begin());
        each_other([&](std::size_t to, std::size_t from) { exchange_(to, std::as_bytes(mine), from, std::as_writable_bytes(of(from))); });
        return all;
    }
    template <class T>
    std::vector<T> gather(T mine) const {
        return gather(std::span<const T>(&mine, 1));
    }
    double total(double mine) const {
        const auto all = gather(mine);
        return std::accumulate(all.begin(), all.end(), 0.0);
    }

    /// The values of the first rank, everywhere. They go from rank to rank, piece by piece.
    template <class T>
        requires std::is_trivially_copyable_v<T>
    void broadcast(std::span<T> values) const {
        if (n_ == 1) return;
        each_piece(std::as_writable_bytes(values), [&](std::span<std::byte> piece) {
            if (!first()) exchange_(nobody, {}, rank_ - 1, piece);
            if (rank_ + 1 < n_) exchange_(rank_ + 1, piece, nobody, {});
        });
    }
    template <class T>
    T of_first(T value) const {
        broadcast(std::span(&value, 1));
        return value;
    }
    std::string of_first(std::string text) const {
        text.resize(of_first(text.size()));
        broadcast(std::span(text));
        return text;
    }

    /// Sums of `all` over the ranks, each a chain of additions in the order of ranks. Rank r has those of its share,
    /// [bounds[r], bounds[r + 1]), in place; the rest stays as it was. Of N values in equal shares a rank sends, and receives,
    /// 4 N (n - 1) / n bytes.
    void sum_shares(std::span<float> all, std::span<const std::size_t> bounds) const {
        std::vector<float> terms(n_ == 1 ? 0 : n_ * std::min(piece, largest(bounds)));
        each_part(all, bounds, [&](auto&& part) {
            const std::span<float> mine = part(rank_);
            const auto             term = [&](std::size_t r) { return std::span(terms).subspan(r * mine.size(), mine.size()); };
            std::ranges::copy(mine, term(rank_).begin());
            each_other([&](std::size_t to, std::size_t from) { exchange_(to, std::as_bytes(part(to)), from, std::as_writable_bytes(term(from))); });
            std::ranges::copy(term(0), mine.begin());
            for (std::size_t r = 1; r < n_; ++r) std::ranges::transform(mine, term(r), mine.begin(), std::plus{});
        });
    }
    /// Every rank gets the shares of the others. As many bytes as above.
    void gather_shares(std::span<float> all, std::span<const std::size_t> bounds) const {
        each_part(all, bounds, [&](auto&& part) {
            each_other([&](std::size_t to, std::size_t from) { exchange_(to, std::as_bytes(part(rank_)), from, std::as_writable_bytes(part(from))); });
        });
    }

    /// The values of all ranks one after another, on the first rank, in `store` or where they are; nothing elsewhere.
    std::span<const float> collect(std::span<float> mine, std::vector<float>& store) const {
        if (n_ == 1) return mine;
        const auto sizes = gather(mine.size());
        if (!first()) {
            each_piece(std::as_writable_bytes(mine), [&](std::span<std::byte> piece) { exchange_(0, piece, nobody, {}); });
            return {};
        }
        store.resize(std::accumulate(sizes.begin(), sizes.end(), std::size_t{0}));
        std::ranges::copy(mine, store.begin());
        for (std::size_t r = 1, at = sizes[0]; r < n_; at += sizes[r++])
            each_piece(std::as_writable_bytes(std::span(store).subspan(at, sizes[r])), [&](std::span<std::byte> piece) { exchange_(nobody, {}, r, piece); });
        return store;
    }
    /// The other way: `whole`, as collect gives it to the first rank, becomes every rank's `mine`.
    void deal(std::span<const std::byte> whole, std::span<float> mine) const {
        const auto to = std::as_writable_bytes(mine);
        const auto sizes = gather(to.size());
        if (!first()) return each_piece(to, [&](std::span<std::byte> piece) { exchange_(nobody, {}, 0, piece); });
        std::ranges::copy(whole.first(to.size()), to.begin());
        for (std::size_t r = 1, at = sizes[0]; r < n_; at += sizes[r++])
            each_piece(whole.subspan(at, sizes[r]), [&](std::span<const std::byte> piece) { exchange_(r, piece, nobody, {}); });
    }

private:
    static constexpr std::size_t piece = piece_bytes / sizeof(float);

    /// f(to, from) for the others, so that in each round everyone sends to one and receives from one.
    template <class Fn>
    void each_other(Fn&& f) const {
        for (std::size_t d = 1; d < n_; ++d) f((rank_ + d) % n_, (rank_ + n_ - d) % n_);
    }
    template <class Byte, class Fn>
    static void each_piece(std::span<Byte> bytes, Fn&& f) {
        for (; !bytes.empty(); bytes = bytes.subspan(std::min(piece_bytes, bytes.size()))) f(bytes.first(std::min(piece_bytes, bytes.size())));
    }
    static std::size_t largest(std::span<const std::size_t> bounds) {
        std::size_t most = 0;
        for (std::size_t r = 1; r < bounds.size(); ++r) most = std::max(most, bounds[r] - bounds[r - 1]);
        return most;
    }
    /// f(part) for one piece of all shares after another: part(r) is that of rank r, empty where its share has ended.
    template <class Fn>
    void each_part(std::span<float> all, std::span<const std::size_t> bounds, Fn&& f) const {
        if (n_ == 1) return;
        for (std::size_t at = 0; at < largest(bounds); at += piece) f([&](std::size_t r) {
            const std::size_t begin = std::min(bounds[r] + at, bounds[r + 1]);
            return all.subspan(begin, std::min(piece, bounds[r + 1] - begin));
        });
    }

    std::size_t           rank_ = 0, n_ = 1;
    Exchange              exchange_;
    std::shared_ptr<bool> stopped_ = std::make_shared<bool>(false);
};

}  // namespace prism
