#include "trace/scope.h"

namespace metallic {

ScopeTree::ScopeTree() {
    nodes_.push_back({0, "", kNoBlock});
}

ScopeId ScopeTree::child(ScopeId parent, std::string_view name, uint32_t block) {
    std::string path = nodes_[parent].path;
    if (!path.empty()) path += '/';
    path += name;
    const auto [found, inserted] = ids_.try_emplace(path, static_cast<ScopeId>(nodes_.size()));
    if (inserted) nodes_.push_back({parent, std::move(path), block == kNoBlock ? nodes_[parent].block : block});
    return found->second;
}

}  // namespace metallic
