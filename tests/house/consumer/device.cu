// Uses the CUDA backend from an installation. Without a device the error says so.
#include "prism/backend/cuda/runtime.cuh"

#include <iostream>
#include <string_view>

namespace {

struct Twice {
    static constexpr int max_threads = 32;
    int*                 x;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        b.each([&](int t) { x[t] *= 2; });
    }
};

}  // namespace

int main() {
    try {
        prism::cuda::Runtime gpu;
        const int            seven = 7;
        int                  answer = 0;
        const auto           x = gpu.allocate(32 * sizeof(int));
        gpu.clear(x.data(), x.bytes());
        gpu.to_device(x.data(), &seven, sizeof seven);
        gpu.launch({1, 1, 1}, 32, 0, Twice{x.as<int>()});
        gpu.to_host(&answer, x.data(), sizeof answer);
        return answer == 14 ? 0 : 1;
    } catch (const prism::DeviceError& e) {
        std::cout << e.what() << '\n';
        return std::string_view(e.what()).find("no CUDA device can be used") != std::string_view::npos ? 0 : 1;
    }
}
