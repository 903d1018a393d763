// Weights that are converted after loading, on the small model of the repository.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/store_as.hpp"

#include <doctest/doctest.h>

using namespace prism;

namespace {

std::filesystem::path small_model() { return std::filesystem::path(PRISM_TEST_DATA) / "reference/vlm/prism-dinosiglip+7b"; }

}  // namespace

TEST_CASE("model/store_as: weights keep their values as far as the format holds them, and small parameters stay") {
    Cpu  be{{.threads = 2}};
    auto vlm = from_pretrained(be, small_model());
    const auto original = from_pretrained(be, small_model());
    const auto values = [](const auto& model) {
        std::vector<float> all;
        visit(model, [&](const std::string&, const auto& p) {
            if constexpr (requires { p.rows(); })
                p.visit([&]<class F>(const Packed<F, host>& w) {
                    std::vector<typename F::block> blocks(blocks_per_row<F>(w.cols));
                    std::vector<float>             row(blocks.size() * F::values_per_block);
                    for (std::size_t i = 0; i < w.rows; ++i) {
                        copy_row(w, i, blocks.data());
                        F::decode(std::span<const typename F::block>(blocks), row);
                        all.insert(all.end(), row.begin(), row.begin() + static_cast<std::ptrdiff_t>(w.cols));
                    }
                });
        });
        return all;
    };
    const auto exact = values(original.model);
    std::size_t last = 0, total = 0;
    store_as(be, vlm.model, Dtype::bf16, [&](std::size_t done, std::size_t all) {
        CHECK(done >= last);
        last = done, total = all;
    });
    CHECK(last == total);
    CHECK(total == count_parameters(vlm.model));
    auto rounded = values(vlm.model);
    REQUIRE(rounded.size() == exact.size());
    for (std::size_t i = 0; i < exact.size(); ++i) REQUIRE(rounded[i] == static_cast<float>(bf16_t(exact[i])));
    visit(vlm.model, [](const std::string& name, const auto& p) {
        if constexpr (requires { p.rows(); }) {
            if (!p.shape().empty()) CHECK_MESSAGE(p.dtype() == Dtype::bf16, name);
        }
    });
    store_as(be, vlm.model, Dtype::f32);  // what is lost stays lost
    CHECK(values(vlm.model) == rounded);
    CHECK_THROWS_AS(store_as(be, vlm.model, Dtype::i8), ConfigError);
}
