#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "msl/compiler.h"
#include "msl/library.h"
#include "msl/translate.h"

// Compiles a file as metalsim does and says what is wrong with it. -std=metal3.2: the language's version; --list: its
// kernels; --translate: what clang sees.

namespace {

using metalsim::msl::ArgumentKind;
using metalsim::msl::Function;
using metalsim::msl::Library;

void list(const Library& library) {
    for (const Function& f : library.functions()) {
        std::printf("kernel %s: at most %u threads, %u bytes of threadgroup memory\n", f.name.c_str(),
                    f.max_total_threads, f.threadgroup_bytes);
        for (const auto& a : f.arguments) {
            std::printf("    %s %u: %s %s, alignment %u", a.kind == ArgumentKind::buffer ? "buffer" : "threadgroup",
                        a.index, a.type.c_str(), a.name.c_str(), a.alignment);
            if (a.minimum_bytes != 0) std::printf(", at least %u bytes", a.minimum_bytes);
            if (a.function_constant) std::printf(", if constant %u", *a.function_constant);
            std::printf("%s\n", a.writable ? ", written" : "");
        }
    }
    for (const auto& c : library.constants())
        std::printf("constant %u: %s %s%s\n", c.index, c.type.c_str(), c.name.c_str(), c.required ? "" : ", optional");
}

// Of "metal3.1".
uint32_t version_of(const std::string& name) {
    unsigned major = 0, minor = 0;
    int end = 0;
    if (std::sscanf(name.c_str(), "metal%1u.%1u%n", &major, &minor, &end) != 2 || name.c_str()[end] != '\0')
        throw std::runtime_error("no version of the language: " + name);
    return 100 * major + 10 * minor;
}

int run(int count, char** arguments) {
    metalsim::msl::Options options;
    std::filesystem::path file;
    bool all = false, translated = false;
    for (int i = 1; i < count; ++i) {
        const std::string a = arguments[i];
        const bool more = i + 1 < count;
        if (a == "-I" && more)
            options.include_folders.emplace_back(arguments[++i]);
        else if (a == "-D" && more)
            options.defines.emplace_back(arguments[++i]);
        else if (a.starts_with("-I"))
            options.include_folders.emplace_back(a.substr(2));
        else if (a.starts_with("-D"))
            options.defines.push_back(a.substr(2));
        else if (a.starts_with("-std="))
            options.version = version_of(a.substr(5));
        else if (a == "--checked")
            options.checked = true;
        else if (a == "--list")
            all = true;
        else if (a == "--translate")
            translated = true;
        else
            file = a;
    }
    if (file.empty()) {
        std::fprintf(
            stderr,
            "usage: mslc file.metal [-std=metalX.Y] [-I folder] [-D NAME=VALUE] [--checked] [--list | --translate]\n");
        return 2;
    }
    std::ifstream stream(file, std::ios::binary);
    if (!stream) {
        std::fprintf(stderr, "mslc: cannot read %s\n", file.c_str());
        return 2;
    }
    const std::string source(std::istreambuf_iterator<char>(stream), {});
    options.include_folders.push_back(std::filesystem::absolute(file).parent_path());
    const std::string text = "#line 1 \"" + file.string() + "\"\n" + source;
    if (translated) {
        std::printf("%s",
                    metalsim::msl::translate(metalsim::msl::preprocess(text, options), options.version, false).c_str());
        return 0;
    }
    const auto library = metalsim::msl::compile(text, options);
    std::printf("%s: %zu kernels\n", file.c_str(), library->functions().size());
    if (all) list(*library);
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        return run(count, arguments);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
