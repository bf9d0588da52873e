#include <vector>

#include "runtime/object.h"
#include "runtime/state.h"

// Arrays and dictionaries, immutable and small: keys are found by walking.

namespace {

struct Items {
    std::vector<metalsim::Ref<id>> objects;
};

struct Entries {
    std::vector<metalsim::Ref<id>> keys, objects;
};

NSUInteger enumerate(const std::vector<metalsim::Ref<id>>& from, NSFastEnumerationState* state,
                     id __unsafe_unretained* buffer, NSUInteger count) {
    static unsigned long never_changes = 0;
    NSUInteger given = 0;
    while (given < count && state->state < from.size()) buffer[given++] = from[state->state++].get();
    state->itemsPtr = buffer;
    state->mutationsPtr = &never_changes;
    return given;
}

}  // namespace

@implementation NSArray
+ (instancetype)array {
    return [[[self alloc] init] autorelease];
}
+ (instancetype)arrayWithObject:(id)anObject {
    return [self arrayWithObjects:&anObject count:1];
}
+ (instancetype)arrayWithObjects:(const id[])objects count:(NSUInteger)cnt {
    return [[[self alloc] initWithObjects:objects count:cnt] autorelease];
}
- (instancetype)init {
    return [self initWithObjects:nullptr count:0];
}
- (instancetype)initWithObjects:(const id[])objects count:(NSUInteger)cnt {
    self = [super init];
    if (self == nil) return nil;
    Items& items = metalsim::attach<Items>(self);
    items.objects.reserve(cnt);
    for (NSUInteger i = 0; i < cnt; ++i) items.objects.emplace_back(objects[i]);
    return self;
}
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return [self retain];
}
- (NSUInteger)count {
    return metalsim::state<Items>(self).objects.size();
}
- (id)objectAtIndex:(NSUInteger)index {
    const Items& items = metalsim::state<Items>(self);
    if (index < items.objects.size()) return items.objects[index].get();
    metalsim::report_misuse("objectAtIndex: " + std::to_string(index) + " of an array of " +
                            std::to_string(items.objects.size()));
    return nil;
}
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState*)state
                                  objects:(id __unsafe_unretained[])buffer
                                    count:(NSUInteger)len {
    return enumerate(metalsim::state<Items>(self).objects, state, buffer, len);
}
- (NSString*)description {
    std::string text = "(";
    for (const auto& item : metalsim::state<Items>(self).objects) {
        text += text.size() > 1 ? ", " : "";
        text += metalsim::text_of([item.get() description]);
    }
    return metalsim::string_of(text + ")");
}
@end

@implementation NSDictionary
+ (instancetype)dictionary {
    return [[[self alloc] init] autorelease];
}
+ (instancetype)dictionaryWithObject:(id)object forKey:(id)key {
    return [self dictionaryWithObjects:&object forKeys:&key count:1];
}
+ (instancetype)dictionaryWithObjects:(const id[])objects forKeys:(const id[])keys count:(NSUInteger)cnt {
    return [[[self alloc] initWithObjects:objects forKeys:keys count:cnt] autorelease];
}
- (instancetype)init {
    return [self initWithObjects:nullptr forKeys:nullptr count:0];
}
- (instancetype)initWithObjects:(const id[])objects forKeys:(const id[])keys count:(NSUInteger)cnt {
    self = [super init];
    if (self == nil) return nil;
    Entries& entries = metalsim::attach<Entries>(self);
    for (NSUInteger i = 0; i < cnt; ++i) {
        entries.keys.push_back(metalsim::Ref<id>::adopt([keys[i] copy]));
        entries.objects.emplace_back(objects[i]);
    }
    return self;
}
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return [self retain];
}
- (NSUInteger)count {
    return metalsim::state<Entries>(self).keys.size();
}
- (id)objectForKey:(id)aKey {
    const Entries& entries = metalsim::state<Entries>(self);
    for (size_t i = 0; i < entries.keys.size(); ++i) {
        if ([entries.keys[i].get() isEqual:aKey]) return entries.objects[i].get();
    }
    return nil;
}
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState*)state
                                  objects:(id __unsafe_unretained[])buffer
                                    count:(NSUInteger)len {
    return enumerate(metalsim::state<Entries>(self).keys, state, buffer, len);
}
@end
