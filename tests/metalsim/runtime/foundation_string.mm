#include <objc/runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "runtime/object.h"

// Strings are UTF-8 inside; lengths and characters are UTF-16 units, as Foundation's are.

@interface NSString (Bytes)
- (std::string_view)metalsimText;
@end

@interface MetalsimString : NSString
@end

// What @"..." is: laid out by the compiler, without a header.
@interface NSConstantString : NSString {
    const char* _bytes;
    unsigned _count;
}
@end

namespace {

struct Text {
    std::string bytes;
};

// Decodes one code point; malformed bytes count as U+FFFD each.
uint32_t next_code_point(std::string_view text, size_t* at) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    const unsigned first = byte(*at);
    const unsigned more = first < 0x80 ? 0 : first >> 5 == 6 ? 1 : first >> 4 == 14 ? 2 : first >> 3 == 30 ? 3 : 4;
    uint32_t value = more == 0 ? first : first & (0x3fU >> more);
    for (unsigned i = 1; i <= more && more < 4; ++i) {
        if (byte(*at + i) >> 6 != 2) return ++*at, 0xfffd;
        value = value << 6 | (byte(*at + i) & 0x3f);
    }
    if (more == 4) return ++*at, 0xfffd;
    *at += more + 1;
    return value;
}

bool is_utf8(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        const size_t start = at;
        if (next_code_point(text, &at) == 0xfffd && text.substr(start, at - start) != "\xef\xbf\xbd") return false;
    }
    return true;
}

// Text in another encoding to UTF-8; false if it is not of that encoding.
bool to_utf8(std::string_view bytes, NSStringEncoding encoding, std::string* out) {
    out->clear();
    if (encoding == NSUTF8StringEncoding) {
        *out = bytes;
        return is_utf8(bytes);
    }
    if (encoding != NSASCIIStringEncoding && encoding != NSISOLatin1StringEncoding) return false;
    for (char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x80) {
            *out += c;
        } else if (encoding == NSASCIIStringEncoding) {
            return false;
        } else {
            *out += static_cast<char>(0xc0 | byte >> 6);
            *out += static_cast<char>(0x80 | (byte & 0x3f));
        }
    }
    return true;
}

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wformat-nonliteral"
template <class T>
void append_with(std::string* out, const std::string& spec, T value) {
    const int count = std::snprintf(nullptr, 0, spec.c_str(), value);
    if (count < 0) return;
    const size_t old = out->size();
    out->resize(old + static_cast<size_t>(count) + 1);
    std::snprintf(out->data() + old, static_cast<size_t>(count) + 1, spec.c_str(), value);
    out->pop_back();
}
#pragma clang diagnostic pop

struct Arguments {
    va_list list;
};

int64_t signed_argument(Arguments* from, std::string_view length) {
    if (length.empty()) return va_arg(from->list, int);
    if (length == "hh") return static_cast<signed char>(va_arg(from->list, int));
    if (length == "h") return static_cast<short>(va_arg(from->list, int));
    return va_arg(from->list, long long);  // l, ll, q, z, t and j are all 64 bits wide here
}

uint64_t unsigned_argument(Arguments* from, std::string_view length) {
    if (length.empty()) return va_arg(from->list, unsigned);
    if (length == "hh") return static_cast<unsigned char>(va_arg(from->list, unsigned));
    if (length == "h") return static_cast<unsigned short>(va_arg(from->list, unsigned));
    return va_arg(from->list, unsigned long long);
}

// One directive after its '%': flags, width and precision, length, conversion. Returns how long it is.
size_t append_directive(std::string* out, std::string_view text, Arguments* from) {
    std::string spec = "%";
    size_t at = 0;
    for (; at < text.size() && std::strchr("-+ #0123456789.*'", text[at]) != nullptr; ++at) {
        if (text[at] == '*') {
            spec += std::to_string(va_arg(from->list, int));
        } else {
            spec += text[at];
        }
    }
    const size_t length_at = at;
    while (at < text.size() && std::strchr("hlqzjt", text[at]) != nullptr) ++at;
    const std::string_view length = text.substr(length_at, at - length_at);
    if (at == text.size()) return at;
    const char conversion = text[at];
    if (std::strchr("di", conversion) != nullptr) {
        append_with(out, spec + "ll" + conversion, static_cast<long long>(signed_argument(from, length)));
    } else if (std::strchr("uxXo", conversion) != nullptr) {
        append_with(out, spec + "ll" + conversion, static_cast<unsigned long long>(unsigned_argument(from, length)));
    } else if (std::strchr("fFeEgGaA", conversion) != nullptr) {
        append_with(out, spec + conversion, va_arg(from->list, double));
    } else if (conversion == 'c') {
        append_with(out, spec + conversion, va_arg(from->list, int));
    } else if (conversion == 's') {
        const char* string = va_arg(from->list, const char*);
        append_with(out, spec + conversion, string != nullptr ? string : "(null)");
    } else if (conversion == 'p') {
        append_with(out, spec + conversion, va_arg(from->list, void*));
    } else if (conversion == '@') {
        id object = va_arg(from->list, id);
        *out += object == nil ? "(null)" : metalsim::text_of([object description]);
    } else if (conversion == '%') {
        *out += '%';
    }
    return at + 1;
}

std::string format_text(std::string_view format, va_list arguments) {
    Arguments from;
    va_copy(from.list, arguments);
    std::string out;
    for (size_t at = 0; at < format.size();) {
        if (format[at] != '%') {
            out += format[at++];
        } else {
            at += 1 + append_directive(&out, format.substr(at + 1), &from);
        }
    }
    va_end(from.list);
    return out;
}

}  // namespace

@implementation NSString
+ (instancetype)alloc {
    return self == [NSString class] ? [MetalsimString alloc] : [super alloc];
}
- (std::string_view)metalsimText {
    return {};
}
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return [self retain];
}
- (NSUInteger)length {
    const std::string_view text = [self metalsimText];
    NSUInteger units = 0;
    for (size_t at = 0; at < text.size();) units += next_code_point(text, &at) > 0xffff ? 2 : 1;
    return units;
}
- (unichar)characterAtIndex:(NSUInteger)index {
    const std::string_view text = [self metalsimText];
    NSUInteger units = 0;
    for (size_t at = 0; at < text.size();) {
        const uint32_t point = next_code_point(text, &at);
        if (point > 0xffff && index - units < 2) {
            const uint32_t rest = point - 0x10000;
            return static_cast<unichar>(index == units ? 0xd800 + (rest >> 10) : 0xdc00 + (rest & 0x3ff));
        }
        if (units == index) return static_cast<unichar>(point);
        units += point > 0xffff ? 2 : 1;
    }
    return 0;
}
- (BOOL)isEqual:(id)object {
    return object == self || ([object isKindOfClass:[NSString class]] && [self isEqualToString:object]);
}
- (NSUInteger)hash {
    return std::hash<std::string_view>{}([self metalsimText]);
}
- (NSString*)description {
    return self;
}
@end

@implementation NSString (Parts)
- (const char*)UTF8String {
    return [self metalsimText].data();
}
- (const char*)fileSystemRepresentation {
    return [self metalsimText].data();
}
- (const char*)cStringUsingEncoding:(NSStringEncoding)encoding {
    const std::string_view text = [self metalsimText];
    if (encoding == NSUTF8StringEncoding) return text.data();
    for (char c : text) {
        if (static_cast<unsigned char>(c) >= 0x80) return nullptr;
    }
    return text.data();
}
- (NSUInteger)lengthOfBytesUsingEncoding:(NSStringEncoding)enc {
    return [self cStringUsingEncoding:enc] != nullptr ? [self metalsimText].size() : 0;
}
- (NSUInteger)maximumLengthOfBytesUsingEncoding:(NSStringEncoding)enc {
    return enc == NSUTF8StringEncoding ? 3 * [self length] : [self length];
}
- (BOOL)isEqualToString:(NSString*)aString {
    return [self metalsimText] == metalsim::text_of(aString);
}
- (NSString*)stringByAppendingString:(NSString*)aString {
    return metalsim::string_of(std::string([self metalsimText]) + std::string(metalsim::text_of(aString)));
}

+ (instancetype)string {
    return [[[self alloc] init] autorelease];
}
+ (instancetype)stringWithString:(NSString*)string {
    return [[[self alloc] initWithString:string] autorelease];
}
+ (instancetype)stringWithUTF8String:(const char*)nullTerminatedCString {
    return [[[self alloc] initWithUTF8String:nullTerminatedCString] autorelease];
}
+ (instancetype)stringWithCString:(const char*)cString encoding:(NSStringEncoding)enc {
    return [[[self alloc] initWithCString:cString encoding:enc] autorelease];
}
+ (instancetype)stringWithFormat:(NSString*)format, ... {
    va_list arguments;
    va_start(arguments, format);
    NSString* string = [[self alloc] initWithFormat:format arguments:arguments];
    va_end(arguments);
    return [string autorelease];
}
- (instancetype)init {
    return [self initWithBytes:"" length:0 encoding:NSUTF8StringEncoding];
}
- (instancetype)initWithString:(NSString*)aString {
    const std::string_view text = metalsim::text_of(aString);
    return [self initWithBytes:text.data() length:text.size() encoding:NSUTF8StringEncoding];
}
- (instancetype)initWithUTF8String:(const char*)nullTerminatedCString {
    return [self initWithCString:nullTerminatedCString encoding:NSUTF8StringEncoding];
}
- (instancetype)initWithCString:(const char*)nullTerminatedCString encoding:(NSStringEncoding)encoding {
    return [self initWithBytes:nullTerminatedCString length:std::strlen(nullTerminatedCString) encoding:encoding];
}
- (instancetype)initWithBytes:(const void*)bytes length:(NSUInteger)len encoding:(NSStringEncoding)encoding {
    Text text;
    if (!to_utf8({static_cast<const char*>(bytes), len}, encoding, &text.bytes)) {
        [self release];
        return nil;
    }
    metalsim::attach<Text>(self, std::move(text));
    return self;
}
- (instancetype)initWithBytesNoCopy:(void*)bytes
                             length:(NSUInteger)len
                           encoding:(NSStringEncoding)encoding
                       freeWhenDone:(BOOL)freeBuffer {
    self = [self initWithBytes:bytes length:len encoding:encoding];
    if (self != nil && freeBuffer) std::free(bytes);
    return self;
}
- (instancetype)initWithFormat:(NSString*)format, ... {
    va_list arguments;
    va_start(arguments, format);
    self = [self initWithFormat:format arguments:arguments];
    va_end(arguments);
    return self;
}
- (instancetype)initWithFormat:(NSString*)format arguments:(va_list)argList {
    const std::string text = format_text(metalsim::text_of(format), argList);
    return [self initWithBytes:text.data() length:text.size() encoding:NSUTF8StringEncoding];
}
@end

@implementation MetalsimString
- (std::string_view)metalsimText {
    return metalsim::state<Text>(self).bytes;
}
@end

@implementation NSConstantString
// The compiler says that the class of @"..." is libobjc's NXConstantString: it is given our methods, the most derived
// ones first. No message is sent here: libobjc is not ready for them while it loads classes.
+ (void)load {
    Class constant = objc_getClass("NXConstantString");
    std::set<std::string> given;
    for (const char* name : {"NSConstantString", "NSString", "NSObject"}) {
        unsigned count = 0;
        Method* methods = class_copyMethodList(objc_getClass(name), &count);
        for (unsigned i = 0; i < count; ++i) {
            const SEL selector = method_getName(methods[i]);
            if (!given.insert(sel_getName(selector)).second) continue;
            const IMP code = method_getImplementation(methods[i]);
            // Replacing looks through the superclasses, and would change libobjc's Object.
            if (class_addMethod(constant, selector, code, method_getTypeEncoding(methods[i]))) continue;
            method_setImplementation(class_getInstanceMethod(constant, selector), code);
        }
        std::free(methods);
    }
}
- (Class)class {
    return [NSConstantString class];
}
- (std::string_view)metalsimText {
    return {_bytes, _count};
}
- (instancetype)retain {
    return self;
}
- (oneway void)release {
}
- (instancetype)autorelease {
    return self;
}
- (NSUInteger)retainCount {
    return NSUIntegerMax;
}
- (void)dealloc {
    if (false) [super dealloc];
}
@end

void NSLog(NSString* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const std::string text = format_text(metalsim::text_of(format), arguments);
    va_end(arguments);
    std::fprintf(stderr, "%s\n", text.c_str());
}

namespace metalsim {

NSString* string_of(std::string_view text) {
    NSString* string = [[NSString alloc] initWithBytes:text.data() length:text.size() encoding:NSUTF8StringEncoding];
    // Text of tools and of users need not be UTF-8.
    if (string == nil) {
        string = [[NSString alloc] initWithBytes:text.data() length:text.size() encoding:NSISOLatin1StringEncoding];
    }
    return [string autorelease];
}

std::string_view text_of(NSString* string) noexcept {
    return string != nil ? [string metalsimText] : std::string_view{};
}

}  // namespace metalsim
