#include "runtime/library.h"

#include <cstring>

#include "runtime/objects.h"

// Libraries, functions.

NSErrorDomain const MTLLibraryErrorDomain = @"MTLLibraryErrorDomain";

using metalsim::FunctionState;
using metalsim::LibraryState;

namespace {

struct FunctionConstantState {
    metalsim::Ref<NSString*> name;
    MTLDataType type = MTLDataTypeNone;
    NSUInteger index = 0;
    bool required = false;
};

// FNV-1a: identities only name entries of an archive.
std::string hash_of(std::string_view text) {
    uint64_t hash = 0xcbf29ce484222325;
    for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    char hex[17];
    std::snprintf(hex, sizeof hex, "%016lx", hash);
    return hex;
}

// A version of the language as __METAL_VERSION__ says it; 0: there is none.
uint32_t version_of(MTLLanguageVersion version) {
    constexpr uint32_t kLastMinor[] = {0, 2, 4, 2, 0};  // by major
    const NSUInteger major = version >> 16, minor = version & 0xffff;
    if (major < 1 || major >= std::size(kLastMinor) || minor > kLastMinor[major]) return 0;
    return static_cast<uint32_t>(100 * major + 10 * minor);
}

// Throws CompileError for what is no option.
metalsim::msl::Options options_of(MTLCompileOptions* given, metalsim::Mode mode) {
    using metalsim::msl::Math;
    MTLCompileOptions* const from = given != nil ? given : [[[MTLCompileOptions alloc] init] autorelease];
    metalsim::msl::Options options;
    options.version = version_of([from languageVersion]);
    if (options.version == 0) {
        throw metalsim::msl::CompileError("languageVersion: there is no version " +
                                          std::to_string([from languageVersion]) + " of the language");
    }
    switch ([from mathMode]) {
        case MTLMathModeSafe:
            options.math = Math::safe;
            break;
        case MTLMathModeRelaxed:
            options.math = Math::relaxed;
            break;
        case MTLMathModeFast:
            options.math = Math::fast;
            break;
        default:
            throw metalsim::msl::CompileError("mathMode: there is no mode " + std::to_string([from mathMode]));
    }
    options.checked = mode == metalsim::Mode::checked;
    for (NSString* name in [from preprocessorMacros]) {
        NSObject* value = [[from preprocessorMacros] objectForKey:name];
        options.defines.push_back(std::string(metalsim::text_of(name)) + "=" +
                                  std::string(metalsim::text_of([value description])));
    }
    return options;
}

std::shared_ptr<const metalsim::msl::Library> compile(std::string_view source, MTLCompileOptions* how,
                                                      metalsim::Mode mode, metalsim::msl::Options* options,
                                                      std::string* log) {
    try {
        *options = options_of(how, mode);
        return metalsim::msl::compile(source, *options);
    } catch (const std::exception& failure) {
        *log = failure.what();
    }
    return nullptr;
}

}  // namespace

namespace metalsim {

void set_error(NSError** error, NSError* value) {
    if (error != nullptr) *error = value;
}

id<MTLLibrary> make_library(id<MTLDevice> device, NSString* source, MTLCompileOptions* options, NSError** error) {
    set_error(error, nil);
    if (take_fault(FaultKind::library)) {
        set_error(error, make_error(MTLLibraryErrorDomain, MTLLibraryErrorInternal, "an injected failure"));
        return nil;
    }
    const Mode made_in = mode();
    msl::Options how;
    std::string log;
    auto code = compile(text_of(source), options, made_in, &how, &log);
    if (code == nullptr) {
        set_error(error, make_error(MTLLibraryErrorDomain, MTLLibraryErrorCompileFailure, log));
        return nil;
    }
    count(counters().libraries_compiled);
    std::string everything(text_of(source));
    for (const std::string& define : how.defines) everything += '\0' + define;
    everything += '\0' + std::to_string(how.version) + '\0' + std::to_string(static_cast<int>(how.math));
    MetalsimLibrary* library = [[MetalsimLibrary alloc] init];
    auto& made = attach<LibraryState>(library);
    made.device = device;
    made.code = std::move(code);
    made.mode = made_in;
    made.identity = hash_of(everything);
    return library;
}

bool FunctionState::flag(uint32_t index) const {
    for (const msl::FunctionConstant& constant : code->constants()) {
        if (constant.index == index && constants[constant.defined] != 0) return constants[constant.offset] != 0;
    }
    return false;
}

std::string FunctionState::key() const {
    return identity + " " + std::string(function->name) + " " +
           hash_of({reinterpret_cast<const char*>(constants.data()), constants.size()});
}

namespace {

// Fills the block of constants; says what is wrong, or nothing.
std::string fill_constants(const msl::Library& code, const ConstantValues& values, std::vector<unsigned char>* block) {
    for (const msl::FunctionConstant& constant : code.constants()) {
        const ConstantValue* value = values.find(constant);
        if (value == nullptr) continue;
        const MTLDataType declared = data_type_of(constant.type);
        if (declared != value->type) {
            return "function constant " + constant.name + " is declared " + constant.type + ", its value is " +
                   data_type_name(value->type);
        }
        std::memcpy(block->data() + constant.offset, value->bytes.data(),
                    std::min<size_t>(constant.bytes, value->bytes.size()));
        (*block)[constant.defined] = 1;
    }
    return {};
}

}  // namespace

id<MTLFunction> make_function(id<MTLLibrary> library, NSString* name, MTLFunctionConstantValues* values,
                              NSError** error) {
    set_error(error, nil);
    LibraryState& from = state<LibraryState>(library);
    const msl::Function* found = from.code->find(text_of(name));
    if (found == nullptr) {
        set_error(error, make_error(MTLLibraryErrorDomain, MTLLibraryErrorFunctionNotFound,
                                    "there is no kernel \"" + std::string(text_of(name)) + "\""));
        return nil;
    }
    std::vector<unsigned char> block(from.code->constants_bytes());
    if (values != nil) {
        const std::string wrong = fill_constants(*from.code, state<ConstantValues>(values), &block);
        if (!wrong.empty()) {
            set_error(error, make_error(MTLLibraryErrorDomain, MTLLibraryErrorCompileFailure, wrong));
            return nil;
        }
    }
    MetalsimFunction* function = [[MetalsimFunction alloc] init];
    auto& made = attach<FunctionState>(function);
    made.device = from.device;
    made.code = from.code;
    made.function = found;
    made.mode = from.mode;
    made.identity = from.identity;
    made.constants = std::move(block);
    made.specialised = values != nil;
    made.name = found->name;
    return function;
}

}  // namespace metalsim

@implementation MetalsimLibrary
METALSIM_COPIED(LibraryState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<LibraryState>(self).device;
}
- (id<MTLFunction>)newFunctionWithName:(NSString*)functionName {
    return metalsim::make_function(self, functionName, nil, nullptr);
}
- (id<MTLFunction>)newFunctionWithName:(NSString*)name
                        constantValues:(MTLFunctionConstantValues*)constantValues
                                 error:(NSError**)error {
    return metalsim::make_function(self, name, constantValues, error);
}
- (id<MTLFunction>)newFunctionWithDescriptor:(MTLFunctionDescriptor*)descriptor error:(NSError**)error {
    id<MTLFunction> function = metalsim::make_function(self, [descriptor name], [descriptor constantValues], error);
    if (function != nil && [descriptor specializedName] != nil) {
        metalsim::state<FunctionState>(function).name = metalsim::text_of([descriptor specializedName]);
    }
    return function;
}
- (NSArray<NSString*>*)functionNames {
    std::vector<id> names;
    for (const auto& function : metalsim::state<LibraryState>(self).code->functions()) {
        names.push_back(metalsim::string_of(function.name));
    }
    return [NSArray arrayWithObjects:names.data() count:names.size()];
}
- (MTLLibraryType)type {
    return MTLLibraryTypeExecutable;
}
- (NSString*)installName {
    return nil;
}
@end

@implementation MTLFunctionConstant
- (NSString*)name {
    return metalsim::state<FunctionConstantState>(self).name.get();
}
- (MTLDataType)type {
    return metalsim::state<FunctionConstantState>(self).type;
}
- (NSUInteger)index {
    return metalsim::state<FunctionConstantState>(self).index;
}
- (BOOL)required {
    return metalsim::state<FunctionConstantState>(self).required;
}
@end

@implementation MetalsimFunction
METALSIM_COPIED(FunctionState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<FunctionState>(self).device;
}
- (MTLFunctionType)functionType {
    return MTLFunctionTypeKernel;
}
- (NSString*)name {
    return metalsim::string_of(metalsim::state<FunctionState>(self).name);
}
- (MTLFunctionOptions)options {
    return MTLFunctionOptionNone;
}
- (NSDictionary<NSString*, MTLFunctionConstant*>*)functionConstantsDictionary {
    std::vector<id> names, constants;
    for (const auto& constant : metalsim::state<FunctionState>(self).code->constants()) {
        MTLFunctionConstant* made = [[[MTLFunctionConstant alloc] init] autorelease];
        NSString* name = metalsim::string_of(constant.name);
        metalsim::attach<FunctionConstantState>(made, metalsim::Ref<NSString*>(name),
                                                metalsim::data_type_of(constant.type), NSUInteger{constant.index},
                                                constant.required);
        names.push_back(name);
        constants.push_back(made);
    }
    return [NSDictionary dictionaryWithObjects:constants.data() forKeys:names.data() count:names.size()];
}
@end
