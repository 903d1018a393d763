// EmulatedRanks: several emulated devices that hold a model together, each on a thread of its own.
//
//     prism::cuda::EmulatedRanks ranks{2};
//     prism::run_ranks(ranks, [&](prism::Rank& rank) {
//         prism::EmulatedCuda be{{.driver = ranks.options(rank.number())}};
//         ...
//     });
#pragma once

#include "prism/backend/cuda/emulator.hpp"
#include "prism/backend/parallel.hpp"

#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace prism::cuda {

class EmulatedRanks {
public:
    explicit EmulatedRanks(std::size_t n) : shared_(std::make_shared<Shared>(n)) {}

    std::size_t n() const { return shared_->parts.size(); }
    void        stop() noexcept { shared_->meeting.stop(); }

    EmulatorOptions options(std::size_t rank, EmulatorOptions others = {}) const {
        others.ranks = {rank, n(), [shared = shared_, rank](float* data, std::size_t count) { sum(*shared, rank, data, count); }, {}};
        return others;
    }

private:
    struct Part {
        const float* data = nullptr;
        std::size_t  count = 0;
    };
    struct Shared {
        explicit Shared(std::size_t n) : meeting(n), parts(n) {}
        Meeting           meeting;
        std::vector<Part> parts;
    };

    /// Added in the order of ranks, so that all have the same bits.
    static void sum(Shared& shared, std::size_t rank, float* data, std::size_t count) {
        shared.parts[rank] = {data, count};
        shared.meeting.all();
        for (const Part& part : shared.parts)
            if (part.count != count) throw DeviceError{"all_reduce", 1, "ranks add up different counts of numbers: they have not done the same"};
        std::vector<float> sums(shared.parts[0].data, shared.parts[0].data + count);
        for (std::size_t r = 1; r < shared.parts.size(); ++r)
            for (std::size_t i = 0; i < count; ++i) sums[i] += shared.parts[r].data[i];
        shared.meeting.all();  // from here on nobody reads the others' numbers
        std::memcpy(data, sums.data(), count * sizeof(float));
    }

    std::shared_ptr<Shared> shared_;
};

}  // namespace prism::cuda
