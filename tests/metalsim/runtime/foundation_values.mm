#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "runtime/object.h"
#include "runtime/state.h"

// Numbers, errors, file URLs, data, the process.

namespace {

struct Number {
    const char* type = @encode(long long);
    bool floating = false;
    long long integer = 0;  // unsigned values keep their bits
    double real = 0;
};

struct ErrorState {
    metalsim::Ref<NSString*> domain;
    NSInteger code = 0;
    metalsim::Ref<NSDictionary*> info;
};

struct Path {
    metalsim::Ref<NSString*> path;
};

struct Bytes {
    std::vector<char> bytes;
};

template <class T>
NSNumber* number_of(T value) {
    NSNumber* number = [[[NSNumber alloc] init] autorelease];
    Number& to = metalsim::state<Number>(number);
    to.type = @encode(T);
    to.floating = std::is_floating_point_v<T>;
    to.integer = static_cast<long long>(value);
    to.real = to.floating           ? static_cast<double>(value)
              : std::is_signed_v<T> ? static_cast<double>(to.integer)
                                    : static_cast<double>(static_cast<unsigned long long>(to.integer));
    return number;
}

}  // namespace

NSErrorDomain const NSCocoaErrorDomain = @"NSCocoaErrorDomain";
NSErrorDomain const NSPOSIXErrorDomain = @"NSPOSIXErrorDomain";
NSErrorUserInfoKey const NSUnderlyingErrorKey = @"NSUnderlyingError";
NSErrorUserInfoKey const NSLocalizedDescriptionKey = @"NSLocalizedDescription";
NSErrorUserInfoKey const NSLocalizedFailureReasonErrorKey = @"NSLocalizedFailureReason";
NSErrorUserInfoKey const NSFilePathErrorKey = @"NSFilePath";

@implementation NSValue
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return [self retain];
}
- (void)getValue:(void*)value size:(NSUInteger)size {
    std::memset(value, 0, size);
}
- (const char*)objCType {
    return @encode(void);
}
@end

@implementation NSNumber
- (instancetype)init {
    self = [super init];
    if (self) metalsim::attach<Number>(self);
    return self;
}
- (void)getValue:(void*)value size:(NSUInteger)size {
    const Number& number = metalsim::state<Number>(self);
    if (!number.floating) {
        std::memcpy(value, &number.integer, size < 8 ? size : 8);  // little-endian
    } else if (size == sizeof(float)) {
        const auto single = static_cast<float>(number.real);
        std::memcpy(value, &single, size);
    } else if (size == sizeof(double)) {
        std::memcpy(value, &number.real, size);
    }
}
- (const char*)objCType {
    return metalsim::state<Number>(self).type;
}
#define METALSIM_NUMBER(type, getter)                                    \
    -(type)getter {                                                      \
        return static_cast<type>(metalsim::state<Number>(self).integer); \
    }
METALSIM_NUMBER(char, charValue)
METALSIM_NUMBER(unsigned char, unsignedCharValue)
METALSIM_NUMBER(short, shortValue)
METALSIM_NUMBER(unsigned short, unsignedShortValue)
METALSIM_NUMBER(int, intValue)
METALSIM_NUMBER(unsigned int, unsignedIntValue)
METALSIM_NUMBER(long, longValue)
METALSIM_NUMBER(unsigned long, unsignedLongValue)
METALSIM_NUMBER(long long, longLongValue)
METALSIM_NUMBER(unsigned long long, unsignedLongLongValue)
METALSIM_NUMBER(NSInteger, integerValue)
METALSIM_NUMBER(NSUInteger, unsignedIntegerValue)
- (float)floatValue {
    return static_cast<float>(metalsim::state<Number>(self).real);
}
- (double)doubleValue {
    return metalsim::state<Number>(self).real;
}
- (BOOL)boolValue {
    return metalsim::state<Number>(self).real != 0;
}
- (NSString*)stringValue {
    const Number& number = metalsim::state<Number>(self);
    char text[40];
    if (number.floating) {
        std::snprintf(text, sizeof text, "%.16g", number.real);
    } else if (number.real < 0) {
        std::snprintf(text, sizeof text, "%lld", number.integer);
    } else {
        std::snprintf(text, sizeof text, "%llu", static_cast<unsigned long long>(number.integer));
    }
    return metalsim::string_of(text);
}
- (NSString*)description {
    return [self stringValue];
}
- (BOOL)isEqualToNumber:(NSNumber*)other {
    return [self compare:other] == NSOrderedSame;
}
- (NSComparisonResult)compare:(NSNumber*)other {
    const Number &left = metalsim::state<Number>(self), &right = metalsim::state<Number>(other);
    if (left.real != right.real) return left.real < right.real ? NSOrderedAscending : NSOrderedDescending;
    if (left.floating || right.floating || left.integer == right.integer) return NSOrderedSame;
    return left.integer < right.integer ? NSOrderedAscending : NSOrderedDescending;
}
- (BOOL)isEqual:(id)object {
    return [object isKindOfClass:[NSNumber class]] && [self isEqualToNumber:object];
}
- (NSUInteger)hash {
    return std::hash<double>{}(metalsim::state<Number>(self).real);
}
#define METALSIM_MAKE_NUMBER(type, maker) \
    +(NSNumber*)maker : (type)value {     \
        return number_of<type>(value);    \
    }
METALSIM_MAKE_NUMBER(char, numberWithChar)
METALSIM_MAKE_NUMBER(unsigned char, numberWithUnsignedChar)
METALSIM_MAKE_NUMBER(short, numberWithShort)
METALSIM_MAKE_NUMBER(unsigned short, numberWithUnsignedShort)
METALSIM_MAKE_NUMBER(int, numberWithInt)
METALSIM_MAKE_NUMBER(unsigned int, numberWithUnsignedInt)
METALSIM_MAKE_NUMBER(long, numberWithLong)
METALSIM_MAKE_NUMBER(unsigned long, numberWithUnsignedLong)
METALSIM_MAKE_NUMBER(long long, numberWithLongLong)
METALSIM_MAKE_NUMBER(unsigned long long, numberWithUnsignedLongLong)
METALSIM_MAKE_NUMBER(float, numberWithFloat)
METALSIM_MAKE_NUMBER(double, numberWithDouble)
METALSIM_MAKE_NUMBER(BOOL, numberWithBool)
@end

@implementation NSError
+ (instancetype)errorWithDomain:(NSErrorDomain)domain code:(NSInteger)code userInfo:(NSDictionary*)dict {
    return [[[self alloc] initWithDomain:domain code:code userInfo:dict] autorelease];
}
- (instancetype)initWithDomain:(NSErrorDomain)domain code:(NSInteger)code userInfo:(NSDictionary*)dict {
    self = [super init];
    if (self == nil) return nil;
    metalsim::attach<ErrorState>(self, metalsim::Ref<NSString*>(domain), code, metalsim::Ref<NSDictionary*>(dict));
    return self;
}
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return [self retain];
}
- (NSErrorDomain)domain {
    return metalsim::state<ErrorState>(self).domain.get();
}
- (NSInteger)code {
    return metalsim::state<ErrorState>(self).code;
}
- (NSDictionary*)userInfo {
    NSDictionary* info = metalsim::state<ErrorState>(self).info.get();
    return info != nil ? info : [NSDictionary dictionary];
}
- (NSString*)localizedDescription {
    NSString* text = [[self userInfo] objectForKey:NSLocalizedDescriptionKey];
    if (text != nil) return text;
    return [NSString stringWithFormat:@"The operation couldn't be completed. (%@ error %ld.)", [self domain],
                                      static_cast<long>([self code])];
}
- (NSString*)localizedFailureReason {
    return [[self userInfo] objectForKey:NSLocalizedFailureReasonErrorKey];
}
- (NSString*)description {
    return [NSString stringWithFormat:@"Error Domain=%@ Code=%ld \"%@\"", [self domain], static_cast<long>([self code]),
                                      [self localizedDescription]];
}
@end

@implementation NSURL
+ (NSURL*)fileURLWithPath:(NSString*)path {
    return [[[self alloc] initFileURLWithPath:path] autorelease];
}
- (instancetype)initFileURLWithPath:(NSString*)path {
    self = [super init];
    if (self) metalsim::attach<Path>(self, metalsim::Ref<NSString*>::adopt([path copy]));
    return self;
}
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return [self retain];
}
- (const char*)fileSystemRepresentation {
    return [metalsim::state<Path>(self).path.get() fileSystemRepresentation];
}
- (NSString*)description {
    return [@"file://" stringByAppendingString:metalsim::state<Path>(self).path.get()];
}
@end

@implementation NSData
+ (instancetype)dataWithBytes:(const void*)bytes length:(NSUInteger)length {
    return [[[self alloc] initWithBytes:bytes length:length] autorelease];
}
- (instancetype)initWithBytes:(const void*)bytes length:(NSUInteger)length {
    self = [super init];
    if (self == nil) return nil;
    const char* from = static_cast<const char*>(bytes);
    metalsim::attach<Bytes>(self, std::vector<char>(from, from + length));
    return self;
}
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return [self retain];
}
- (NSUInteger)length {
    return metalsim::state<Bytes>(self).bytes.size();
}
- (const void*)bytes {
    return metalsim::state<Bytes>(self).bytes.data();
}
@end

@implementation NSProcessInfo
+ (NSProcessInfo*)processInfo {
    static NSProcessInfo* const shared = [[NSProcessInfo alloc] init];
    return shared;
}
- (NSDictionary*)environment {
    std::vector<id> keys, values;
    for (char** at = environ; at != nullptr && *at != nullptr; ++at) {
        const std::string_view entry = *at;
        const size_t equals = entry.find('=');
        if (equals == std::string_view::npos) continue;
        keys.push_back(metalsim::string_of(entry.substr(0, equals)));
        values.push_back(metalsim::string_of(entry.substr(equals + 1)));
    }
    return [NSDictionary dictionaryWithObjects:values.data() forKeys:keys.data() count:keys.size()];
}
- (NSOperatingSystemVersion)operatingSystemVersion {
    const metalsim::DeviceModel model = metalsim::device_model();
    return {model.macos_major, model.macos_minor, 0};
}
- (NSString*)operatingSystemVersionString {
    const NSOperatingSystemVersion version = [self operatingSystemVersion];
    return [NSString stringWithFormat:@"Version %ld.%ld (metalsim)", version.majorVersion, version.minorVersion];
}
- (BOOL)isOperatingSystemAtLeastVersion:(NSOperatingSystemVersion)version {
    const NSOperatingSystemVersion ours = [self operatingSystemVersion];
    if (ours.majorVersion != version.majorVersion) return ours.majorVersion > version.majorVersion;
    if (ours.minorVersion != version.minorVersion) return ours.minorVersion > version.minorVersion;
    return ours.patchVersion >= version.patchVersion;
}
- (NSUInteger)processorCount {
    return static_cast<NSUInteger>(sysconf(_SC_NPROCESSORS_CONF));
}
- (NSUInteger)activeProcessorCount {
    return static_cast<NSUInteger>(sysconf(_SC_NPROCESSORS_ONLN));
}
- (unsigned long long)physicalMemory {
    return static_cast<unsigned long long>(sysconf(_SC_PHYS_PAGES)) *
           static_cast<unsigned long long>(sysconf(_SC_PAGE_SIZE));
}
- (NSTimeInterval)systemUptime {
    return metalsim::seconds_now();
}
@end

namespace metalsim {

NSError* make_error(NSString* domain, NSInteger code, std::string_view description, NSDictionary* more) {
    std::vector<id> keys{NSLocalizedDescriptionKey}, values{string_of(description)};
    for (NSString* key in more) {
        keys.push_back(key);
        values.push_back([more objectForKey:key]);
    }
    NSDictionary* info = [NSDictionary dictionaryWithObjects:values.data() forKeys:keys.data() count:keys.size()];
    return [NSError errorWithDomain:domain code:code userInfo:info];
}

}  // namespace metalsim
