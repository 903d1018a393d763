// prism::compiled: what headers declare and leave to their .inl, room by room. A function that is missing here is one that the
// linker does not find.
#include "prism/image/read.hpp"
#include "prism/image/transform.hpp"
#include "prism/image/write.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/numpy.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/model/feature_picture.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/text/tokenizer.hpp"
#include "prism/vision/pca.hpp"

namespace prism {

using Path = std::filesystem::path;
using File = std::shared_ptr<const MappedFile>;
using Ids = std::span<const std::int32_t>;

// io
template Checkpoint                                   Checkpoint::open<>(const Path&, FileMode);
template std::vector<TensorInfo>                      read_tensors<>(const File&);
template std::map<std::string, std::set<std::string>> parse_shard_index<>(std::string_view, const std::string&);
template Safetensors                                  read_safetensors<>(const File&);
template Safetensors                                  read_safetensors<>(const Path&, FileMode);
template void write_safetensors<>(const Path&, std::span<const TensorData>, const std::map<std::string, std::string>&);
template std::string detail::safetensors_header<>(const std::string&, std::span<const TensorData>, const std::map<std::string, std::string>&,
                                                  std::vector<const TensorData*>&);
template TensorInfo              read_npy<>(const File&, std::string);
template TensorInfo              read_npy<>(const Path&, FileMode);
template std::vector<TensorInfo> read_npz<>(const ZipArchive&, std::uint64_t);
template std::vector<TensorInfo> read_npz<>(const Path&, FileMode);
template void                    write_npy<>(const Path&, Dtype, const std::vector<std::size_t>&, std::span<const std::byte>);

// image
template BicubicStream::BicubicStream(const Canvas&, Size, Window, View<std::uint8_t, host, dyn, dyn, dyn>);
template void  resize_bicubic<>(const Canvas&, Size, Window, View<std::uint8_t, host, dyn, dyn, dyn>);
template Image resize_bicubic<>(const Image&, Size);
template Image crop_and_resize<>(const Image&, Box, Size);
template void  ImageTransform::apply<>(const Image&, View<float, host, dyn, dyn, dyn>) const;
template Image ImageTransform::square<>(const Image&) const;
template TransformStream::TransformStream(const ImageTransform&, const Image&, View<float, host, dyn, dyn, dyn>);
template void                   TransformStream::advance<>(std::size_t);
template void                   image_detail::decode_into<>(std::span<const std::byte>, const std::string&, const ReadOptions&, Image&, const OnRows&);
template Image                  decode_image<>(std::span<const std::byte>, const std::string&, const ReadOptions&);
template Image                  read_image<>(const Path&, const ReadOptions&);
template std::vector<std::byte> encode_png<>(const Image&);
template void                   write_png<>(const Path&, const Image&);

// text
template std::string                 TextStream::push<>(std::int32_t);
template std::string                 TextStream::finish<>();
template Tokenizer                   Tokenizer::open<>(const Path&);
template Tokenizer                   Tokenizer::from<>(TokenizerOrigin);
template Tokenizer                   Tokenizer::from_bytes<>(std::string_view, const std::string&);
template std::vector<std::int32_t>   Tokenizer::encode<>(std::string_view, EncodeOptions) const;
template std::vector<std::int32_t>   Tokenizer::encode<>(std::span<const Piece>, EncodeOptions) const;
template std::string                 Tokenizer::decode<>(Ids, DecodeOptions) const;
template TextStream                  Tokenizer::stream<>(DecodeOptions) const;
template std::optional<std::int32_t> Tokenizer::bos_id<>() const;
template std::optional<std::int32_t> Tokenizer::eos_id<>() const;
template std::optional<std::int32_t> Tokenizer::pad_id<>() const;
template std::optional<std::int32_t> Tokenizer::unk_id<>() const;
template std::optional<std::int32_t> Tokenizer::id<>(std::string_view) const;
template std::string_view            Tokenizer::token<>(std::int32_t) const;
template std::size_t                 Tokenizer::size<>() const;
template std::int32_t                Tokenizer::add_special<>(const std::string&, SpecialRole);

// vision, model
template PrincipalComponents                     principal_components<>(View<const float, host, dyn, dyn>, std::size_t);
template Image                                   feature_colours<>(View<const float, host, dyn, dyn>, std::size_t);
template Image                                   lay_over<>(const Image&, const Image&, double);
template Layout                                  layout_of<>(const PackedModel&);
template Layout                                  layout_of<>(const Path&, const Path&);
template std::map<std::string, ActionStatistics> read_action_statistics<>(const ConfigReader&);
template Tokenizer                               tokenizer_from_pretrained<>(const Path&, const PretrainedOptions&);

}  // namespace prism
