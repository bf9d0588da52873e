#include "msl/compiler.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "msl/inspect.h"
#include "msl/translate.h"

extern "C" char** environ;

namespace metalsim::msl {

namespace {

namespace fs = std::filesystem;

// The folder that holds msl/ and abi/.
fs::path root() {
#ifdef METALSIM_ABI_INCLUDE
    return fs::path(METALSIM_ABI_INCLUDE).parent_path();
#else
    return fs::absolute(fs::path(__FILE__)).parent_path().parent_path();
#endif
}

std::string find_clang() {
    if (const char* path = std::getenv("METALSIM_CLANG"); path != nullptr && *path != '\0') return path;
#ifdef METALSIM_CLANG
    return METALSIM_CLANG;
#else
    const char* path = std::getenv("PATH");
    for (const char* name : {"clang++-19", "clang++"}) {
        std::istringstream folders(path != nullptr ? path : "/usr/bin");
        for (std::string folder; std::getline(folders, folder, ':');)
            if (access((folder + "/" + name).c_str(), X_OK) == 0) return folder + "/" + name;
    }
    throw CompileError("metalsim needs clang++ 19: set METALSIM_CLANG to it");
#endif
}

std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

// FNV-1a, twice with different seeds: names of files, not a defence.
class Hash {
  public:
    void add(std::string_view text) {
        for (const char c : text) mix(static_cast<unsigned char>(c));
        mix(0x100);
    }
    std::string str() const {
        char out[33];
        std::snprintf(out, sizeof out, "%016llx%016llx", static_cast<unsigned long long>(a_),
                      static_cast<unsigned long long>(b_));
        return out;
    }

  private:
    void mix(uint64_t c) {
        a_ = (a_ ^ c) * 0x100000001b3ull;
        b_ = (b_ ^ (c + 0x9e)) * 0x100000001b3ull + (b_ >> 47);
    }
    uint64_t a_ = 0xcbf29ce484222325ull, b_ = 0x6c62272e07bb0142ull;
};

// A folder for the files of one compilation.
class Scratch {
  public:
    explicit Scratch(const fs::path& parent) {
        static std::atomic<uint64_t> counter{0};
        path_ = parent / ("tmp." + std::to_string(getpid()) + "." + std::to_string(counter++));
        fs::create_directories(path_);
    }
    ~Scratch() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    fs::path operator/(const char* name) const { return path_ / name; }

  private:
    fs::path path_;
};

struct Outcome {
    bool ok = false;
    std::string messages;
};

Outcome run(const std::vector<std::string>& arguments, const fs::path& log) {
    std::vector<char*> argv;
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t child = 0;
    const int error = posix_spawn(&child, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw CompileError("cannot run " + arguments[0]);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return {WIFEXITED(status) && WEXITSTATUS(status) == 0, read_file(log)};
}

fs::path cache_folder(const Options& options) {
    if (!options.cache.empty()) return options.cache;
    if (const char* path = std::getenv("METALSIM_CACHE"); path != nullptr && *path != '\0') return path;
#ifdef METALSIM_CACHE_FOLDER
    return METALSIM_CACHE_FOLDER;
#else
    return fs::temp_directory_path() / ("metalsim-" + std::to_string(getuid()));
#endif
}

void write_file(const fs::path& path, std::string_view text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    if (!file.flush()) throw CompileError("cannot write " + path.string());
}

std::vector<std::string> include_flags() {
    return {"-I" + root().string(), "-I" + (root() / "msl" / "include").string()};
}

// The language: C++14; literals are float, and half and bfloat round after every operation. Calls are convergent: where
// a thread meets others is told by the call, which must be neither merged with another nor duplicated.
std::vector<std::string> language_flags(bool lenient) {
    std::vector<std::string> flags = {"-x",
                                      "c++",
                                      "-std=c++14",
                                      "-O2",
                                      "-fPIC",
                                      "-march=native",
                                      "-fvisibility=hidden",
                                      "-fno-exceptions",
                                      "-fno-rtti",
                                      "-fconvergent-functions",
                                      "-fno-math-errno",
                                      "-fno-trapping-math",
                                      "-ffp-contract=fast",
                                      "-fno-strict-aliasing",
                                      "-fno-threadsafe-statics",
                                      "-fno-asynchronous-unwind-tables",
                                      "-fno-stack-protector",
                                      "-ftemplate-depth=2048",
                                      "-ferror-limit=0",
                                      "-Xclang",
                                      "-cl-single-precision-constant",
                                      "-Xclang",
                                      "-ffloat16-excess-precision=none",
                                      "-Xclang",
                                      "-fbfloat16-excess-precision=none",
                                      "-Wno-everything",
                                      "-Wimplicit-float-conversion",
                                      "-fno-caret-diagnostics"};
    if (lenient)
        for (const char* flag : {"-Xclang", "-fsycl-is-device", "-Xclang", "-aux-triple", "-Xclang",
                                 "x86_64-pc-linux-gnu", "-DMETALSIM_LENIENT"})
            flags.emplace_back(flag);
    for (std::string& flag : include_flags()) flags.push_back(std::move(flag));
    return flags;
}

// What MSL's compiler may assume of floats ("Options for Math Modes" of the Metal Shading Language Specification).
std::vector<std::string> math_flags(Math math) {
    switch (math) {
        case Math::safe:
            return {};
        case Math::relaxed:  // infinities and NaNs are honoured
            return {"-ffast-math", "-fhonor-infinities", "-fhonor-nans"};
        case Math::fast:
            return {"-ffast-math"};
    }
    return {};
}

constexpr const char* kTrace = "-fsanitize-coverage=func,trace-loads,trace-stores";

// For every access to be seen, with its own size: no vectorisers. (-fno-builtin keeps loops and stores from becoming
// memset or memcpy.)
std::vector<std::string> code_flags(bool checked) {
    std::vector<std::string> flags = {"-x", "ir", "-O2", "-fPIC", "-march=native", "-Wno-everything"};
    // The code generator knows nothing of convergent calls.
    for (const char* option : {"-enable-tail-merge=0", "-tail-dup-placement=0"}) {
        flags.emplace_back("-mllvm");
        flags.emplace_back(option);
    }
    // A conditional access must not become an unconditional one.
    if (checked)
        for (const char* flag : {"-fno-vectorize", "-fno-slp-vectorize", "-mllvm", "-disable-licm-promotion", kTrace})
            flags.emplace_back(flag);
    return flags;
}

std::vector<std::string> with(std::vector<std::string> a, const std::vector<std::string>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

// What the result depends on besides the source: the compiler, the headers and the flags.
const std::string& environment_hash() {
    static const std::string value = [] {
        Hash hash;
        const std::string clang = find_clang();
        hash.add(clang);
        std::error_code ignored;
        const fs::path real = fs::canonical(clang, ignored);
        hash.add(std::to_string(fs::file_size(real, ignored)));
        hash.add(std::to_string(fs::last_write_time(real, ignored).time_since_epoch().count()));
        std::vector<fs::path> headers;
        for (const auto& entry : fs::recursive_directory_iterator(root() / "msl" / "include"))
            if (entry.is_regular_file()) headers.push_back(entry.path());
        std::istringstream processor(read_file("/proc/cpuinfo"));  // -march=native
        for (std::string line; std::getline(processor, line);)
            if (line.starts_with("flags")) {
                hash.add(line);
                break;
            }
        headers.push_back(root() / "abi" / "kernel_abi.h");
        std::sort(headers.begin(), headers.end());
        for (const fs::path& path : headers) {
            hash.add(path.string());
            hash.add(read_file(path));
        }
        for (const std::string& flag : with(language_flags(false), code_flags(true))) hash.add(flag);
        return hash.str();
    }();
    return value;
}

// The errors among clang's messages, with their notes.
std::string errors_of(const std::string& messages) {
    std::istringstream lines(messages);
    std::string out, included;
    bool wanted = false;
    size_t errors = 0;
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with("In file included from")) {
            included += line + "\n";
            continue;
        }
        const bool error = line.find("error: ") != std::string::npos;
        if (error && ++errors > 20) break;
        if (error || line.find("warning: ") != std::string::npos) wanted = error;
        if (line.starts_with("PLEASE submit")) break;
        if (wanted && (error || line.find("note: ") != std::string::npos)) out += (error ? included : "") + line + "\n";
        included.clear();
    }
    if (out.empty()) return messages.empty() ? "error: clang failed without a message" : messages;
    out.pop_back();
    return out;
}

Outcome compile_once(const std::string& text, const Options& options, bool lenient, const Scratch& scratch) {
    write_file(scratch / "source.cpp", text);
    std::vector<std::string> flags = with({find_clang()}, language_flags(lenient));
    flags = with(flags, math_flags(options.math));
    if (options.checked) flags = with(flags, {"-DMETALSIM_CHECKED", "-g1", "-fno-builtin", kTrace});
    // Before optimisation, so that what is seen in it is what was written.
    flags = with(flags, {"-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes", "-o", scratch / "source.ll",
                         scratch / "source.cpp"});
    return run(flags, scratch / "log");
}

}  // namespace

std::string preprocess(std::string_view source, const Options& options) {
    const fs::path cache = cache_folder(options);
    Scratch scratch(cache);
    write_file(scratch / "program_source", source);
    std::vector<std::string> flags = {find_clang(),
                                      "-E",
                                      "-x",
                                      "c++",
                                      "-std=c++14",
                                      "-DMETALSIM_PREPROCESSING",
                                      "-D__METAL__=1",
                                      "-Wno-everything",
                                      "-fno-caret-diagnostics"};
    flags.push_back("-D__METAL_VERSION__=" + std::to_string(options.version));
    for (const std::string& d : options.defines) flags.push_back("-D" + d);
    for (const fs::path& p : options.include_folders) flags.push_back("-I" + fs::absolute(p).string());
    flags = with(flags, include_flags());
    flags = with(flags, {"-o", scratch / "source.i", scratch / "program_source"});
    const Outcome outcome = run(flags, scratch / "log");
    const std::string path = scratch / "program_source";
    const auto hide_path = [&path](std::string text) {
        for (size_t at; (at = text.find(path)) != std::string::npos;) text.replace(at, path.size(), "program_source");
        return text;
    };
    if (!outcome.ok) throw CompileError(hide_path(errors_of(outcome.messages)));
    return hide_path(read_file(scratch / "source.i"));
}

fs::path build(std::string_view preprocessed, const Options& options) {
    const std::string text =
        "#include \"metalsim/stdlib.h\"\n# 1 \"program_source\"\n" + translate(preprocessed, options.version, false);
    Hash hash;
    hash.add(environment_hash());
    hash.add(options.checked ? "checked" : "host");
    hash.add(text);
    for (const std::string& flag : math_flags(options.math)) hash.add(flag);
    const fs::path cache = cache_folder(options);
    const fs::path library = cache / (hash.str() + ".so");
    if (fs::exists(library)) return library;

    Scratch scratch(cache);
    Outcome outcome = compile_once(text, options, false, scratch);
    if (!outcome.ok && only_members(outcome.messages)) {
        const std::string lenient =
            "#include \"metalsim/stdlib.h\"\n# 1 \"program_source\"\n" + translate(preprocessed, options.version, true);
        outcome = compile_once(lenient, options, true, scratch);
    }
    if (!outcome.ok) throw CompileError(errors_of(outcome.messages));
    if (const std::string wrong = implicit_bfloat(outcome.messages); !wrong.empty()) throw CompileError(wrong);
    const std::string ir = read_file(scratch / "source.ll");
    inspect(ir);
    if (options.checked) write_file(scratch / "source.ll", with_checked_copies(ir));
    std::vector<std::string> flags = with({find_clang()}, code_flags(options.checked));
    flags = with(flags, {"-shared", "-Wl,-Bsymbolic", "-o", scratch / "library.so", scratch / "source.ll", "-lm"});
    outcome = run(flags, scratch / "log");
    if (!outcome.ok) throw CompileError(errors_of(outcome.messages));
    fs::rename(scratch / "library.so", library);
    return library;
}

}  // namespace metalsim::msl
