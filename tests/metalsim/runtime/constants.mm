#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/library.h"

// Function constants: their types, and the values that an application gives.

namespace metalsim {
namespace {

struct TypeInfo {
    MTLDataType type;
    const char* name;
    uint32_t bytes;
};

// Scalars and vectors, which are what a function constant may be. A vector of three takes the place of four.
#define METALSIM_VECTORS(name, msl, bytes)                                         \
    {MTLDataType##name, msl, bytes}, {MTLDataType##name##2, msl "2", 2 * (bytes)}, \
        {MTLDataType##name##3, msl "3", 4 * (bytes)}, {                            \
        MTLDataType##name##4, msl "4", 4 * (bytes)                                 \
    }
constexpr TypeInfo kTypes[] = {
    METALSIM_VECTORS(Float, "float", 4),   METALSIM_VECTORS(Half, "half", 2),   METALSIM_VECTORS(Int, "int", 4),
    METALSIM_VECTORS(UInt, "uint", 4),     METALSIM_VECTORS(Short, "short", 2), METALSIM_VECTORS(UShort, "ushort", 2),
    METALSIM_VECTORS(Char, "char", 1),     METALSIM_VECTORS(UChar, "uchar", 1), METALSIM_VECTORS(Bool, "bool", 1),
    METALSIM_VECTORS(BFloat, "bfloat", 2), METALSIM_VECTORS(Long, "long", 8),   METALSIM_VECTORS(ULong, "ulong", 8),
};
#undef METALSIM_VECTORS

const TypeInfo* info_of(MTLDataType type) {
    const auto* found =
        std::find_if(std::begin(kTypes), std::end(kTypes), [&](const TypeInfo& at) { return at.type == type; });
    return found != std::end(kTypes) ? found : nullptr;
}

}  // namespace

uint32_t data_type_bytes(MTLDataType type) noexcept {
    const TypeInfo* info = info_of(type);
    return info != nullptr ? info->bytes : 0;
}

const char* data_type_name(MTLDataType type) noexcept {
    const TypeInfo* info = info_of(type);
    return info != nullptr ? info->name : "none";
}

MTLDataType data_type_of(std::string_view msl_name) noexcept {
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 12> aliases = {{
        {"uint32_t", "uint"},
        {"int32_t", "int"},
        {"uint16_t", "ushort"},
        {"int16_t", "short"},
        {"uint8_t", "uchar"},
        {"int8_t", "char"},
        {"uint64_t", "ulong"},
        {"int64_t", "long"},
        {"unsigned", "uint"},
        {"unsigned int", "uint"},
        {"size_t", "ulong"},
        {"bfloat16_t", "bfloat"},
    }};
    for (const auto& [alias, name] : aliases) {
        if (msl_name == alias) msl_name = name;
    }
    for (const TypeInfo& info : kTypes) {
        if (msl_name == info.name) return info.type;
    }
    return MTLDataTypeNone;
}

const ConstantValue* ConstantValues::find(const msl::FunctionConstant& constant) const {
    for (const auto& [index, value] : by_index) {
        if (index == constant.index) return &value;
    }
    for (const auto& [name, value] : by_name) {
        if (name == constant.name) return &value;
    }
    return nullptr;
}

}  // namespace metalsim

using metalsim::ConstantValue;
using metalsim::ConstantValues;

namespace {

ConstantValue value_of(const void* from, MTLDataType type) {
    ConstantValue value{type, std::vector<unsigned char>(metalsim::data_type_bytes(type))};
    if (value.bytes.empty()) {
        metalsim::report_misuse("MTLFunctionConstantValues: a function constant cannot have MTLDataType " +
                                std::to_string(type));
    } else {
        std::memcpy(value.bytes.data(), from, value.bytes.size());
    }
    return value;
}

// The last value that was set holds.
template <class Key>
void put(std::vector<std::pair<Key, ConstantValue>>& to, const Key& key, ConstantValue value) {
    std::erase_if(to, [&](const auto& entry) { return entry.first == key; });
    if (!value.bytes.empty()) to.emplace_back(key, std::move(value));
}

}  // namespace

@implementation MTLFunctionConstantValues
METALSIM_COPYABLE(ConstantValues)
- (void)setConstantValue:(const void*)value type:(MTLDataType)type atIndex:(NSUInteger)index {
    put(metalsim::state<ConstantValues>(self).by_index, static_cast<uint32_t>(index), value_of(value, type));
}
- (void)setConstantValues:(const void*)values type:(MTLDataType)type withRange:(NSRange)range {
    const auto* at = static_cast<const unsigned char*>(values);
    for (NSUInteger i = 0; i < range.length; ++i) {
        [self setConstantValue:at + i * metalsim::data_type_bytes(type) type:type atIndex:range.location + i];
    }
}
- (void)setConstantValue:(const void*)value type:(MTLDataType)type withName:(NSString*)name {
    put(metalsim::state<ConstantValues>(self).by_name, std::string(metalsim::text_of(name)), value_of(value, type));
}
- (void)reset {
    metalsim::state<ConstantValues>(self) = {};
}
@end
