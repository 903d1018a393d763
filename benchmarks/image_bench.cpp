// From a JPEG file to a normalised tensor, and its parts.
//
//     image_bench                     # draws its own photograph-like JPEG of 1024 x 1024
//
// The peers' figures stand for another machine, which the printed context names; compare only runs on the same one.
#include "prism/image/pixel_reader.hpp"
#include "prism/image/read.hpp"
#include "prism/image/transform.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include <jpeglib.h>

namespace {

using namespace prism;

/// Waves, an edge and some noise: as a JPEG of quality 90 about the size that a photograph has.
const Image& picture() {
    static const Image image = [] {
        constexpr std::size_t            side = 1024;
        std::mt19937                     random{1};
        std::normal_distribution<double> noise{0, 6};
        Image                            out = Image::sized(side, side);
        for (std::size_t y = 0; y < side; ++y)
            for (std::size_t x = 0; x < side; ++x)
                for (std::size_t c = 0; c < 3; ++c) {
                    const double u = static_cast<double>(x) / side, v = static_cast<double>(y) / side;
                    const double wave =
                        60 * std::sin(9 * u + 3 * v + static_cast<double>(c)) + 40 * std::cos(70 * u * v);
                    const double edge = x / 97 % 2 == y / 61 % 2 ? 25 : -25;
                    out.pixels(y, x, c) =
                        static_cast<std::uint8_t>(std::clamp(128 + wave + edge + noise(random), 0.0, 255.0));
                }
        return out;
    }();
    return image;
}

std::span<const std::byte> jpeg() {
    static const std::vector<std::byte> bytes = [] {
        jpeg_compress_struct encoder{};
        jpeg_error_mgr       errors{};
        encoder.err = jpeg_std_error(&errors);
        jpeg_create_compress(&encoder);
        unsigned char* memory = nullptr;
        unsigned long  n = 0;
        jpeg_mem_dest(&encoder, &memory, &n);
        encoder.image_width = encoder.image_height = 1024;
        encoder.input_components = 3;
        encoder.in_color_space = JCS_RGB;
        jpeg_set_defaults(&encoder);
        jpeg_set_quality(&encoder, 90, TRUE);
        jpeg_start_compress(&encoder, TRUE);
        for (std::size_t y = 0; y < 1024; ++y) {
            JSAMPROW row = const_cast<JSAMPROW>(picture().row(y));
            jpeg_write_scanlines(&encoder, &row, 1);
        }
        jpeg_finish_compress(&encoder);
        jpeg_destroy_compress(&encoder);
        const std::unique_ptr<unsigned char, decltype(&std::free)> owner{memory, &std::free};
        const auto*                                                first = reinterpret_cast<const std::byte*>(memory);
        return std::vector<std::byte>{first, first + n};
    }();
    return bytes;
}

void decode_jpeg(benchmark::State& state) {
    for (auto _ : state) benchmark::DoNotOptimize(decode_image(jpeg(), "bench"));
    state.SetLabel(
        "libjpeg's share, which bounds what follows; peers: Pillow 13.0 3.38 ms, libjpeg-turbo 2.1.5 3.19 ms");
    state.counters["KiB"] = static_cast<double>(jpeg().size()) / 1024;
}
BENCHMARK(decode_jpeg)->Unit(benchmark::kMillisecond);

void resize(benchmark::State& state) {
    const auto side = static_cast<std::size_t>(state.range(0));
    for (auto _ : state) benchmark::DoNotOptimize(resize_bicubic(picture(), {side, side}));
    state.SetLabel(side == 384
                       ? "peers: Pillow 13.0 6.20 ms; torchvision, not Pillow's bits, 1.60 ms, channels-last 0.64 ms"
                       : "peer: Pillow 13.0 5.32 ms");
}
BENCHMARK(resize)->Arg(384)->Arg(224)->Unit(benchmark::kMillisecond);

template <class Kernel>
void resize_with(benchmark::State& state) {
    if constexpr (requires { Kernel::available(); })
        if (!Kernel::available()) return state.SkipWithError("this processor lacks the instructions");
    const auto   side = static_cast<std::size_t>(state.range(0));
    const Image& image = picture();
    Image        out = Image::sized(side, side);
    for (auto _ : state) {
        image_detail::WindowResizing<Kernel>{
            {image, {image.height(), image.width()}}, {side, side}, {0, 0, side, side}, out.view()}
            .advance(image.height());
        benchmark::ClobberMemory();
    }
    state.SetLabel("the same with these instructions");
}
#if defined(__x86_64__) && defined(__GNUC__)
BENCHMARK(resize_with<image_detail::Avx512Resize>)->Name("resize_avx512")->Arg(384)->Unit(benchmark::kMillisecond);
BENCHMARK(resize_with<image_detail::Avx2Resize>)->Name("resize_avx2")->Arg(384)->Unit(benchmark::kMillisecond);
#endif
BENCHMARK(resize_with<image_detail::PortableResize>)->Name("resize_portable")->Arg(384)->Unit(benchmark::kMillisecond);

/// One thread, or two. Decoding alone takes turns with it, and the quickest turns are given as well: they tell what a
/// machine can do even while it has other things to do.
void jpeg_to_tensor(benchmark::State& state) {
    using clock = std::chrono::steady_clock;
    PixelReader          reader{{.threads = static_cast<std::size_t>(state.range(0))}};
    const ImageTransform transform{.stats = statistics::half, .size = 384};
    std::vector<float>   out(3 * 384 * 384);
    const TowerPixels    tower{transform, {out.data(), {3, 384, 384}}};
    double               quickest_s = 1e9, quickest_decoding_s = 1e9;
    for (auto _ : state) {
        const auto start = clock::now();
        benchmark::DoNotOptimize(decode_image(jpeg(), "bench"));
        const auto decoded = clock::now();
        benchmark::DoNotOptimize(reader.decode(jpeg(), "bench", {&tower, 1}));
        benchmark::ClobberMemory();
        const std::chrono::duration<double> decoding = decoded - start, whole = clock::now() - decoded;
        quickest_decoding_s = std::min(quickest_decoding_s, decoding.count());
        quickest_s = std::min(quickest_s, whole.count());
        state.SetIterationTime(whole.count());
    }
    state.counters["quickest_ms"] = 1e3 * quickest_s;
    state.counters["quickest_decoding_ms"] = 1e3 * quickest_decoding_s;
    state.SetLabel("JPEG to f32 [3, 384, 384]; peers: Pillow 13.0 10.12 ms on one thread, its decoding alone 3.38 ms");
}
BENCHMARK(jpeg_to_tensor)->ArgName("threads")->Arg(1)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
    benchmark::AddCustomContext("peers",
                                "one thread of an AMD Zen 5 virtual machine at 4.2 GHz, JPEG of 284 KiB, PyPI builds");
    benchmark::AddCustomContext("compiler", __VERSION__);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
}
