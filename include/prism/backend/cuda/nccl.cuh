// Nccl: several GPUs of one kind that hold a model together; NCCL adds up their numbers. For sources that link prism::nccl.
//
//     prism::cuda::Nccl nccl{{0, 1}};
//     prism::run_ranks(nccl, [&](prism::Rank& rank) {
//         prism::Cuda cuda{{.driver = nccl.options(rank.number())}};
//         ...
//     });
//
// The environment should say CUDA_MODULE_LOADING=EAGER, or NCCL's kernels may wait for ones that are still being loaded.
#pragma once

#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/runtime.cuh"
#include "prism/backend/parallel.hpp"

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace prism::cuda {

class Nccl {
public:
    /// A rank on each of these devices. Throws DeviceError where they cannot work together, or one stands twice.
    explicit Nccl(std::vector<int> devices) : group_(std::make_shared<Group>(std::move(devices))) {}

    std::size_t n() const { return group_->devices.size(); }
    /// Ends what ranks wait for; none of them can go on.
    void stop() noexcept { group_->stop(); }

    /// What the backend of a rank is made with. Its sums are enqueued on its stream, and recorded with what is there. `others`
    /// have to be the same on every rank.
    RuntimeOptions options(std::size_t rank, RuntimeOptions others = {}) const {
        others.device = group_->devices.at(rank);
        others.ranks = {rank, n(),
                        [group = group_, rank](float* data, std::size_t count, cudaStream_t stream) { group->sum(rank, data, count, stream); },
                        [group = group_] { group->expect_going(); }};
        return others;
    }

private:
    struct Group {
        explicit Group(std::vector<int> on) : devices(std::move(on)), comms(devices.size(), nullptr) {
            if (devices.empty()) throw DeviceError{"ncclCommInitAll", static_cast<int>(ncclInvalidArgument), "no device is named"};
            check(ncclCommInitAll(comms.data(), static_cast<int>(devices.size()), devices.data()), "ncclCommInitAll", nullptr);
        }
        ~Group() {
            for (std::thread& t : ending) t.join();
            if (!stopped)
                for (ncclComm_t comm : comms) static_cast<void>(ncclCommDestroy(comm));
        }
        Group(const Group&) = delete;
        Group& operator=(const Group&) = delete;

        void expect_going() const {
            if (stopped) throw Error("stopped, because another rank failed");
        }
        void sum(std::size_t rank, float* data, std::size_t count, cudaStream_t stream) {
            const Inside inside(*this);
            expect_going();
            check(ncclAllReduce(data, data, count, ncclFloat32, ncclSum, comms[rank], stream), "ncclAllReduce", comms[rank]);
        }
        // An end waits for recordings with sums in them to go, and so for the ranks that have them: on threads of its own.
        void stop() noexcept {
            if (stopped.exchange(true)) return;
            try {
                for (ncclComm_t comm : comms)
                    ending.emplace_back([this, comm] {
                        using namespace std::chrono_literals;
                        // Who is in a call leaves it soon, unless it waits for a rank that never comes.
                        for (int i = 0; i < 1000 && n_inside > 0; ++i) std::this_thread::sleep_for(1ms);
                        static_cast<void>(ncclCommAbort(comm));
                    });
            } catch (...) {}  // without threads the others wait until the process ends
        }

        struct Inside {
            Group& group;
            explicit Inside(Group& g) : group(g) { ++group.n_inside; }
            ~Inside() { --group.n_inside; }
            Inside(const Inside&) = delete;
            Inside& operator=(const Inside&) = delete;
        };

        std::vector<int>         devices;
        std::vector<ncclComm_t>  comms;
        std::vector<std::thread> ending;
        std::atomic<bool>        stopped{false};
        std::atomic<int>         n_inside{0};
    };

    static void check(ncclResult_t code, const char* call, ncclComm_t comm) {
        if (code == ncclSuccess || code == ncclInProgress) return;
        throw DeviceError{call, static_cast<int>(code), std::string(ncclGetErrorString(code)) + " (" + ncclGetLastError(comm) + "); NCCL_DEBUG=WARN in the environment says more"};
    }

    std::shared_ptr<Group> group_;
};

}  // namespace prism::cuda
