#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace metallic {

using ScopeId = uint32_t;  // 0 is the root, whose path is empty

// An interned tree of scope names such as "forward/block.3/attention/qkv". Built while tracing, read-only afterwards.
class ScopeTree {
  public:
    ScopeTree();

    ScopeId child(ScopeId parent, std::string_view name);
    ScopeId parent(ScopeId id) const noexcept { return nodes_[id].parent; }
    const std::string& path(ScopeId id) const noexcept { return nodes_[id].path; }
    size_t size() const noexcept { return nodes_.size(); }

  private:
    struct Node {
        ScopeId parent;
        std::string path;
    };
    std::vector<Node> nodes_;
    std::unordered_map<std::string, ScopeId> ids_;
};

}  // namespace metallic
