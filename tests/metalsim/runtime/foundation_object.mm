#include <objc/runtime.h>

#include <cstdlib>
#include <vector>

#include "runtime/object.h"
#include "runtime/state.h"

// The root class, and autorelease pools.

namespace {

thread_local bool thread_ends = false;

// The objects of a thread that wait for their pool to drain. What is left when the thread ends is released then.
struct Autoreleased {
    std::vector<id> objects;
    size_t pools = 0;

    ~Autoreleased() {
        drain(0);
        thread_ends = true;
    }
    void drain(size_t to) {
        while (objects.size() > to) {
            id object = objects.back();
            objects.pop_back();
            [object release];
        }
    }
};
thread_local Autoreleased autoreleased;

}  // namespace

@implementation NSObject
+ (instancetype)alloc {
    const size_t bytes = sizeof(metalsim::ObjectHeader) + class_getInstanceSize(self);
    void* memory = std::aligned_alloc(16, (bytes + 15) / 16 * 16);
    if (memory == nullptr) return nil;
    std::fill_n(static_cast<char*>(memory), bytes, '\0');
    auto* header = new (memory) metalsim::ObjectHeader;
    id object = reinterpret_cast<id>(header + 1);
    object_setClass(object, self);
    return object;
}
+ (instancetype)new {
    return [[self alloc] init];
}
+ (Class)class {
    return self;
}
- (instancetype)init {
    return self;
}
- (void)dealloc {
    metalsim::ObjectHeader& header = metalsim::header(self);
    if (header.destroy != nullptr) header.destroy(header.state);
    header.~ObjectHeader();
    std::free(&header);
}
- (id)copy {
    return [(id<NSCopying>)self copyWithZone:nullptr];
}
- (BOOL)isEqual:(id)object {
    return self == object;
}
- (NSUInteger)hash {
    return reinterpret_cast<NSUInteger>(self) >> 4;
}
- (Class)class {
    return object_getClass(self);
}
- (instancetype)self {
    return self;
}
- (BOOL)isKindOfClass:(Class)aClass {
    for (Class at = [self class]; at != Nil; at = class_getSuperclass(at)) {
        if (at == aClass) return YES;
    }
    return NO;
}
- (BOOL)conformsToProtocol:(Protocol*)aProtocol {
    for (Class at = [self class]; at != Nil; at = class_getSuperclass(at)) {
        if (class_conformsToProtocol(at, aProtocol)) return YES;
    }
    return NO;
}
- (BOOL)respondsToSelector:(SEL)aSelector {
    return class_respondsToSelector([self class], aSelector);
}
- (instancetype)retain {
    metalsim::count_retain();
    metalsim::header(self).references.fetch_add(1, std::memory_order_relaxed);
    return self;
}
- (oneway void)release {
    if (metalsim::header(self).references.fetch_sub(1, std::memory_order_acq_rel) == 1) [self dealloc];
}
- (instancetype)autorelease {
    if (thread_ends) return self;  // pools of other objects that end with the thread: leaks, as at Apple
    if (autoreleased.pools == 0) {
        metalsim::report_misuse(std::string("an object of class ") + class_getName([self class]) +
                                " was autoreleased on a thread without an autorelease pool");
    }
    autoreleased.objects.push_back(self);
    return self;
}
- (NSUInteger)retainCount {
    return static_cast<NSUInteger>(metalsim::header(self).references.load());
}
- (NSString*)description {
    char text[128];
    std::snprintf(text, sizeof text, "<%s: %p>", class_getName([self class]), static_cast<void*>(self));
    return metalsim::string_of(text);
}
- (NSString*)debugDescription {
    return [self description];
}
@end

namespace {
struct Pool {
    size_t base = 0;
};
}  // namespace

@implementation NSAutoreleasePool
- (instancetype)init {
    self = [super init];
    if (self) {
        metalsim::attach<Pool>(self, autoreleased.objects.size());
        ++autoreleased.pools;
    }
    return self;
}
- (void)addObject:(id)anObject {
    [anObject autorelease];
}
- (void)drain {
    autoreleased.drain(metalsim::state<Pool>(self).base);
    --autoreleased.pools;
    [super release];
}
- (oneway void)release {
    [self drain];
}
- (instancetype)autorelease {
    return self;
}
@end
