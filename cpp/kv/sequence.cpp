#include "kv/sequence.h"

#include <algorithm>

#include "backend/kv_rows.h"
#include "core/error.h"

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

Sequence::Sequence(std::vector<PageStore*> stores, std::vector<uint32_t> windows) {
    for (size_t i = 0; i < stores.size(); ++i) tables_.push_back({stores[i], windows[i], 0, 0, {}, {}});
}

// ---- growing and shrinking ------------------------------------------------------------------------------------------

void Sequence::grow(Table& table, uint32_t pages) {
    while (table.first_page + table.pages.size() < pages) {
        if (table.pages.size() == table.pages.capacity()) table.pages.reserve(2 * table.pages.size() + 8);
        table.pages.push_back(table.store->take());
    }
}

// Every table to as many pages as `wanted` says, or none of them.
template <typename Wanted>
void Sequence::grow_all(Wanted wanted) {
    if (!resident()) throw Error("a sequence whose pages are saved cannot grow");
    for (Table& table : tables_) table.held = table.pages.size();
    try {
        for (Table& table : tables_) grow(table, wanted(table));
    } catch (...) {
        for (Table& table : tables_) {
            while (table.pages.size() > table.held) pop_page(table);
        }
        throw;
    }
}

void Sequence::reserve(uint32_t length) {
    if (resident() && length > cached_) {
        for (Table& table : tables_) own_last_page(table);
    }
    const uint32_t pages = pages_for(length);
    grow_all([&](const Table&) { return pages; });
}

void Sequence::reserve_ahead(uint32_t length) {
    grow_all([&](const Table& table) {
        const uint64_t seen = uint64_t{table.first_page} * kPageTokens + table.window;
        return pages_for(table.window ? static_cast<uint32_t>(std::min<uint64_t>(length, seen)) : length);
    });
}

void Sequence::commit(uint32_t count, std::span<const int32_t> tokens) {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    cached_ += count;
    for (Table& table : tables_) {
        const uint32_t visible = std::max(first_visible_page(cached_, table.window), table.first_page);
        const auto drop = std::min<size_t>(visible - table.first_page, table.pages.size());
        for (size_t i = 0; i < drop; ++i) table.store->give(table.pages[i]);
        table.pages.erase(table.pages.begin(), table.pages.begin() + static_cast<std::ptrdiff_t>(drop));
        table.first_page += static_cast<uint32_t>(drop);
    }
}

void Sequence::pop_page(Table& table) noexcept {
    if (const uint64_t page = table.pages.back()) {
        table.store->give(page);
    } else {
        --saved_pages_;
        saved_bytes_ -= table.saved.back().layout.page_bytes;
    }
    table.pages.pop_back();
    if (!table.saved.empty()) table.saved.pop_back();
}

bool Sequence::truncate(uint32_t length) {
    if (length > this->length()) return false;
    if (length == this->length()) return true;  // pages that were taken ahead stay
    if (length == 0) {                          // nothing is left that would need a past
        clear();
        return true;
    }
    const uint32_t kept = std::min(length, cached_);
    for (const Table& table : tables_) {
        if (first_visible_page(kept, table.window) < table.first_page) return false;
    }
    for (Table& table : tables_) {
        const uint32_t keep = std::max(pages_for(kept), table.first_page) - table.first_page;
        while (table.pages.size() > keep) pop_page(table);
    }
    tokens_.resize(length);
    cached_ = kept;
    return true;
}

void Sequence::forget(uint32_t first, uint32_t count) {
    if (first > length() || count > length() - first) throw Error("a sequence without the tokens to be forgotten");
    const std::vector<int32_t> behind(tokens_.begin() + first + count, tokens_.end());
    std::vector<int32_t> kept(tokens_.begin(), tokens_.begin() + first);
    kept.insert(kept.end(), behind.begin(), behind.end());
    if (!truncate(first)) drop();
    tokens_ = std::move(kept);
}

void Sequence::clear() noexcept {
    drop();
    tokens_.clear();
}

void Sequence::own_last_page(Table& table) {
    if (cached_ % kPageTokens == 0) return;
    uint64_t& page = table.pages[cached_ / kPageTokens - table.first_page];
    if (table.store->references(page) == 1) return;
    const uint64_t own = table.store->take();
    try {
        table.store->copy(page, own);
    } catch (...) {
        table.store->give(own);
        throw;
    }
    table.store->give(page);
    page = own;
}

std::unique_ptr<Sequence> Sequence::fork() const {
    std::vector<PageStore*> stores;
    std::vector<uint32_t> windows;
    for (const Table& table : tables_) stores.push_back(table.store), windows.push_back(table.window);
    auto copy = std::make_unique<Sequence>(std::move(stores), std::move(windows));
    copy->tokens_ = tokens_;
    copy->rope_extended = rope_extended;
    if (!resident()) return copy;
    for (size_t g = 0; g < tables_.size(); ++g) {
        const Table& from = tables_[g];
        Table& to = copy->tables_[g];
        to.first_page = from.first_page;
        const uint32_t held = std::max(pages_for(cached_), from.first_page) - from.first_page;
        to.pages.assign(from.pages.begin(), from.pages.begin() + held);
        for (const uint64_t page : to.pages) from.store->share(page);
    }
    copy->cached_ = cached_;
    return copy;
}

// ---- giving pages up and taking them back ---------------------------------------------------------------------------

uint64_t Sequence::own_bytes() const noexcept {
    uint64_t bytes = 0;
    for (const Table& table : tables_) {
        for (const uint64_t page : table.pages) {
            if (page && table.store->references(page) == 1) bytes += table.store->page_stride();
        }
    }
    return bytes;
}

uint64_t Sequence::save(bool shared, std::span<const KvLayout> packed) {
    // Pages that were taken ahead of their tokens hold nothing.
    for (Table& table : tables_) {
        const uint32_t keep = std::max(pages_for(cached_), table.first_page) - table.first_page;
        while (table.pages.size() > keep) pop_page(table);
    }
    uint64_t freed = 0;
    for (size_t g = 0; g < tables_.size(); ++g) {
        Table& table = tables_[g];
        table.saved.resize(table.pages.size());
        const KvLayout& layout = table.store->layout();
        for (size_t i = 0; i < table.pages.size(); ++i) {
            const uint64_t page = table.pages[i];
            const bool own = page != 0 && table.store->references(page) == 1;
            if (page == 0 || !(own || shared)) continue;
            Saved saved{std::make_unique_for_overwrite<std::byte[]>(layout.page_bytes), layout};
            table.store->backend().download(table.store->view(page), {saved.bytes.get(), layout.page_bytes});
            if (!packed.empty()) saved = {convert_kv_page(layout, saved.bytes.get(), packed[g]), packed[g]};
            saved_bytes_ += saved.layout.page_bytes;
            ++saved_pages_;
            table.saved[i] = std::move(saved);
            table.store->give(page);
            table.pages[i] = 0;
            if (own) freed += table.store->page_stride();
        }
    }
    return freed;
}

uint64_t Sequence::restore() {
    uint64_t brought = 0;
    for (Table& table : tables_) {
        const KvLayout& layout = table.store->layout();
        for (size_t i = 0; i < table.pages.size(); ++i) {
            if (table.pages[i] != 0) continue;
            Saved& saved = table.saved[i];
            const uint64_t page = table.store->take();
            try {
                if (saved.layout != layout) {
                    auto whole = convert_kv_page(saved.layout, saved.bytes.get(), layout);
                    saved_bytes_ = saved_bytes_ - saved.layout.page_bytes + layout.page_bytes;
                    saved = {std::move(whole), layout};
                }
                table.store->backend().upload({saved.bytes.get(), layout.page_bytes}, table.store->view(page));
            } catch (...) {
                table.store->give(page);
                throw;
            }
            table.pages[i] = page;
            saved.bytes.reset();
            --saved_pages_;
            saved_bytes_ -= layout.page_bytes;
            brought += layout.page_bytes;
        }
        table.saved.clear();
    }
    return brought;
}

uint64_t Sequence::drop() noexcept {
    const uint64_t freed = own_bytes();
    for (Table& table : tables_) {
        while (!table.pages.empty()) pop_page(table);
        table.saved.clear();
        table.first_page = 0;
    }
    cached_ = 0;
    return freed;
}

void Sequence::relocate(size_t group, const std::unordered_map<uint64_t, uint64_t>& moved) noexcept {
    for (uint64_t& page : tables_[group].pages) {
        if (const auto found = moved.find(page); found != moved.end()) page = found->second;
    }
}

PageTableView Sequence::table(size_t group) const noexcept {
    const Table& table = tables_[group];
    return {table.pages.data(), table.first_page, static_cast<uint32_t>(table.pages.size())};
}

uint64_t Sequence::pages() const noexcept {
    uint64_t sum = 0;
    for (const Table& table : tables_) {
        sum += table.pages.size() - static_cast<uint64_t>(std::count(table.pages.begin(), table.pages.end(), 0));
    }
    return sum;
}

void Sequence::check_idle() const {
    if (busy) throw RequestError("the sequence is in use by a forward pass");
}

}  // namespace metallic
