#pragma once

#import <Metal/Metal.h>

#include <memory>
#include <string>
#include <vector>

#include "metalsim/control.h"
#include "msl/library.h"
#include "runtime/object.h"
#include "runtime/state.h"

namespace metalsim {

struct LibraryState : Counted {
    id<MTLDevice> device = nil;
    std::shared_ptr<const msl::Library> code;
    Mode mode = Mode::host;  // when it was made
    std::string identity;    // of source and options, for archives
    Ref<NSString*> label;
};

// A function with its constants filled in. What was not set is zero, and missing where the function needs it.
struct FunctionState : Counted {
    id<MTLDevice> device = nil;
    std::shared_ptr<const msl::Library> code;
    const msl::Function* function = nullptr;
    Mode mode = Mode::host;
    std::string identity;
    std::vector<unsigned char> constants;
    bool specialised = false;
    std::string name;
    Ref<NSString*> label;

    // Of a boolean constant; false if it was not set.
    bool flag(uint32_t index) const;
    std::string key() const;  // names the specialised function in archives
};

// What the execution of a dispatch needs; it outlives the Metal object while command buffers refer to it.
struct PipelineData {
    std::shared_ptr<const msl::Library> code;
    const msl::Function* function = nullptr;
    Mode mode = Mode::host;
    std::vector<unsigned char> constants;
    std::vector<msl::Argument> buffers, threadgroup;  // those that exist with these constants
    uint32_t max_threads = 0;
    uint32_t static_bytes = 0;
    bool multiple_of_width = false;  // the caller promised that threadgroups are multiples of 32
    std::string name;
};

struct PipelineState : Counted {
    id<MTLDevice> device = nil;
    std::shared_ptr<const PipelineData> data;
    Ref<NSString*> label;
    bool indirect = false;
};

struct ConstantValue {
    MTLDataType type = MTLDataTypeNone;
    std::vector<unsigned char> bytes;
};
// The values in an MTLFunctionConstantValues, by index and by name.
struct ConstantValues {
    std::vector<std::pair<uint32_t, ConstantValue>> by_index;
    std::vector<std::pair<std::string, ConstantValue>> by_name;

    const ConstantValue* find(const msl::FunctionConstant& constant) const;
};
uint32_t data_type_bytes(MTLDataType type) noexcept;  // 0: no type for a constant
const char* data_type_name(MTLDataType type) noexcept;
MTLDataType data_type_of(std::string_view msl_name) noexcept;

id<MTLLibrary> make_library(id<MTLDevice> device, NSString* source, MTLCompileOptions* options, NSError** error);
id<MTLFunction> make_function(id<MTLLibrary> library, NSString* name, MTLFunctionConstantValues* values,
                              NSError** error);
id<MTLComputePipelineState> make_pipeline(id<MTLDevice> device, MTLComputePipelineDescriptor* descriptor,
                                          MTLPipelineOption options, MTLComputePipelineReflection** reflection,
                                          NSError** error);
id<MTLBinaryArchive> make_archive(id<MTLDevice> device, NSURL* url, NSError** error);
bool archive_has(id<MTLBinaryArchive> archive, const std::string& key);
NSArray* make_bindings(const PipelineData& pipeline);

void set_error(NSError** error, NSError* value);

}  // namespace metalsim
