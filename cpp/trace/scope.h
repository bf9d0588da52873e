#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace metallic {

using ScopeId = uint32_t;  // 0 is the root, whose path is empty
inline constexpr uint32_t kNoBlock = ~uint32_t{0};

// An interned tree of scope names such as "forward/block.3/attention/qkv". Built while tracing, read-only afterwards.
class ScopeTree {
  public:
    ScopeTree();

    // `block` is the number of the model's block that the new scope is; without one it lies in its parent's block.
    ScopeId child(ScopeId parent, std::string_view name, uint32_t block = kNoBlock);
    ScopeId parent(ScopeId id) const noexcept { return nodes_[id].parent; }
    const std::string& path(ScopeId id) const noexcept { return nodes_[id].path; }
    // The block that the scope lies in; kNoBlock: none.
    uint32_t block(ScopeId id) const noexcept { return nodes_[id].block; }
    size_t size() const noexcept { return nodes_.size(); }

  private:
    struct Node {
        ScopeId parent;
        std::string path;
        uint32_t block;
    };
    std::vector<Node> nodes_;
    std::unordered_map<std::string, ScopeId> ids_;
};

}  // namespace metallic
