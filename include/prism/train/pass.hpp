// The training pass: loss and gradients of one batch, for a language model and for a whole Prismatic model.
#pragma once

#include "prism/model/prismatic.hpp"
#include "prism/train/batch.hpp"
#include "prism/train/fusion_backward.hpp"
#include "prism/train/lm_backward.hpp"
#include "prism/train/stage.hpp"
#include "prism/train/vision_backward.hpp"

#include <cstddef>
#include <span>
#include <variant>

namespace prism {

namespace detail {

/// The table of a decoder, in a model or in its gradients.
template <class M>
auto* table_of(M* llm) {
    return llm ? std::visit([](auto& decoder) { return &decoder.embed_tokens; }, llm->decoder) : nullptr;
}

/// The mean of -log p over the supervised positions of `plan`. Gradients of `scale` times that mean go to `grads` and to
/// `d_soft`; without `backward` there are none. Rows of pictures come from soft [n_pictures n_patches, d_model].
template <TrainingBackend B>
double language_pass(B& be, Workspace<B>& ws, const LanguageModel<B>& llm, Keep<B> kept, const SequencePlan<B>& plan, In<B> soft, Mat<B> d_soft, float scale,
                     bool with_backward, LanguageModel<B>* grads) {
    auto              scope = ws.scope();
    const std::size_t d_model = llm.d_model();
    const std::span   sequence(plan.sequence);
    const std::span<const Segment<B>> segments(plan.segments);
    const auto        n = static_cast<double>(plan.rows.size());
    Mat<B>            x = ws.mat(plan.size(), d_model);
    for (std::size_t i = 0, row = 0; i < segments.size(); row += segments[i].n_tokens, ++i)
        embed_sequence<B>(be, llm, sequence.subspan(row, segments[i].n_tokens), soft, plan.first_soft[i], x.rows(row, segments[i].n_tokens));
    const Supervision supervised{plan.rows, plan.labels};
    if (!with_backward) {
        llm.forward(be, ws, segments, x);
        return head_loss(be, ws, llm, kept, In<B>(x), supervised, 0, Mat<B>{}, static_cast<LanguageModel<B>*>(nullptr)) / n;
    }
    llm.forward(be, ws, segments, x, kept);
    Mat<B> d = ws.like(x);
    ops::clear<B>(be, d);
    const double loss = head_loss(be, ws, llm, kept, In<B>(x), supervised, static_cast<float>(static_cast<double>(scale) / n), d, grads);
    backward(be, ws, llm, kept, segments, d, grads);
    for (std::size_t i = 0, row = 0; i < segments.size(); row += segments[i].n_tokens, ++i)
        embed_sequence_backward<B>(be, *table_of(&llm), sequence.subspan(row, segments[i].n_tokens), d.rows(row, segments[i].n_tokens), d_soft, plan.first_soft[i],
                                   table_of(grads));
    return loss / n;
}

}  // namespace detail

/// The mean of -log p over the supervised positions of a batch of text; gradients of `scale` times that are added to `grads`,
/// none where it is null. Throws ShapeError.
template <TrainingBackend B>
double training_pass(B& be, Workspace<B>& ws, const LanguageModel<B>& m, const TrainingBatch<B>& batch, SequencePlan<B>& plan, Tape<B>& tape, float scale,
                     const TrainedParts&, LanguageModel<B>* grads) {
    plan.lay_out(batch.rows, 0, 0);
    return detail::language_pass(be, ws, m, Keep<B>{tape}, plan, In<B>{}, Mat<B>{}, scale, grads != nullptr, grads);
}

/// The same for pictures and text. Features in place of pixels need frozen towers. Throws ShapeError.
template <TrainingBackend B>
double training_pass(B& be, Workspace<B>& ws, const Prismatic<B>& m, const TrainingBatch<B>& batch, SequencePlan<B>& plan, Tape<B>& tape, float scale,
                     const TrainedParts& trained, Prismatic<B>* grads) {
    auto              scope = ws.scope();
    const Keep<B>     kept{tape};
    const std::size_t n_patches = m.n_soft_tokens(), d_vision = m.projector.d_vision();
    const bool        ready = !batch.features.empty(), towers = grads && trained.towers, projector = grads && (trained.projector || towers);
    const std::size_t n_pictures = ready ? batch.features.rows() / n_patches : batch.pixels.empty() ? 0 : batch.pixels[0].extent(0);
    plan.lay_out(batch.rows, n_pictures, n_patches);
    if (ready) {
        if (towers) throw ShapeError{"training", "features", "pixels: the towers are trained", to_string(batch.features.shape())};
        expect("training", "features", {n_pictures * n_patches, d_vision}, batch.features);
    } else if (n_pictures && batch.pixels.size() != m.towers.size()) {
        throw ShapeError{"training", "pixels", std::to_string(m.towers.size()) + " towers' pictures", std::to_string(batch.pixels.size())};
    }

    In<B>  seen = batch.features;
    Mat<B> soft, d_soft;
    if (n_pictures) {
        if (!ready) {
            Mat<B> features = ws.mat(n_pictures * n_patches, d_vision);
            if (towers) fuse_towers<B>(be, ws, m.towers, batch.pixels, features, kept);
            else fuse_towers<B>(be, ws, m.towers, batch.pixels, features);
            seen = features;
        }
        soft = ws.mat(n_pictures * n_patches, m.llm.d_model());
        if (projector) m.projector.forward(be, ws, seen, soft, kept.at("projector"));
        else m.projector.forward(be, ws, seen, soft);
        if (projector) {
            d_soft = ws.like(soft);
            ops::clear<B>(be, d_soft);
        }
    }
    const double loss = detail::language_pass(be, ws, m.llm, kept.at("llm"), plan, In<B>(soft), d_soft, scale, grads != nullptr, grads && trained.llm ? &grads->llm : nullptr);
    if (!projector || !n_pictures) return loss;

    Mat<B> d_features = towers ? ws.mat(n_pictures * n_patches, d_vision) : Mat<B>{};
    backward(be, ws, m.projector, kept.at("projector"), In<B>(d_soft), d_features, trained.projector ? &grads->projector : nullptr);
    if (!towers) return loss;
    std::size_t column = 0;
    for (std::size_t i = 0; i < m.towers.size(); column += m.towers[i++].d_model())
        backward(be, ws, m.towers[i], kept.at("towers", i), batch.pixels[i], In<B>(d_features.cols(column, m.towers[i].d_model())), &grads->towers[i]);
    return loss;
}

}  // namespace prism
