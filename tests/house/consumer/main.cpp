// The smallest use of prism from another project: a view, and the columns of it.
#include <prism/core/view.hpp>

#include <vector>

int main() {
    std::vector<float>                                      data{1, 2, 3, 4, 5, 6};
    prism::View<float, prism::host, prism::dyn, prism::dyn> x{data.data(), {2, 3}};
    return x.cols(1, 2)(1, 1) == 6 ? 0 : 1;
}
