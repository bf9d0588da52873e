#pragma once

#import <Foundation/Foundation.h>

#include <utility>

namespace metallic::metal {

// An owned reference to an Objective-C object, in place of ARC: `Ref<id<MTLBuffer>>`. All retains and releases of the
// backend are here.
template <typename T>
class Ref {
  public:
    Ref() noexcept = default;
    // Takes over what a method whose name begins with new, alloc or copy returned.
    static Ref adopt(T object) noexcept { return Ref(object); }
    // Shares what any other method returned.
    static Ref share(T object) noexcept {
        [object retain];
        return Ref(object);
    }

    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nil)) {}
    Ref(const Ref& other) noexcept : object_(other.object_) { [object_ retain]; }
    Ref& operator=(Ref other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Ref() { [object_ release]; }

    T get() const noexcept { return object_; }
    explicit operator bool() const noexcept { return object_ != nil; }

  private:
    explicit Ref(T object) noexcept : object_(object) {}
    T object_ = nil;
};

// Drains at the end of its scope, also when an exception leaves it, which @autoreleasepool does not. Every thread that
// talks to Metal has one around its work.
class AutoreleasePool {
  public:
    AutoreleasePool() noexcept : pool_([[NSAutoreleasePool alloc] init]) {}
    ~AutoreleasePool() { [pool_ drain]; }
    AutoreleasePool(const AutoreleasePool&) = delete;
    AutoreleasePool& operator=(const AutoreleasePool&) = delete;

  private:
    NSAutoreleasePool* pool_;
};

}  // namespace metallic::metal
