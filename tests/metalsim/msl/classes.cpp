#include <map>
#include <string>

#include "msl/translate.h"

namespace metalsim::msl {

namespace {

class Classes {
  public:
    Classes(Tokens& tokens, const Structure& structure, bool lenient)
        : t_(tokens),
          s_(structure),
          lenient_(lenient),
          user_copies_(structure.classes.size()),
          user_constructors_(structure.classes.size()) {}

    void run() {
        for (const Routine& f : s_.functions)
            if (f.class_index != SIZE_MAX) member(f);
        if (!lenient_)
            for (size_t i = 0; i < s_.classes.size(); ++i) copies(i);
    }

  private:
    // `R f(...) const device {`: C++ has no such overloads, so one member of each signature is kept, the one of the
    // thread address space if there is one. In a lenient compilation it is called for all.
    void member(const Routine& f) {
        const Class& c = s_.classes[f.class_index];
        if (t_[f.name].text == c.name) {
            user_constructors_[f.class_index] = true;
            for (const Range& p : split_list(t_, f.open + 1, f.close)) {
                for (size_t i = p.begin; i + 1 < p.end; ++i)
                    if (t_[i].text == c.name && t_.is(i + 1, "&")) user_copies_[f.class_index] = true;
            }
        }
        std::string space;
        for (size_t i = f.close + 1; i < f.end && (t_[i].identifier()); ++i) {
            if (!is_address_space(t_[i].text)) continue;
            if (!t_.is(i, "thread")) space = t_[i].text;
            t_.drop(i, i + 1);
        }
        std::string signature = std::to_string(f.class_index) + " ";
        for (size_t i = f.head.begin; i < f.head.end; ++i) signature += std::string(t_[i].text) + " ";
        signature += "| ";
        for (size_t i = operator_start(f); i <= f.close; ++i)
            if (!t_.is(i, "thread")) signature += std::string(t_[i].text) + " ";
        if (t_.is(f.close + 1, "const")) signature += "const";
        const auto [at, first] = kept_.try_emplace(signature, Kept{&f, space});
        if (first) return;
        const bool swap = space.empty() && !at->second.space.empty();
        const Routine& dropped = swap ? *at->second.function : f;
        if (!swap && space.empty()) return;  // a redeclaration: clang knows what to say
        if (swap) at->second = Kept{&f, space};
        t_.drop(dropped.head.end != dropped.head.begin ? dropped.head.begin : dropped.begin, dropped.end);
    }
    // The name of an operator is several tokens.
    size_t operator_start(const Routine& f) const {
        for (size_t i = f.open; i > f.begin; --i)
            if (t_.is(i, "operator")) return i;
        return f.name;
    }

    void copies(size_t index) {
        const Class& c = s_.classes[index];
        if (t_.is(c.key, "union") || user_copies_[index]) return;
        std::string name = c.name;
        if (name.empty()) {
            if (!t_.is(c.key - 1, "typedef")) return;  // of an anonymous member
            name = "metalsim_class_" + std::to_string(index);
            t_.insert_after(c.key, " " + name);
        }
        std::string text = " public:";
        if (!user_constructors_[index]) text += " " + name + "() = default;";
        text += " METALSIM_COPIES(" + name + ")";
        if (t_.is(c.key, "class")) text += " private:";
        t_.insert_after(c.body, text);
    }

    struct Kept {
        const Routine* function;
        std::string space;
    };
    Tokens& t_;
    const Structure& s_;
    bool lenient_;
    std::vector<bool> user_copies_, user_constructors_;
    std::map<std::string, Kept> kept_;
};

}  // namespace

void rewrite_classes(Tokens& tokens, const Structure& structure, bool lenient) {
    Classes(tokens, structure, lenient).run();
}

}  // namespace metalsim::msl
