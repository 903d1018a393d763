// What prism.hpp leaves out where prism::compiled is linked: the readers of settings and of parts of models, packing, and the
// parts that are compiled already. For sources that compose models of their own or read files themselves; a program that opens a
// ready model needs none of this, and it costs a compiler seconds.
//
//     #include <prism/prism.hpp>
//     #include <prism/compiled_modules.hpp>
#pragma once

#include "prism/compiled.hpp"
#include "prism/io/config.hpp"
#include "prism/io/json.hpp"
#include "prism/model/language_files.hpp"
#include "prism/model/pack.hpp"
#include "prism/model/packed.hpp"
#include "prism/model/settings.hpp"
#include "prism/model/tower_files.hpp"

#include <cstddef>
#include <span>

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
