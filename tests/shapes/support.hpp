// What tests of the shapes world share.
#pragma once

#include "shapes/model.hpp"

namespace prism::test {

/// A tower that is trained in seconds.
inline const TowerConfig& tiny_tower() {
    static const auto config = shapes::composition({.image_size = 48, .tower_width = 32, .tower_layers = 3, .tower_heads = 2}).towers[0];
    return config;
}

}  // namespace prism::test
