#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor/executor.h"
#include "msl/library.h"

// Compiles a kernel and runs it once, for tests in other languages. The description on standard input has a line for
// each of:
//   source FILE            include FOLDER         define NAME[=VALUE]     checked
//   kernel HOST_NAME       grid X Y Z             threads X Y Z           (threadgroups, and threads of each)
//   buffer INDEX FILE      the file's bytes; written back
//   bytes INDEX HEX        threadgroup INDEX BYTES
//   constant INDEX HEX     a function constant
// Exit status: 0, 1 if it does not compile or the checks found something (on standard error), 2 for a bad description.

namespace {

using metalsim::msl::CompileError;

std::vector<unsigned char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::invalid_argument("cannot read " + path);
    return std::vector<unsigned char>(std::istreambuf_iterator<char>(file), {});
}

std::vector<unsigned char> from_hex(const std::string& text) {
    std::vector<unsigned char> out;
    for (size_t i = 0; i + 1 < text.size(); i += 2)
        out.push_back(static_cast<unsigned char>(std::stoul(text.substr(i, 2), nullptr, 16)));
    return out;
}

struct Description {
    std::string source, kernel;
    metalsim::msl::Options options;
    metalsim::Size3 grid, threads;
    std::map<uint32_t, std::string> files;  // of buffers that are written back
    std::map<uint32_t, std::vector<unsigned char>> buffers, constants;
    std::map<uint32_t, uint32_t> threadgroup;
};

Description read_description(std::istream& in) {
    Description d;
    std::string line, word, text;
    uint32_t index = 0;
    while (std::getline(in, line)) {
        std::istringstream words(line);
        if (!(words >> word)) continue;
        if (word == "source")
            words >> d.source;
        else if (word == "kernel")
            d.kernel = line.substr(line.find("kernel") + 7);
        else if (word == "include" && words >> text)
            d.options.include_folders.emplace_back(text);
        else if (word == "define" && words >> text)
            d.options.defines.push_back(text);
        else if (word == "checked")
            d.options.checked = true;
        else if (word == "grid")
            words >> d.grid.x >> d.grid.y >> d.grid.z;
        else if (word == "threads")
            words >> d.threads.x >> d.threads.y >> d.threads.z;
        else if (word == "buffer" && words >> index >> text)
            d.buffers[index] = read_file(d.files[index] = text);
        else if (word == "bytes" && words >> index >> text)
            d.buffers[index] = from_hex(text);
        else if (word == "constant" && words >> index >> text)
            d.constants[index] = from_hex(text);
        else if (word == "threadgroup" && words >> index)
            words >> d.threadgroup[index];
        else
            throw std::invalid_argument("unknown line: " + line);
        if (words.fail() && !words.eof()) throw std::invalid_argument("cannot read: " + line);
    }
    return d;
}

std::vector<unsigned char> constants_block(const metalsim::msl::Library& library, const Description& d) {
    std::vector<unsigned char> block(library.constants_bytes() + 1);
    for (const auto& c : library.constants()) {
        const auto found = d.constants.find(c.index);
        if (found == d.constants.end()) continue;
        if (found->second.size() != c.bytes)
            throw std::invalid_argument("function constant " + c.name + " is of " + std::to_string(c.bytes) + " bytes");
        std::memcpy(block.data() + c.offset, found->second.data(), c.bytes);
        block[c.defined] = 1;
    }
    return block;
}

int run(Description& d) {
    const std::vector<unsigned char> text = read_file(d.source);
    const auto library =
        metalsim::msl::compile("#line 1 \"" + d.source + "\"\n" + std::string(text.begin(), text.end()), d.options);
    const metalsim::msl::Function* function = library->find(d.kernel);
    if (function == nullptr) throw std::invalid_argument("no kernel " + d.kernel);
    const std::vector<unsigned char> constants = constants_block(*library, d);
    const auto executor = metalsim::create_executor();
    MetalsimArguments arguments{};
    arguments.function_constants = constants.data();
    for (auto& [index, bytes] : d.buffers) {
        if (index >= kMetalsimBuffers) throw std::invalid_argument("a buffer index is less than 31");
        arguments.buffers[index] = bytes.data();
        arguments.buffer_bytes[index] = bytes.size();
        executor->memory().add({bytes.data(), bytes.size(), "buffer " + std::to_string(index), true, false});
    }
    for (const auto& [index, bytes] : d.threadgroup) {
        if (index >= kMetalsimThreadgroupArguments) throw std::invalid_argument("a threadgroup index is less than 31");
        arguments.threadgroup_bytes[index] = bytes;
    }
    metalsim::Launch launch;
    launch.function = function;
    launch.arguments = &arguments;
    launch.threads_per_threadgroup = d.threads;
    launch.threadgroups = d.grid;
    const bool ok = executor->run(launch);
    for (const metalsim::Report& r : executor->take_reports()) std::fprintf(stderr, "%s\n", r.text().c_str());
    for (const auto& [index, path] : d.files) {
        std::ofstream file(path, std::ios::binary);
        file.write(reinterpret_cast<const char*>(d.buffers[index].data()),
                   static_cast<std::streamsize>(d.buffers[index].size()));
    }
    return ok ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        Description description;
        if (count == 2) {
            std::ifstream file(arguments[1]);
            description = read_description(file);
        } else {
            std::string text, line;
            for (int c = std::getchar(); c != EOF; c = std::getchar()) text += static_cast<char>(c);
            std::istringstream in(text);
            description = read_description(in);
        }
        return run(description);
    } catch (const CompileError& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "run_kernel: %s\n", e.what());
        return 2;
    }
}
