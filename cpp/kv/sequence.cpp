#include "kv/sequence.h"

#include <algorithm>

namespace metallic {
namespace {

uint32_t pages_for(uint32_t tokens) {
    return (tokens + kPageTokens - 1) / kPageTokens;
}

// The first page that a query at `position` or later can see.
uint32_t first_visible_page(uint32_t position, uint32_t window) {
    return window == 0 || position < window ? 0 : (position - window + 1) / kPageTokens;
}

}  // namespace

Sequence::Sequence(Backend& backend, std::vector<PageStore*> stores, std::vector<uint32_t> windows)
    : backend_(backend) {
    for (size_t i = 0; i < stores.size(); ++i) tables_.push_back({stores[i], windows[i], 0, {}});
}

void Sequence::reserve(uint32_t length) {
    if (length > length_) {
        for (Table& table : tables_) own_last_page(table);
    }
    const uint32_t needed = pages_for(length);
    size_t grown = 0;
    try {
        for (; grown < tables_.size(); ++grown) {
            Table& table = tables_[grown];
            while (table.first_page + table.pages.size() < needed) table.pages.push_back(table.store->take());
        }
    } catch (...) {
        // What the sequence holds beyond its tokens is what was taken here, or for a batch that was interrupted.
        const uint32_t held = pages_for(length_);
        for (size_t i = 0; i <= grown; ++i) {
            Table& table = tables_[i];
            for (; table.first_page + table.pages.size() > held && !table.pages.empty(); table.pages.pop_back()) {
                table.store->give(table.pages.back());
            }
        }
        throw;
    }
}

void Sequence::commit(uint32_t length) {
    length_ = length;
    for (Table& table : tables_) {
        const uint32_t visible = std::max(first_visible_page(length, table.window), table.first_page);
        const auto drop = std::min<size_t>(visible - table.first_page, table.pages.size());
        for (size_t i = 0; i < drop; ++i) table.store->give(table.pages[i]);
        table.pages.erase(table.pages.begin(), table.pages.begin() + static_cast<std::ptrdiff_t>(drop));
        table.first_page += static_cast<uint32_t>(drop);
    }
}

bool Sequence::truncate(uint32_t length) {
    if (length > length_) return false;
    for (const Table& table : tables_) {
        if (first_visible_page(length, table.window) < table.first_page) return false;
    }
    for (Table& table : tables_) {
        const uint32_t keep = std::max(pages_for(length), table.first_page) - table.first_page;
        for (; table.pages.size() > keep; table.pages.pop_back()) table.store->give(table.pages.back());
    }
    length_ = length;
    return true;
}

void Sequence::clear() {
    for (Table& table : tables_) {
        for (const uint64_t page : table.pages) table.store->give(page);
        table.pages.clear();
        table.first_page = 0;
    }
    length_ = 0;
}

void Sequence::own_last_page(Table& table) {
    if (length_ % kPageTokens == 0) return;
    uint64_t& page = table.pages[length_ / kPageTokens - table.first_page];
    if (table.store->references(page) == 1) return;
    const uint64_t own = table.store->take();
    table.store->copy(page, own);
    table.store->give(page);
    page = own;
}

std::unique_ptr<Sequence> Sequence::fork() const {
    std::vector<PageStore*> stores;
    std::vector<uint32_t> windows;
    for (const Table& table : tables_) stores.push_back(table.store), windows.push_back(table.window);
    auto copy = std::make_unique<Sequence>(backend_, std::move(stores), std::move(windows));
    for (size_t g = 0; g < tables_.size(); ++g) {
        const Table& from = tables_[g];
        Table& to = copy->tables_[g];
        to.first_page = from.first_page;
        const uint32_t held = std::max(pages_for(length_), from.first_page) - from.first_page;
        to.pages.assign(from.pages.begin(), from.pages.begin() + held);
        for (const uint64_t page : to.pages) from.store->share(page);
    }
    copy->length_ = length_;
    return copy;
}

PageTableView Sequence::table(size_t group) const noexcept {
    const Table& table = tables_[group];
    return {table.pages.data(), table.first_page, static_cast<uint32_t>(table.pages.size())};
}

uint64_t Sequence::pages() const noexcept {
    uint64_t sum = 0;
    for (const Table& table : tables_) sum += table.pages.size();
    return sum;
}

}  // namespace metallic
