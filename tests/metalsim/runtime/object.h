#pragma once

#import <Foundation/Foundation.h>

#include <atomic>
#include <cstdint>
#include <new>
#include <string>
#include <string_view>
#include <utility>

// What every object of our Foundation and Metal has in front of it: its reference count and its C++ state. Classes have
// no instance variables of their own, so that Apple's interfaces can be declared as they are under a runtime that lays
// objects out at compile time.
namespace metalsim {

struct alignas(16) ObjectHeader {
    std::atomic<int64_t> references{1};
    void* state = nullptr;
    void (*destroy)(void*) = nullptr;
};

inline ObjectHeader& header(const void* object) noexcept {
    return static_cast<ObjectHeader*>(const_cast<void*>(object))[-1];
}

// Makes the state of an object; it is destroyed with the object.
template <class T, class... Arguments>
T& attach(id object, Arguments&&... arguments) {
    T* state = new T{std::forward<Arguments>(arguments)...};
    header(object).state = state;
    header(object).destroy = [](void* pointer) { delete static_cast<T*>(pointer); };
    return *state;
}

template <class T>
T& state(const void* object) noexcept {
    return *static_cast<T*>(header(object).state);
}

// A reference that counts. T is an Objective-C object pointer type.
template <class T>
class Ref {
  public:
    Ref() = default;
    explicit Ref(T object) : object_([object retain]) {}
    Ref(const Ref& other) : object_([other.object_ retain]) {}
    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nil)) {}
    ~Ref() { [object_ release]; }
    Ref& operator=(Ref other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    // Takes over a reference that the caller owns.
    static Ref adopt(T object) noexcept {
        Ref ref;
        ref.object_ = object;
        return ref;
    }
    T get() const noexcept { return object_; }
    explicit operator bool() const noexcept { return object_ != nil; }

  private:
    T object_ = nil;
};

// A copy of a block, which counts.
template <class T>
class BlockRef {
  public:
    BlockRef() = default;
    explicit BlockRef(T block) : block_(copy(block)) {}
    BlockRef(const BlockRef& other) : block_(copy(other.block_)) {}
    BlockRef(BlockRef&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
    ~BlockRef();
    BlockRef& operator=(BlockRef other) noexcept {
        std::swap(block_, other.block_);
        return *this;
    }
    T get() const noexcept { return block_; }

  private:
    static T copy(T block);
    T block_ = nullptr;
};

void* copy_block(const void* block);
void release_block(const void* block);

template <class T>
T BlockRef<T>::copy(T block) {
    return reinterpret_cast<T>(copy_block(reinterpret_cast<const void*>(block)));  // null of null
}

template <class T>
BlockRef<T>::~BlockRef() {
    if (block_) release_block(reinterpret_cast<const void*>(block_));
}

// Autoreleased strings, and back.
NSString* string_of(std::string_view text);
std::string_view text_of(NSString* string) noexcept;  // empty for nil; valid as long as the string

NSError* make_error(NSString* domain, NSInteger code, std::string_view description, NSDictionary* more = nil);

// A new object of the same class with a copy of the state.
template <class T>
id copy_with_state(id object) {
    id copy = [[[object class] alloc] init];
    state<T>(copy) = state<T>(object);
    return copy;
}

}  // namespace metalsim

// The methods that a class with a C++ state of type T needs beside its accessors.
#define METALSIM_COPYABLE(T)                       \
    -(instancetype)init {                          \
        self = [super init];                       \
        if (self) metalsim::attach<T>(self);       \
        return self;                               \
    }                                              \
    -(id)copyWithZone : (void*)zone {              \
        (void)zone;                                \
        return metalsim::copy_with_state<T>(self); \
    }
// Accessors of a value, and of an object that is kept.
#define METALSIM_VALUE(T, type, getter, setter, field) \
    -(type)getter {                                    \
        return metalsim::state<T>(self).field;         \
    }                                                  \
    -(void)setter : (type)value {                      \
        metalsim::state<T>(self).field = value;        \
    }
#define METALSIM_OBJECT(T, type, getter, setter, field)              \
    -(type)getter {                                                  \
        return metalsim::state<T>(self).field.get();                 \
    }                                                                \
    -(void)setter : (type)value {                                    \
        metalsim::state<T>(self).field = metalsim::Ref<type>(value); \
    }
#define METALSIM_COPIED(T, type, getter, setter, field)                            \
    -(type)getter {                                                                \
        return metalsim::state<T>(self).field.get();                               \
    }                                                                              \
    -(void)setter : (type)value {                                                  \
        metalsim::state<T>(self).field = metalsim::Ref<type>::adopt([value copy]); \
    }
