#include "msl/inspect.h"

#include <cxxabi.h>

#include <cstdlib>
#include <sstream>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "msl/library.h"

namespace metalsim::msl {

namespace {

std::string demangled(const std::string& name) {
    int status = 0;
    char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    std::string out = status == 0 ? text : name;
    std::free(text);
    return out;
}

// @name or @"name" at `at`.
std::string symbol(std::string_view line, size_t at) {
    size_t begin = at + 1, end = begin;
    if (line[begin] == '"') {
        end = line.find('"', ++begin);
    } else {
        while (end < line.size() && (std::isalnum(static_cast<unsigned char>(line[end])) || line[end] == '_' ||
                                     line[end] == '.' || line[end] == '$'))
            ++end;
    }
    return std::string(line.substr(begin, end - begin));
}

// Ours: namespace metalsim (also as part of what its templates are made of), and the entries.
bool is_ours(const std::string& name) {
    return name.starts_with("_ZN8metalsim") || name.starts_with("_ZN5metal") || name.starts_with("_ZNK8metalsim") ||
           name.starts_with("_ZNK5metal") || name.starts_with("metalsim_") || name.starts_with("__sanitizer");
}

class CallGraph {
  public:
    void read(const std::string& ir) {
        std::istringstream lines(ir);
        std::string current;
        for (std::string line; std::getline(lines, line);) {
            const std::string_view text = line;
            if (text.starts_with("define "))
                current = symbol(text, text.find('@'));
            else if (text.starts_with("}"))
                current.clear();
            else if (!current.empty())
                call(text, current);
        }
    }
    void check() {
        for (const auto& [name, calls] : calls_)
            if (states_[name] == 0) visit(name);
    }

  private:
    void call(std::string_view line, const std::string& from) {
        size_t at = line.find("call ");
        if (at == std::string_view::npos || line.find(" asm ", at) != std::string_view::npos) return;
        // The callee is what stands before the parenthesis of the arguments.
        const size_t open = line.find('(', at);
        if (open == std::string_view::npos) return;
        const size_t global = line.find('@', at), local = line.find('%', at);
        if (global != std::string_view::npos && global < open) {
            calls_[from].push_back(symbol(line, global));
        } else if (local != std::string_view::npos && local < open && !is_ours(from)) {
            throw CompileError("error: " + demangled(from) +
                               " calls through a pointer: function pointers are not supported");
        }
    }
    void visit(const std::string& name) {
        states_[name] = 1;
        for (const std::string& callee : calls_[name]) {
            if (!calls_.contains(callee)) continue;
            if (states_[callee] == 1)
                throw CompileError("error: recursion is not supported in Metal: " + demangled(callee) +
                                   " calls itself" + (callee == name ? "" : ", through " + demangled(name)));
            if (states_[callee] == 0) visit(callee);
        }
        states_[name] = 2;
    }
    std::unordered_map<std::string, std::vector<std::string>> calls_;
    std::unordered_map<std::string, int> states_;
};

// The pointer operand after `at`: "ptr [attributes] %name" gives "%name"; empty if there is none.
std::string pointer_operand(std::string_view line, size_t& at) {
    at = line.find("ptr ", at);
    if (at == std::string_view::npos) return {};
    const size_t begin = line.find_first_of("%@", at);
    if (begin == std::string_view::npos) return {};
    at = line.find_first_of(",) ", begin);
    return std::string(line.substr(begin, at - begin));
}

class CopyChecks {
  public:
    std::string run(const std::string& ir) {
        std::istringstream lines(ir);
        for (std::string line; std::getline(lines, line);) {
            if (line.starts_with("define ")) {
                locals_.clear();
                ours_ = line.find("@metalsim_") != std::string::npos || line.find("8metalsim") != std::string::npos;
            }
            if (const size_t at = line.find(" = alloca "); at != std::string::npos)
                locals_.insert(line.substr(2, at - 2));
            if (!ours_) access(line);
            out_ += line + "\n";
        }
        return std::move(out_);
    }

  private:
    void access(const std::string& line) {
        size_t at = 0;
        const bool copy = line.find("call void @llvm.memcpy.") != std::string::npos ||
                          line.find("call void @llvm.memmove.") != std::string::npos;
        if (copy) {
            at = line.find('(');
            const std::string to = pointer_operand(line, at), from = pointer_operand(line, at);
            const size_t size = line.find("i64 ", at);
            const std::string bytes = line.substr(size + 4, line.find(',', size) - size - 4);
            check(to, bytes, true, line);
            check(from, bytes, false, line);
        } else if (line.find(" = load <4 x i64>, ") != std::string::npos) {
            check(pointer_operand(line, at), "32", false, line);
        } else if (line.starts_with("  store <4 x i64> ")) {
            at = line.find(", ptr ");
            check(pointer_operand(line, at), "32", true, line);
        }
    }
    void check(const std::string& pointer, const std::string& bytes, bool write, const std::string& line) {
        if (pointer.empty() || pointer[0] == '@' || locals_.contains(pointer)) return;
        out_ +=
            "  call void @metalsim_check_copy(ptr " + pointer + ", i64 " + bytes + ", i32 " + (write ? "1" : "0") + ")";
        // A call in a function with debug information needs a location.
        if (const size_t debug = line.find(", !dbg "); debug != std::string::npos)
            out_ += line.substr(debug, line.find_first_of(", ", debug + 7) - debug);
        out_ += "\n";
    }

    std::unordered_set<std::string> locals_;
    bool ours_ = false;
    std::string out_;
};

}  // namespace

std::string with_checked_copies(const std::string& ir) {
    return CopyChecks().run(ir);
}

bool only_members(const std::string& messages) {
    static constexpr std::string_view kinds[] = {"no matching constructor for initialization of",
                                                 "no viable overloaded '",
                                                 "cannot initialize object parameter of type",
                                                 "no matching member function for call to",
                                                 "no viable conversion from",
                                                 "no viable overloaded operator[]",
                                                 "call to implicitly-deleted",
                                                 "no matching conversion for",
                                                 "changes address space",
                                                 "invalid operands to binary expression",
                                                 "copy-list-initialization",
                                                 "excess elements in"};
    std::istringstream lines(messages);
    bool any = false, call = false;
    for (std::string line; std::getline(lines, line);) {
        // A call that fails only because what it would instantiate failed before.
        if (call && line.find("note: candidate ") != std::string::npos &&
            line.find("substitution failure [") == std::string::npos)
            return false;
        if (line.find("error: ") == std::string::npos) continue;
        call = line.find("no matching function for call to") != std::string::npos;
        bool known = call;
        for (const std::string_view kind : kinds) known = known || line.find(kind) != std::string::npos;
        if (!known) return false;
        any = true;
    }
    return any && messages.find("address space") != std::string::npos;
}

std::string implicit_bfloat(const std::string& messages) {
    std::istringstream lines(messages);
    for (std::string line; std::getline(lines, line);) {
        const size_t at = line.find("warning: implicit conversion");
        if (at == std::string::npos || line.find("metalsim/") < at) continue;
        const size_t to = line.find(" to '", at);
        if (to == std::string::npos) continue;
        if (line.compare(to + 5, 6, "bfloat") == 0 || line.find("aka '__bf16'", to) != std::string::npos)
            return line.substr(0, at) + "error: " + line.substr(at + 9);
    }
    return {};
}

void inspect(const std::string& ir) {
    CallGraph graph;
    graph.read(ir);
    graph.check();
}

}  // namespace metalsim::msl
