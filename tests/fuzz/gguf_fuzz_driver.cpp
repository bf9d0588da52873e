#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "gguf_fuzz.h"
#include "gguf_seeds.h"

// Runs the fuzz target without libFuzzer: mutates seeds in ways that know the format. Input number i of a run depends
// only on the seed number, i and the seed files, so a finding is repeated with --first i --count 1.
namespace metallic::testing {
namespace {

// SplitMix64 (Steele, Lea and Flood, 2014).
class Random {
  public:
    Random(uint64_t seed, uint64_t stream) : state_(seed * 0x9e3779b97f4a7c15u + stream * 0xd1342543de82ef95u) {}

    uint64_t next() noexcept {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }

    size_t below(size_t bound) noexcept { return bound == 0 ? 0 : static_cast<size_t>(next() % bound); }

  private:
    uint64_t state_;
};

// A field of the file, or a made-up one where the file has none that still lies inside it.
BuiltFile::Field pick_field(const BuiltFile& file, Random& random) {
    if (!file.fields.empty() && random.below(8) != 0) {
        const BuiltFile::Field& field = file.fields[random.below(file.fields.size())];
        if (field.offset + field.width <= file.bytes.size()) return field;
    }
    const size_t width = size_t{1} << random.below(4);
    if (file.bytes.size() < width) return {"", 0, 0};
    return {"", random.below(file.bytes.size() - width + 1), width};
}

uint64_t load(const BuiltFile& file, const BuiltFile::Field& field) {
    uint64_t value = 0;
    if (field.width != 0) std::memcpy(&value, file.bytes.data() + field.offset, field.width);
    return value;
}

void store(BuiltFile& file, const BuiltFile::Field& field, uint64_t value) {
    if (field.width != 0) std::memcpy(file.bytes.data() + field.offset, &value, field.width);
}

void flip_bits(BuiltFile& file, Random& random) {
    if (file.bytes.empty()) return;
    // Mostly near the beginning, where the header is.
    const size_t range = random.below(2) == 0 ? file.bytes.size() : std::min<size_t>(file.bytes.size(), 256);
    for (size_t i = 1 + random.below(8); i > 0; --i) {
        file.bytes[random.below(range)] ^= static_cast<std::byte>(1u << random.below(8));
    }
}

void set_boundary_value(BuiltFile& file, Random& random) {
    const BuiltFile::Field field = pick_field(file, random);
    const uint64_t size = file.bytes.size();
    const uint64_t left = size - std::min<uint64_t>(size, field.offset + field.width);
    const uint64_t values[] = {
        0,          1,          2,           3,          7,          9,          13,         31,       64,
        65,         127,        128,         255,        256,        65535,      65536,      1u << 30, (1u << 30) + 1,
        0x7fffffff, 0x80000000, 0xffffffffu, 1ull << 32, 1ull << 61, 1ull << 62, 1ull << 63, ~0ull,    ~0ull - 7,
        ~0ull - 31, ~0ull - 63, ~0ull - 127, ~0ull >> 1, size,       size - 1,   size + 1,   left,     left - 1,
        left + 1,   left / 8,   left / 8 + 1};
    store(file, field, values[random.below(std::size(values))]);
}

void nudge_value(BuiltFile& file, Random& random) {
    const BuiltFile::Field field = pick_field(file, random);
    const uint64_t value = load(file, field);
    const uint64_t values[] = {value + 1, value - 1,  value + 8,  value - 8,   value * 2,
                               value / 2, value + 32, value - 32, value ^ 255, value + random.below(64)};
    store(file, field, values[random.below(std::size(values))]);
}

void swap_values(BuiltFile& file, Random& random) {
    const BuiltFile::Field a = pick_field(file, random);
    const BuiltFile::Field b = pick_field(file, random);
    const uint64_t value = load(file, a);
    store(file, a, load(file, b));
    store(file, b, value);
}

void truncate(BuiltFile& file, Random& random) {
    file.bytes.resize(random.below(file.bytes.size() + 1));
}

void overwrite_block(BuiltFile& file, Random& random) {
    if (file.bytes.empty()) return;
    const size_t length = 1 + random.below(std::min<size_t>(file.bytes.size(), 128));
    const size_t from = random.below(file.bytes.size() - length + 1);
    const size_t to = random.below(file.bytes.size() - length + 1);
    std::memmove(file.bytes.data() + to, file.bytes.data() + from, length);
}

void duplicate_block(BuiltFile& file, Random& random) {
    if (file.bytes.empty()) return;
    const size_t length = 1 + random.below(std::min<size_t>(file.bytes.size(), 256));
    const auto from = file.bytes.begin() + static_cast<ptrdiff_t>(random.below(file.bytes.size() - length + 1));
    const std::vector<std::byte> block(from, from + static_cast<ptrdiff_t>(length));
    const auto to = file.bytes.begin() + static_cast<ptrdiff_t>(random.below(file.bytes.size() + 1));
    file.bytes.insert(to, block.begin(), block.end());
}

void remove_block(BuiltFile& file, Random& random) {
    if (file.bytes.empty()) return;
    const size_t length = 1 + random.below(std::min<size_t>(file.bytes.size(), 64));
    const auto from = file.bytes.begin() + static_cast<ptrdiff_t>(random.below(file.bytes.size() - length + 1));
    file.bytes.erase(from, from + static_cast<ptrdiff_t>(length));
}

void fill_block(BuiltFile& file, Random& random) {
    if (file.bytes.empty()) return;
    const size_t length = 1 + random.below(std::min<size_t>(file.bytes.size(), 32));
    const size_t from = random.below(file.bytes.size() - length + 1);
    const size_t kind = random.below(3);
    for (size_t i = from; i < from + length; ++i) {
        file.bytes[i] = kind == 0 ? std::byte{0} : kind == 1 ? std::byte{255} : static_cast<std::byte>(random.next());
    }
}

// The beginning of one file and the end of another.
void splice(BuiltFile& file, const BuiltFile& other, Random& random) {
    const size_t at = random.below(file.bytes.size() + 1);
    const size_t from = random.below(2) == 0 ? std::min(at, other.bytes.size()) : random.below(other.bytes.size() + 1);
    file.bytes.resize(at);
    file.bytes.insert(file.bytes.end(), other.bytes.begin() + static_cast<ptrdiff_t>(from), other.bytes.end());
}

void mutate(BuiltFile& file, const std::vector<Seed>& seeds, Random& random) {
    switch (random.below(14)) {
        case 0:
            return flip_bits(file, random);
        case 1:
        case 2:
        case 3:
            return set_boundary_value(file, random);
        case 4:
        case 5:
            return nudge_value(file, random);
        case 6:
            return swap_values(file, random);
        case 7:
            return truncate(file, random);
        case 8:
            return overwrite_block(file, random);
        case 9:
            return duplicate_block(file, random);
        case 10:
            return remove_block(file, random);
        case 11:
            return fill_block(file, random);
        case 12:
            return splice(file, seeds[random.below(seeds.size())].parts[0], random);
        default:
            file.bytes.insert(file.bytes.end(), random.below(300), std::byte{0});
    }
}

// Drops, repeats or exchanges whole parts of a split model.
void mutate_parts(std::vector<BuiltFile>& parts, Random& random) {
    const size_t i = random.below(parts.size());
    switch (random.below(3)) {
        case 0:
            if (parts.size() > 1) parts.erase(parts.begin() + static_cast<ptrdiff_t>(i));
            return;
        case 1: {
            const BuiltFile repeated = parts[i];
            parts.push_back(repeated);
            return;
        }
        default:
            std::swap(parts[i], parts[random.below(parts.size())]);
    }
}

std::vector<std::byte> make_input(const std::vector<Seed>& seeds, Random& random) {
    Seed seed = seeds[random.below(seeds.size())];
    if (seed.parts.size() > 1 && random.below(4) == 0) mutate_parts(seed.parts, random);
    // Few mutations: most of a file must stay valid for the later checks to be reached.
    for (size_t i = 1 + random.below(random.below(4) == 0 ? 8 : 2); i > 0; --i) {
        mutate(seed.parts[random.below(seed.parts.size())], seeds, random);
    }
    std::vector<std::byte> input = join_parts(seed.parts);
    if (seed.parts.size() > 1 && random.below(16) == 0) {
        BuiltFile whole{std::move(input), {}};
        mutate(whole, seeds, random);
        input = std::move(whole.bytes);
    }
    return input;
}

struct Options {
    uint64_t count = 200000;
    uint64_t seed = 1;
    uint64_t first = 0;
    std::vector<std::string> folders;
};

bool parse_options(int argc, char** argv, Options& options) {
    for (int i = 1; i < argc; i += 2) {
        const std::string_view name = argv[i];
        if (i + 1 >= argc) return false;
        const std::string_view value = argv[i + 1];
        if (name == "--dir") {
            options.folders.emplace_back(value);
            continue;
        }
        uint64_t* number = name == "--count"   ? &options.count
                           : name == "--seed"  ? &options.seed
                           : name == "--first" ? &options.first
                                               : nullptr;
        if (number == nullptr) return false;
        const auto result = std::from_chars(value.data(), value.data() + value.size(), *number);
        if (result.ec != std::errc() || result.ptr != value.data() + value.size()) return false;
    }
    return true;
}

void add_seed_files(const std::string& folder, std::vector<Seed>& seeds) {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.is_regular_file()) paths.push_back(entry.path());
    }
    std::sort(paths.begin(), paths.end());
    for (const std::filesystem::path& path : paths) {
        std::ifstream stream(path, std::ios::binary);
        const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
        const auto* raw = reinterpret_cast<const std::byte*>(text.data());
        seeds.push_back({path.filename().string(), {BuiltFile{{raw, raw + text.size()}, {}}}});
    }
}

void run_one(const std::vector<std::byte>& input) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

// For the handlers below, which run while the program dies.
volatile std::sig_atomic_t g_running = 0;
char g_repeat_hint[128];

void show_repeat_hint() {
    if (g_running == 0) return;
    if (::write(STDERR_FILENO, g_repeat_hint, std::strlen(g_repeat_hint)) < 0) std::_Exit(1);
}

void on_abort(int) {
    show_repeat_hint();
}

}  // namespace
}  // namespace metallic::testing

// Offered by the sanitizers' run-time library, absent in a plain build.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace metallic::testing {
namespace {

int run(const Options& options) {
    std::vector<Seed> seeds = make_seeds();
    for (const std::string& folder : options.folders) add_seed_files(folder, seeds);
    g_running = 1;
    std::snprintf(g_repeat_hint, sizeof(g_repeat_hint), "in an unchanged seed\n");
    const size_t made = make_seeds().size();
    for (size_t i = 0; i < seeds.size(); ++i) {
        run_one(join_parts(seeds[i].parts));
        if (i >= made || g_fuzz_counts.accepted == i + 1) continue;
        std::fprintf(stderr, "finding: the valid seed \"%s\" was refused\n", seeds[i].name.c_str());
        return 1;
    }
    g_fuzz_counts = {};
    std::clock_t slowest = 0;
    for (uint64_t i = options.first; i < options.first + options.count; ++i) {
        std::snprintf(g_repeat_hint, sizeof(g_repeat_hint), "repeat with: --seed %llu --first %llu --count 1\n",
                      static_cast<unsigned long long>(options.seed), static_cast<unsigned long long>(i));
        Random random(options.seed, i);
        const std::vector<std::byte> input = make_input(seeds, random);
        const std::clock_t begin = std::clock();
        run_one(input);
        const std::clock_t taken = std::clock() - begin;
        slowest = std::max(slowest, taken);
        if (taken <= CLOCKS_PER_SEC) continue;
        std::fprintf(stderr, "finding: an input of %zu bytes took over 1 s\n%s", input.size(), g_repeat_hint);
        return 1;
    }
    std::printf(
        "%llu inputs: %llu accepted, %llu ModelFormatError, %llu UnsupportedModelError; "
        "worst memory %.1f %% of what is allowed, slowest %.1f ms\n",
        static_cast<unsigned long long>(options.count), static_cast<unsigned long long>(g_fuzz_counts.accepted),
        static_cast<unsigned long long>(g_fuzz_counts.format_errors),
        static_cast<unsigned long long>(g_fuzz_counts.unsupported), 100 * g_fuzz_counts.worst_allocation,
        1000.0 * static_cast<double>(slowest) / CLOCKS_PER_SEC);
    return 0;
}

}  // namespace
}  // namespace metallic::testing

int main(int argc, char** argv) {
    using namespace metallic::testing;
    Options options;
    if (!parse_options(argc, argv, options)) {
        std::fprintf(stderr, "usage: gguf_fuzz [--count N] [--seed N] [--first N] [--dir FOLDER]...\n");
        return 2;
    }
    std::signal(SIGABRT, on_abort);
    if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(show_repeat_hint);
    return run(options);
}
