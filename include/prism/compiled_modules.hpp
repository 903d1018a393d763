// The parts of models that prism::compiled has compiled. For sources that compose models of their own of them; a program that
// opens a ready model needs none of this, and reading it costs a compiler half a second.
//
//     #include <prism/prism.hpp>
//     #include <prism/compiled_modules.hpp>
#pragma once

#include "prism/compiled.hpp"

namespace prism {

// On Dry too, because a dry run says what a call costs before it is made.
extern template struct Vit<Cpu>;
extern template struct Vit<Dry>;
extern template struct Llama<Cpu>;
extern template struct Llama<Dry>;
extern template struct LanguageModel<Cpu>;
extern template struct LanguageModel<Dry>;
extern template struct Projector<Cpu>;
extern template struct Projector<Dry>;
extern template struct Prismatic<Cpu>;
extern template struct Prismatic<Dry>;
extern template void Vit<Cpu>::forward(Cpu&, Workspace<Cpu>&, PixelView<Cpu>, Mat<Cpu>, Forget) const;
extern template void Llama<Cpu>::forward(Cpu&, Workspace<Cpu>&, std::span<const Segment<Cpu>>, Mat<Cpu>, Forget) const;
extern template void LanguageModel<Cpu>::forward(Cpu&, Workspace<Cpu>&, std::span<const Segment<Cpu>>, Mat<Cpu>, Forget) const;
extern template void Projector<Cpu>::forward(Cpu&, Workspace<Cpu>&, In<Cpu>, Mat<Cpu>, Forget) const;
extern template void Vit<Dry>::forward(Dry&, Workspace<Dry>&, PixelView<Dry>, Mat<Dry>, Forget) const;
extern template void Llama<Dry>::forward(Dry&, Workspace<Dry>&, std::span<const Segment<Dry>>, Mat<Dry>, Forget) const;
extern template void LanguageModel<Dry>::forward(Dry&, Workspace<Dry>&, std::span<const Segment<Dry>>, Mat<Dry>, Forget) const;
extern template void Projector<Dry>::forward(Dry&, Workspace<Dry>&, In<Dry>, Mat<Dry>, Forget) const;

}  // namespace prism
