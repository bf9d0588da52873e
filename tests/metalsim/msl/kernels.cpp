#include <algorithm>
#include <array>
#include <bitset>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "abi/kernel_abi.h"
#include "msl/translate.h"

namespace metalsim::msl {

namespace {

// Attributes of kernel parameters that say where in the grid a thread is.
const std::unordered_set<std::string_view> kPlaces = {"thread_position_in_grid",
                                                      "threads_per_grid",
                                                      "thread_position_in_threadgroup",
                                                      "threads_per_threadgroup",
                                                      "dispatch_threads_per_threadgroup",
                                                      "threadgroup_position_in_grid",
                                                      "threadgroups_per_grid",
                                                      "grid_origin",
                                                      "grid_size",
                                                      "thread_index_in_threadgroup",
                                                      "thread_index_in_simdgroup",
                                                      "simdgroup_index_in_threadgroup",
                                                      "simdgroups_per_threadgroup",
                                                      "dispatch_simdgroups_per_threadgroup",
                                                      "threads_per_simdgroup",
                                                      "thread_execution_width",
                                                      "thread_index_in_quadgroup",
                                                      "quadgroup_index_in_threadgroup",
                                                      "quadgroups_per_threadgroup",
                                                      "dispatch_quadgroups_per_threadgroup"};

struct Parameter {
    std::string name, type, source;  // source: C++ of where the value comes from
    bool memory = false;
    std::string function_constant = "-1";
};

struct Kernel {
    const Routine* function = nullptr;
    std::vector<Parameter> parameters;
    std::string host_name, limit;
};

struct Attributes {
    bool kernel = false;
    std::string host_name;
    std::optional<Range> limit;
};

class Kernels {
  public:
    Kernels(Tokens& tokens, const Structure& structure, const Constants& constants)
        : t_(tokens), s_(structure), constants_(constants) {}

    std::string run() {
        for (const Routine& f : s_.functions) {
            const Attributes a = take_attributes(f.begin, f.name);
            if (a.kernel)
                kernel(f, a);
            else if (f.body != 0)
                no_threadgroup_variables(f);
        }
        for (const Instantiation& i : s_.instantiations) instantiation(i);
        take_other_attributes();
        return table();
    }

  private:
    // Reads and removes `kernel` and [[...]] in [begin, end).
    Attributes take_attributes(size_t begin, size_t end) {
        Attributes out;
        for (size_t i = begin; i < end; ++i) {
            if (t_.is(i, "kernel")) {
                out.kernel = true;
                t_.drop(i, i + 1);
            }
            if (t_.is(i, "<")) {
                if (const size_t after = t_.close_angle(i)) i = after - 1;
                continue;
            }
            const size_t after = t_.attribute_end(i);
            if (after == 0) continue;
            for (const Range& a : split_list(t_, i + 2, after - 2)) {
                if (t_.is(a.begin, "kernel")) out.kernel = true;
                if (t_.is(a.begin, "host_name") && t_.is(a.begin + 1, "("))
                    for (size_t j = a.begin + 2; t_[j].kind == TokenKind::string; ++j)
                        out.host_name += t_[j].text.substr(1, t_[j].text.size() - 2);
                if (t_.is(a.begin, "max_total_threads_per_threadgroup")) out.limit = {a.begin + 2, a.end - 1};
                if (t_.is(a.begin, "visible") || t_.is(a.begin, "intersection") || t_.is(a.begin, "stitchable"))
                    fail(t_, a.begin,
                         "only kernels are supported, not '" + std::string(t_[a.begin].text) + "' functions");
            }
            t_.drop(i, after);
            i = after - 1;
        }
        return out;
    }
    // [[unroll]], [[likely]] and attributes of helpers: no meaning here.
    void take_other_attributes() {
        for (size_t i = 0; i + 1 < t_.size(); ++i) {
            const size_t after = t_.attribute_end(i);
            if (after == 0 || t_[i].replaced) continue;
            if (!t_.is(i + 2, "maybe_unused") && !t_.is(i + 2, "clang")) t_.drop(i, after);
            i = after - 1;
        }
    }

    void kernel(const Routine& f, const Attributes& a) {
        Kernel k;
        k.function = &f;
        const bool templated = f.head.end != f.head.begin;
        if (!is_void(f)) fail(t_, f.name, "a kernel must return void");
        if (f.class_index != SIZE_MAX) fail(t_, f.name, "a kernel cannot be a member function");
        const std::string name(t_[f.name].text);
        if (f.body == 0) {  // a declaration: the definition has all
            for (const Range& p : split_list(t_, f.open + 1, f.close)) take_attributes(p.begin, p.end);
            return;
        }
        parameters(k);
        if (a.limit) {
            k.limit = t_.text(a.limit->begin, a.limit->end);
            std::string text;
            for (size_t i = a.limit->begin; i < a.limit->end; ++i) text += std::string(t_[i].text) + " ";
            k.limit = text;
            if (templated) {
                const std::string helper = "metalsim_limit_" + name + "_" + std::to_string(f.name);
                t_.insert_before(f.head.begin, t_.text(f.head.begin, f.head.end) + " struct " + helper +
                                                   " { static constexpr unsigned value = " + k.limit + "; }; ");
                k.limit = helper;
            }
        }
        threadgroup_variables(f);
        if (!templated) {
            k.host_name = a.host_name.empty() ? name : a.host_name;
            t_.insert_after(f.end - 1, " " + entry(k, k.host_name, "", f.name));
        }
        for (const Kernel& other : kernels_[name])
            if (!templated && other.function->head.end == other.function->head.begin)
                fail(t_, f.name, "kernel '" + name + "' is overloaded");
        kernels_[name].push_back(k);
    }

    // Of templates with the same name, the one whose kinds of parameters (types or values) the arguments fit.
    const Kernel& chosen(const std::vector<Kernel>& candidates, size_t name) const {
        if (candidates.size() == 1 || !t_.is(name + 1, "<")) return candidates.front();
        const std::vector<Range> arguments = split_list(t_, name + 2, t_.close_angle(name + 1) - 1);
        for (const Kernel& k : candidates) {
            const TemplateHead& head = k.function->head;
            const std::vector<Range> parameters = split_list(t_, head.begin + 2, head.end - 1);
            bool fits = arguments.size() <= parameters.size();
            for (size_t i = 0; fits && i < arguments.size(); ++i) {
                const bool type = t_.is(parameters[i].begin, "typename") || t_.is(parameters[i].begin, "class");
                const Token& first = t_[arguments[i].begin];
                fits = type != (first.kind == TokenKind::number || first.is("true") || first.is("false"));
            }
            if (fits) return k;
        }
        return candidates.front();
    }

    bool is_void(const Routine& f) const {
        for (size_t i = f.begin; i < f.name; ++i)
            if (t_.is(i, "void")) return !t_.is(i + 1, "*");
        return false;
    }

    void parameters(Kernel& k) {
        std::vector<size_t> unplaced;
        std::bitset<kMetalsimBuffers> buffers;
        std::bitset<kMetalsimThreadgroupArguments> threadgroups;
        std::vector<Range> parts = split_list(t_, k.function->open + 1, k.function->close);
        if (parts.size() == 1 && parts[0].end == parts[0].begin + 1 && t_.is(parts[0].begin, "void")) parts.clear();
        for (const Range& part : parts) {
            Parameter p;
            if (!parameter(part, p, buffers, threadgroups)) unplaced.push_back(k.parameters.size());
            k.parameters.push_back(p);
        }
        // An index that is not given is the first free one, in order; llama.cpp's kernels and host code agree on that.
        for (const size_t i : unplaced) {
            Parameter& p = k.parameters[i];
            const bool group = p.type.find("threadgroup") != std::string::npos;
            uint32_t index = 0;
            while (index < kMetalsimBuffers && (group ? threadgroups[index] : buffers[index])) ++index;
            if (index >= kMetalsimBuffers) fail(t_, k.function->name, "a kernel has at most 31 buffers");
            (group ? threadgroups[index] : buffers[index]) = true;
            p.source = std::string(group ? "metalsim::from_threadgroup<" : "metalsim::from_buffer<") +
                       std::to_string(index) + ">";
        }
    }

    // False: memory without an index.
    template <typename Buffers, typename Threadgroups>
    bool parameter(const Range& part, Parameter& p, Buffers& buffers, Threadgroups& threadgroups) {
        size_t last = part.end, first_attribute = part.end;
        bool pointer = false, space = false;
        for (size_t i = part.begin; i < part.end; ++i) {
            const size_t after = t_.attribute_end(i);
            if (after != 0) {
                first_attribute = std::min(first_attribute, i);
                for (const Range& a : split_list(t_, i + 2, after - 2)) attribute(a, p, buffers, threadgroups);
                t_.drop(i, after);
                i = after - 1;
                continue;
            }
            pointer = pointer || t_.is(i, "*") || t_.is(i, "&");
            space = space || t_.is(i, "device") || t_.is(i, "constant") || t_.is(i, "threadgroup");
        }
        for (last = first_attribute; last > part.begin && (t_.is(last - 1, "]") || !t_[last - 1].identifier());) {
            --last;
            if (t_.is(last, "]")) {
                pointer = true;
                last = static_cast<size_t>(t_[last].match);
            }
        }
        if (last == part.begin) fail(t_, part.begin, "a kernel parameter needs a name");
        p.name = t_[last - 1].text;
        p.type = t_.text(part.begin, last - 1);
        p.memory = pointer;
        if (pointer && !space) fail(t_, part.begin, "pointer type must have explicit address space qualifier");
        if (!p.source.empty()) {
            if (pointer != p.source.starts_with("metalsim::from_buffer") &&
                pointer != p.source.starts_with("metalsim::from_threadgroup"))
                fail(t_, part.begin, "parameter '" + p.name + "' and its attribute do not fit each other");
            return true;
        }
        if (!pointer) fail(t_, part.begin, "parameter '" + p.name + "' has no attribute that says what it is");
        return false;
    }

    template <typename Buffers, typename Threadgroups>
    void attribute(const Range& a, Parameter& p, Buffers& buffers, Threadgroups& threadgroups) {
        const std::string name(t_[a.begin].text);
        if (name == "buffer") {
            const uint32_t index = number(a);
            if (index >= kMetalsimBuffers)
                fail(t_, a.begin, "a kernel has at most 31 buffers: the index must be less than 31");
            if (buffers[index]) fail(t_, a.begin, "buffer index " + std::to_string(index) + " is used twice");
            buffers[index] = true;
            p.source = "metalsim::from_buffer<" + std::to_string(index) + ">";
        } else if (name == "threadgroup") {
            const uint32_t index = number(a);
            if (index >= kMetalsimThreadgroupArguments)
                fail(t_, a.begin, "the index of a threadgroup argument must be less than 31");
            if (threadgroups[index]) fail(t_, a.begin, "threadgroup index " + std::to_string(index) + " is used twice");
            threadgroups[index] = true;
            p.source = "metalsim::from_threadgroup<" + std::to_string(index) + ">";
        } else if (name == "function_constant") {
            const Constants::Entry* e = constants_.find(t_[a.begin + 2].text);
            if (e == nullptr || e->type != "bool")
                fail(t_, a.begin,
                     "'" + std::string(t_[a.begin + 2].text) + "' is not a function constant of type bool");
            p.function_constant = "int(" + e->index + ")";
        } else if (kPlaces.contains(name)) {
            p.source = "metalsim::from_" + name;
        } else if (name == "texture" || name == "sampler" || name == "stage_in" || name == "imageblock_data") {
            fail(t_, a.begin, "arguments with [[" + name + "]] are not supported");
        } else if (name != "maybe_unused") {
            fail(t_, a.begin, "unknown attribute '" + name + "' of a kernel parameter");
        }
    }
    uint32_t number(const Range& a) const {
        if (!t_.is(a.begin + 1, "(") || t_[a.begin + 2].kind != TokenKind::number || !t_.is(a.begin + 3, ")"))
            fail(t_, a.begin, "an index must be a number");
        return static_cast<uint32_t>(std::stoul(std::string(t_[a.begin + 2].text), nullptr, 0));
    }

    // ---- threadgroup variables ----

    bool declares_threadgroup(size_t i, const Routine& f) const {
        if (!t_.is(i, "threadgroup") || i <= f.body) return false;
        size_t start = i;
        while (start > f.body && t_[start - 1].identifier() && !is_keyword(t_[start - 1].text)) --start;
        if (t_.is(start - 1, ")")) {
            const auto open = static_cast<size_t>(t_[start - 1].match);
            if (t_.is(open - 1, "alignas")) start = open - 1;
        }
        const Token& before = t_[start - 1];
        if (!before.is(";") && !before.is("{") && !before.is("}") && !before.is(":")) return false;
        for (size_t j = i + 1; j < f.end; ++j) {
            if (t_.is(j, "*") || t_.is(j, "&")) return false;
            if (t_.is(j, "[") || t_.is(j, ";") || t_.is(j, "=") || t_.is(j, ",")) return true;
            if (t_.is(j, "(") && !t_.is(j - 1, "alignas") && !t_.is(j - 1, "decltype")) return false;
            if (t_.is(j, "(")) j = static_cast<size_t>(t_[j].match);
            if (t_.is(j, "<")) {
                const size_t after = t_.close_angle(j);
                if (after != 0) j = after - 1;
            }
        }
        return false;
    }

    void no_threadgroup_variables(const Routine& f) {
        for (size_t i = f.body; i < f.end; ++i)
            if (declares_threadgroup(i, f)) fail(t_, i, "threadgroup variables can only be declared in kernels");
    }

    // threadgroup T a[n], b; -> references to memory that the executor keeps, each with a description of its size.
    void threadgroup_variables(const Routine& f) {
        for (size_t i = f.body; i < f.end; ++i) {
            if (!declares_threadgroup(i, f)) continue;
            size_t begin = i;
            while (!t_.is(begin - 1, ";") && !t_.is(begin - 1, "{") && !t_.is(begin - 1, "}") && !t_.is(begin - 1, ":"))
                --begin;
            size_t end = i;
            while (!t_.is(end, ";"))
                end = t_.is(end, "[") || t_.is(end, "(") || t_.is(end, "{") ? static_cast<size_t>(t_[end].match) + 1
                                                                            : end + 1;
            threadgroup_variable(f, begin, i, end);
            i = end;
        }
    }
    void threadgroup_variable(const Routine& f, size_t begin, size_t keyword, size_t end) {
        std::string alignment;
        std::string out, base;
        for (size_t i = begin; i < end; ++i)
            if (t_.is(i, "alignas")) {
                const auto close = static_cast<size_t>(t_[i + 1].match);
                alignment = t_.text(i + 2, close);
            }
        for (const Range& declarator : split_list(t_, keyword + 1, end)) {
            size_t name = declarator.end;
            for (size_t i = declarator.begin; i < declarator.end; ++i) {
                if (t_.is(i, "=") || t_.is(i, "{")) fail(t_, i, "threadgroup variables cannot be initialised");
                if (t_.is(i, "alignas"))
                    i = static_cast<size_t>(t_[i + 1].match);
                else if (t_.is(i, "["))
                    break;
                else if (t_.is(i, "<"))
                    i = std::max(i, t_.close_angle(i) - 1);
                else if (t_[i].identifier())
                    name = i;
            }
            if (base.empty()) {
                for (size_t i = begin; i < name; ++i) {
                    if (t_.is(i, "alignas"))
                        i = static_cast<size_t>(t_[i + 1].match);
                    else if (!t_.is(i, "threadgroup") && !t_.is(i, "static"))
                        base += t_.text(i, i + 1) + " ";
                }
            }
            const std::string n = std::to_string(variables_++);
            const std::string type = "metalsim_type_" + n, site = "metalsim_site_" + n;
            out += "using " + type + " = " + base + t_.text(name + 1, declarator.end) +
                   "; static MetalsimThreadgroupInfo " + site + " __attribute__((section(\"metalsim_tg\"), used)) = {" +
                   tag(f) + ", sizeof(" + type + "), " + (alignment.empty() ? "alignof(" + type + ")" : alignment) +
                   "}; threadgroup " + type + "& " + std::string(t_[name].text) + " = metalsim::threadgroup_variable<" +
                   type + ">(&" + site + "); ";
        }
        t_.drop(begin, end + 1);
        t_.insert_before(begin, out);
    }
    // The description of the kernel's instance that a threadgroup variable belongs to.
    std::string tag(const Routine& f) const {
        std::string name(t_[f.name].text);
        if (f.head.end != f.head.begin) {
            name += "<";
            for (size_t i = 0; i < f.head.arguments.size(); ++i) name += (i ? ", " : "") + f.head.arguments[i];
            name += ">";
        }
        return "&metalsim::kernel<decltype(&" + name + "), &" + name + ">::tag";
    }

    // ---- instances ----

    // template [[host_name("x")]] [kernel] R f<A>(parameters);
    void instantiation(const Instantiation& i) {
        size_t name = i.begin, open = 0;
        for (size_t j = i.begin + 1; j + 1 < i.end; ++j) {
            if (const size_t after = t_.attribute_end(j)) {
                j = after - 1;
            } else if (t_.is(j, "<")) {
                const size_t close = t_.close_angle(j);
                if (close == 0) break;
                j = close - 1;
            } else if (t_.is(j, "(")) {
                if (t_.is(j - 1, "decltype") || t_.is(j - 1, "__attribute__"))
                    j = static_cast<size_t>(t_[j].match);
                else {
                    open = j;
                    break;
                }
            } else if (t_[j].identifier()) {
                name = j;
            }
        }
        const Attributes a = take_attributes(i.begin, name);
        const auto found = kernels_.find(t_[name].text);
        if (found == kernels_.end()) return;  // of a helper or a class
        const Kernel& k = chosen(found->second, name);
        const size_t arguments_end = t_.is(name + 1, "<") ? t_.close_angle(name + 1) : name + 1;
        std::string arguments = t_.text(name + 1, arguments_end);
        std::string out;
        if (open != 0) {
            const auto close = static_cast<size_t>(t_[open].match);
            const std::vector<Range> parts = split_list(t_, open + 1, close);
            if (parts.size() != k.parameters.size()) fail(t_, name, "this instantiation does not match its template");
            for (const Range& p : parts)
                for (size_t j = p.begin; j < p.end; ++j)
                    if (const size_t after = t_.attribute_end(j)) t_.drop(j, after);
            std::string full(t_[name].text);
            full += arguments;
            if (arguments.empty()) fail(t_, name, "an instantiation of a kernel needs its template arguments");
            out += "static_assert(metalsim::same<decltype(&" + full + "), void (*)(" + t_.text(open + 1, close) +
                   ")>::value, \"the parameters of this instantiation are those of its template\"); ";
        }
        std::string host = a.host_name;
        if (host.empty()) host = std::string(t_[name].text) + arguments;
        out += entry(k, host, arguments, name);
        t_.drop(i.begin, i.end);
        t_.insert_before(i.begin, out);
    }

    // One line of C++ in the scope of the kernel: its entry, and a function that describes it.
    std::string entry(const Kernel& k, const std::string& host_name, const std::string& arguments, size_t at) {
        if (!host_names_.insert(host_name).second) fail(t_, at, "there are two kernels named '" + host_name + "'");
        const std::string n = std::to_string(entries_++);
        const std::string instance = std::string(t_[k.function->name].text) + arguments;
        const std::string type = "metalsim_kernel_" + n;
        std::string sources, infos;
        uint32_t count = 0;
        for (size_t i = 0; i < k.parameters.size(); ++i) {
            const Parameter& p = k.parameters[i];
            sources += (i ? ", " : "") + p.source;
            if (!p.memory) continue;
            ++count;
            infos += p.source + "::info<" + type + "::parameter<" + std::to_string(i) + ">>(\"" + p.name + "\", \"" +
                     escaped(p.type) + "\", " + p.function_constant + "), ";
        }
        std::string limit = "1024";
        if (!k.limit.empty())
            limit = k.function->head.end != k.function->head.begin ? k.limit + arguments + "::value" : k.limit;
        return "using " + type + " = metalsim::kernel<decltype(&" + instance + "), &" + instance +
               ">; extern \"C\" void metalsim_entry_" + n +
               "(const MetalsimArguments* a, void* const* g, const MetalsimThread* t) { " + type + "::arguments<" +
               sources +
               ">::run(a, g, t); } extern \"C\" METALSIM_UNCHECKED __attribute__((visibility(\"hidden\"))) "
               "MetalsimFunctionInfo metalsim_function_" +
               n + "() { static const MetalsimArgumentInfo all[] = {" + infos +
               "MetalsimArgumentInfo()}; return MetalsimFunctionInfo{\"" + host_name + "\", &metalsim_entry_" + n +
               ", all, " + std::to_string(count) + ", " + limit + ", &" + type + "::tag}; }";
    }
    static std::string escaped(const std::string& text) {
        std::string out;
        for (const char c : text) {
            if (c == '"' || c == '\\') out += '\\';
            out += c;
        }
        return out;
    }

    std::string table() const {
        std::string out = "typedef MetalsimFunctionInfo (*metalsim_describe)();\n";
        for (size_t i = 0; i < entries_; ++i)
            out += "extern \"C\" MetalsimFunctionInfo metalsim_function_" + std::to_string(i) + "();\n";
        out += "static const metalsim_describe metalsim_functions[] = {";
        for (size_t i = 0; i < entries_; ++i) out += "&metalsim_function_" + std::to_string(i) + ", ";
        return out + "nullptr};\nenum { metalsim_function_count = " + std::to_string(entries_) + " };\n";
    }

    Tokens& t_;
    const Structure& s_;
    const Constants& constants_;
    std::map<std::string, std::vector<Kernel>, std::less<>> kernels_;
    std::set<std::string, std::less<>> host_names_;
    size_t entries_ = 0, variables_ = 0;
};

}  // namespace

std::string rewrite_kernels(Tokens& tokens, const Structure& structure, const Constants& constants) {
    return Kernels(tokens, structure, constants).run();
}

}  // namespace metalsim::msl
