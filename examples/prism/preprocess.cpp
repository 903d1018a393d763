// preprocess: a picture as a vision tower reads it.
#include "files.hpp"
#include "options.hpp"

#include "prism/image/transform.hpp"

#include <vector>

namespace program {

void run(const Common& common, const Preprocess& args) {
    expect_one_output(common, args.out);
    const auto transform = from_options([&] {
        return prism::ImageTransform{.stats = prism::statistics_from_name(args.statistics), .strategy = prism::resize_from_name(args.resize), .size = args.size};
    });
    const prism::Image image = open_picture(common, args.image);
    std::vector<float> pixels(3 * args.size * args.size);
    transform.apply(image, {pixels.data(), {3, args.size, args.size}});
    write_tensor(common, args.out, "pixel_values", {3, args.size, args.size}, pixels);
}

}  // namespace program
