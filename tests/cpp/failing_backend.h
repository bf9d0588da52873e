#pragma once

#include "fake_backend.h"

namespace metallic::test {

// Fails the nth copy, download or upload from now on.
class FailingBackend final : public FakeBackend {
  public:
    using FakeBackend::FakeBackend;
    void copy(BufferView from, BufferView to) override {
        fail(copies_left);
        FakeBackend::copy(from, to);
    }
    void upload(std::span<const std::byte> from, BufferView to) override {
        fail(uploads_left);
        FakeBackend::upload(from, to);
    }
    void download(BufferView from, std::span<std::byte> to) override {
        fail(downloads_left);
        FakeBackend::download(from, to);
    }
    int copies_left = -1, uploads_left = -1, downloads_left = -1;  // until one fails; negative: none does

  private:
    static void fail(int& left) {
        if (left < 0) return;
        if (left-- == 0) throw DeviceError("the copy failed", "copy", "injected");
    }
};

}  // namespace metallic::test
