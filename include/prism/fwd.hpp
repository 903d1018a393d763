// Declarations only: for headers that name prism's types without using them.
#pragma once

#include <cstddef>

namespace prism {

struct host;
struct device;
template <class T, class Space, std::size_t... E> class View;
template <class Space> class Buffer;
template <class B> class Workspace;
struct TensorInfo;

class Error;
class LoadError;
class ShapeError;
class FormatError;
class DeviceError;
class ConfigError;

class Cpu;
class Dry;

class Checkpoint;
class NameMap;
class ConfigReader;
struct Image;
struct ImageTransform;
class Tokenizer;
class PromptBuilder;

struct VitConfig;
struct LlamaConfig;
struct PhiConfig;
struct ProjectorConfig;
struct PrismaticConfig;
struct SamplingOptions;
struct GenerateOptions;

}  // namespace prism
