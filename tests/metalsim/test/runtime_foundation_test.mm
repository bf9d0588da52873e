#include <os/signpost.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "runtime_support.h"

// The slice of Foundation, blocks, availability and signposts.
namespace metalsim {
namespace {

class Foundation : public RuntimeTest {};

std::atomic<int> deallocated{0};

}  // namespace
}  // namespace metalsim

@interface Probe : NSObject
@end
@implementation Probe
- (void)dealloc {
    ++metalsim::deallocated;
    [super dealloc];
}
@end

namespace metalsim {

TEST_F(Foundation, StringsKeepTheirText) {
    EXPECT_EQ(text(@"a literal"), "a literal");
    EXPECT_EQ([@"h\u00e9\U0001f600" length], 4u);  // one, one, and a surrogate pair
    EXPECT_EQ([@"h\u00e9" lengthOfBytesUsingEncoding:NSUTF8StringEncoding], 3u);
    EXPECT_EQ([@"\U0001f600" characterAtIndex:0], 0xd83d);
    EXPECT_EQ([@"\U0001f600" characterAtIndex:1], 0xde00);
    EXPECT_EQ(text([@"a" stringByAppendingString:@"b"]), "ab");
    EXPECT_TRUE([@"same" isEqual:[NSString stringWithUTF8String:"same"]]);
    EXPECT_EQ([@"same" hash], [[NSString stringWithUTF8String:"same"] hash]);
    EXPECT_FALSE([@"same" isEqual:@1]);
    EXPECT_TRUE([@"x" isKindOfClass:[NSString class]]);
    EXPECT_TRUE([[NSString alloc] initWithBytes:"\xff" length:1 encoding:NSUTF8StringEncoding] == nil);
    NSString* latin = [[[NSString alloc] initWithBytes:"\xe9" length:1 encoding:NSISOLatin1StringEncoding] autorelease];
    EXPECT_EQ(text(latin), "\u00e9");
}

TEST_F(Foundation, FormatsTakeObjectsAndNumbers) {
    NSString* made = [NSString stringWithFormat:@"%@ %@ %d %5.2f %lu %zu %s %c %%|%-4d|%*d|%llx", @"s", @7, -3, 2.5,
                                                9UL, size_t{8}, "text", 'c', 5, 3, 6, 255ULL];
    EXPECT_EQ(text(made), "s 7 -3  2.50 9 8 text c %|5   |  6|ff");
    EXPECT_EQ(text([NSString stringWithFormat:@"%@", nil]), "(null)");
}

TEST_F(Foundation, CollectionsHoldWhatTheyWereGiven) {
    NSArray* array = @[ @"a", @2 ];
    EXPECT_EQ([array count], 2u);
    EXPECT_EQ([[array objectAtIndex:1] intValue], 2);
    NSUInteger seen = 0;
    for (id item in array) seen += item != nil;
    EXPECT_EQ(seen, 2u);
    NSDictionary* dictionary = @{@"k" : @YES, @"l" : @1.5};
    EXPECT_TRUE([[dictionary objectForKey:[NSString stringWithUTF8String:"k"]] boolValue]);
    EXPECT_EQ([[dictionary objectForKey:@"l"] doubleValue], 1.5);
    EXPECT_TRUE([dictionary objectForKey:@"m"] == nil);
    EXPECT_TRUE([array objectAtIndex:2] == nil);
    expect_report(Problem::api, "objectAtIndex: 2 of an array of 2");
}

TEST_F(Foundation, NumbersKeepTheirValue) {
    EXPECT_EQ([@(~0ULL) unsignedLongLongValue], ~0ULL);
    EXPECT_EQ(text([@(~0ULL) stringValue]), "18446744073709551615");
    EXPECT_EQ(text([@-5 description]), "-5");
    EXPECT_TRUE([@3 isEqual:@3.0]);
    EXPECT_EQ([@3 compare:@4], NSOrderedAscending);
}

TEST_F(Foundation, ErrorsDescribeThemselves) {
    NSError* plain = [NSError errorWithDomain:NSPOSIXErrorDomain code:2 userInfo:nil];
    EXPECT_NE(text([plain localizedDescription]).find("NSPOSIXErrorDomain error 2"), std::string::npos);
    NSError* told = [NSError errorWithDomain:@"d" code:1 userInfo:@{NSLocalizedDescriptionKey : @"why"}];
    EXPECT_EQ(text([told localizedDescription]), "why");
}

TEST_F(Foundation, PoolsReleaseWhatIsInThem) {
    deallocated = 0;
    @autoreleasepool {
        [[[Probe alloc] init] autorelease];
        @autoreleasepool {
            [[[Probe alloc] init] autorelease];
        }
        EXPECT_EQ(deallocated, 1);
    }
    EXPECT_EQ(deallocated, 2);
}

TEST_F(Foundation, AThreadWithoutAPoolIsReported) {
    std::thread([] { [[[Probe alloc] init] autorelease]; }).join();
    expect_report(Problem::api, "class Probe was autoreleased on a thread without an autorelease pool");
}

TEST_F(Foundation, CopiedBlocksKeepWhatTheyCapture) {
    deallocated = 0;
    Probe* probe = [[Probe alloc] init];
    dispatch_queue_t serial = dispatch_queue_create("test", nullptr);
    __block std::atomic<int> called{0};
    std::atomic<int>* count = &called;
    dispatch_async(serial, ^{
      *count += probe != nil && deallocated == 0;
    });
    [probe release];
    while (deallocated == 0) std::this_thread::yield();
    EXPECT_EQ(called, 1);
    dispatch_release(serial);
}

TEST_F(Foundation, ExceptionsOfCppAreCaught) {
    const auto fail = [] {
        const std::string cleaned = "up";
        throw std::runtime_error(cleaned);
    };
    try {
        fail();
        FAIL();
    } catch (const std::logic_error&) {
        FAIL();
    } catch (const std::exception& error) {
        EXPECT_STREQ(error.what(), "up");
    }
    EXPECT_THROW(fail(), std::runtime_error);
}

TEST_F(Foundation, AvailabilityIsThatOfTheModel) {
    use({.macos_major = 14, .macos_minor = 4});
    const auto has = [](auto asked) { return asked(); };
    EXPECT_TRUE(has([] { return __builtin_available(macOS 13.0, *); }));
    EXPECT_TRUE(has([] { return __builtin_available(macOS 14.4, iOS 17, *); }));
    EXPECT_FALSE(has([] { return __builtin_available(macOS 14.5, *); }));
    EXPECT_FALSE(has([] { return __builtin_available(macOS 15, iOS 18, *); }));
    EXPECT_EQ([[NSProcessInfo processInfo] operatingSystemVersion].majorVersion, 14);
    EXPECT_FALSE([device respondsToSelector:@selector(newResidencySetWithDescriptor:error:)]);
    EXPECT_TRUE([device newResidencySetWithDescriptor:[[MTLResidencySetDescriptor new] autorelease] error:nil] == nil);
    expect_report(Problem::api, "new in macOS 15");
}

TEST_F(Foundation, SignpostsAreCounted) {
    const uint64_t before = statistics().signposts;
    os_log_t log = os_log_create("test", OS_LOG_CATEGORY_POINTS_OF_INTEREST);
    EXPECT_EQ(log, os_log_create("test", OS_LOG_CATEGORY_POINTS_OF_INTEREST));
    const os_signpost_id_t id = os_signpost_id_generate(log);
    os_signpost_interval_begin(log, id, "work", "%{public}s %d", "text", 3);
    os_signpost_interval_end(log, id, "work");
    os_signpost_event_emit(log, id, "event");
    EXPECT_EQ(statistics().signposts, before + 2);
}

TEST_F(Foundation, DataIsCopiedOrBorrowed) {
    const char bytes[] = "abc";
    __block bool released = false;
    dispatch_data_t borrowed = dispatch_data_create(bytes, 3, nullptr, ^{
      released = true;
    });
    EXPECT_EQ(dispatch_data_get_size(borrowed), 3u);
    dispatch_release(borrowed);
    EXPECT_TRUE(released);
    NSData* data = [NSData dataWithBytes:bytes length:3];
    EXPECT_EQ(std::string(static_cast<const char*>([data bytes]), [data length]), "abc");
}

}  // namespace metalsim
