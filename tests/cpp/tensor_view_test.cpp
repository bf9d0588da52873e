#include "memory/tensor_view.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/error.h"
#include "fake_backend.h"

namespace metallic {
namespace {

using Shape = std::vector<uint64_t>;

Shape shape_of(const TensorView& view) {
    return {view.shape().begin(), view.shape().end()};
}

class TensorViews : public ::testing::Test {
  protected:
    TensorView make(DType dtype, const Shape& shape) {
        uint64_t elements = 1;
        for (const uint64_t length : shape) elements *= length;
        held.push_back(pool.allocate(dtype, elements, Tag::activations, "test"));
        return {held.back(), shape};
    }
    Pool pool{std::make_shared<test::FakeBackend>(), 0};
    std::vector<Allocation> held;
};

TEST_F(TensorViews, SharesBytesAndKnowsWhere) {
    const TensorView whole = make(DType::F16, {4, 6, 8});
    EXPECT_EQ(whole.elements(), 192u);
    EXPECT_TRUE(whole.contiguous());
    EXPECT_EQ(whole.bytes().bytes, 384u);
    EXPECT_EQ(whole.bytes().address(), held[0].view().address());

    const TensorView rows = whole.slice(0, 1, 3);
    EXPECT_TRUE(rows.contiguous());
    EXPECT_EQ(rows.bytes().address(), held[0].view().address() + 48 * 2);
    EXPECT_EQ(rows.bytes().bytes, 2 * 48 * 2u);

    const TensorView columns = whole.slice(2, 2, 5);
    EXPECT_FALSE(columns.contiguous());
    EXPECT_EQ(columns.elements(), 72u);
    EXPECT_EQ(columns.bytes().bytes, 187 * 2u);  // from element 2 to element 188
    EXPECT_THROW(columns.reshape(Shape{72}), RequestError);

    const TensorView one = whole.select(1, 5);
    EXPECT_EQ(shape_of(one), (Shape{4, 8}));
    EXPECT_EQ(one.offset(), 40u);
    EXPECT_FALSE(one.contiguous());
    EXPECT_TRUE(one.select(0, 2).contiguous());

    const TensorView turned = whole.transpose(0, 2);
    EXPECT_EQ(shape_of(turned), (Shape{8, 6, 4}));
    EXPECT_FALSE(turned.contiguous());
    EXPECT_TRUE(turned.transpose(0, 2).contiguous());
    EXPECT_EQ(shape_of(whole.reshape(Shape{2, 96})), (Shape{2, 96}));
}

TEST_F(TensorViews, RefusesWhatCannotBe) {
    const TensorView whole = make(DType::F32, {4, 6});
    EXPECT_THROW(whole.slice(2, 0, 1), RequestError);
    EXPECT_THROW(whole.slice(0, 3, 2), RequestError);
    EXPECT_THROW(whole.slice(0, 0, 5), RequestError);
    EXPECT_THROW(whole.select(0, 4), RequestError);
    EXPECT_THROW(whole.select(7, 0), RequestError);
    EXPECT_THROW(whole.select(0, 0).select(0, 0), RequestError);
    EXPECT_THROW(whole.reshape(Shape{5, 5}), RequestError);
    EXPECT_THROW(whole.reshape(Shape{}), RequestError);
    EXPECT_THROW(whole.reshape(Shape(9, 1)), RequestError);
    EXPECT_THROW(whole.reshape(Shape{uint64_t{1} << 63, 4}), RequestError);
    EXPECT_THROW(whole.transpose(0, 2), RequestError);
    EXPECT_THROW(TensorView(held[0], Shape{5, 6}), RequestError);
    EXPECT_THROW(TensorView(DType::F32, Shape{25}, held[0].view()), RequestError);
    EXPECT_THROW(TensorView(DType::F32, Shape{uint64_t{1} << 62, 1}, held[0].view()), RequestError);
}

TEST_F(TensorViews, EmptyOnesHoldNothing) {
    const TensorView whole = make(DType::F32, {4, 6});
    const TensorView none = whole.slice(0, 4, 4);
    EXPECT_EQ(none.elements(), 0u);
    EXPECT_TRUE(none.contiguous());
    EXPECT_EQ(none.bytes().bytes, 0u);
    EXPECT_EQ(shape_of(none.reshape(Shape{0, 9})), (Shape{0, 9}));
}

TEST_F(TensorViews, BlocksStayWhole) {
    const TensorView whole = make(DType::Q4_0, {3, 4, 96});
    EXPECT_EQ(whole.bytes().bytes, 3 * 4 * 3 * 18u);
    const TensorView middle = whole.slice(2, 32, 64);
    EXPECT_EQ(middle.bytes().address() - held[0].view().address(), 18u);
    EXPECT_EQ(middle.select(0, 0).select(0, 0).bytes().bytes, 18u);
    EXPECT_THROW(whole.slice(2, 16, 64), RequestError);
    EXPECT_THROW(whole.slice(2, 0, 33), RequestError);
    EXPECT_THROW(whole.select(2, 0), RequestError);
    EXPECT_THROW(whole.transpose(1, 2), RequestError);
    EXPECT_THROW(whole.reshape(Shape{72, 16}), RequestError);
    EXPECT_EQ(shape_of(whole.reshape(Shape{36, 32})), (Shape{36, 32}));
    const TensorView turned = whole.transpose(0, 1);
    EXPECT_EQ(shape_of(turned), (Shape{4, 3, 96}));
    EXPECT_EQ(turned.select(0, 1).bytes().address(), whole.select(1, 1).bytes().address());
    EXPECT_THROW(TensorView(DType::Q4_0, Shape{10}, held[0].view()), RequestError);
}

// Any chain of operations addresses the elements that an index by hand does.
TEST_F(TensorViews, ChainsAddressTheRightElements) {
    std::mt19937 random(3);
    for (int round = 0; round < 300; ++round) {
        TensorView view = make(DType::F32, {2 + random() % 4, 2 + random() % 4, 2 + random() % 4, 2 + random() % 4});
        auto* const values = reinterpret_cast<float*>(held.back().view().host());
        std::vector<float> expected;  // of the view, in its order
        for (uint64_t i = 0; i < view.elements(); ++i) expected.push_back(values[i] = static_cast<float>(i));
        for (int step = 0; step < 4 && view.dimensions() > 1; ++step) {
            const size_t d = random() % view.dimensions();
            const Shape before = shape_of(view);
            const uint64_t begin = random() % before[d], end = begin + 1 + random() % (before[d] - begin);
            const size_t other = random() % view.dimensions();
            const uint32_t kind = random() % 3;
            view = kind == 0 ? view.slice(d, begin, end) : kind == 1 ? view.select(d, begin) : view.transpose(d, other);
            std::vector<float> kept;
            for (uint64_t i = 0; i < expected.size(); ++i) {
                Shape at(before.size());
                uint64_t rest = i;
                for (size_t k = before.size(); k-- > 0; rest /= before[k]) at[k] = rest % before[k];
                if (kind == 0 && (at[d] < begin || at[d] >= end)) continue;
                if (kind == 1 && at[d] != begin) continue;
                kept.push_back(expected[i]);
            }
            if (kind == 2) {
                Shape now = shape_of(view);
                for (uint64_t i = 0; i < kept.size(); ++i) {
                    Shape at(now.size());
                    uint64_t rest = i, from = 0;
                    for (size_t k = now.size(); k-- > 0; rest /= now[k]) at[k] = rest % now[k];
                    std::swap(at[d], at[other]);
                    for (size_t k = 0; k < before.size(); ++k) from = from * before[k] + at[k];
                    kept[i] = expected[from];
                }
            }
            expected = kept;
        }
        ASSERT_EQ(view.elements(), expected.size());
        for (uint64_t i = 0; i < expected.size(); ++i) {
            uint64_t rest = i, at = view.offset();
            for (size_t k = view.dimensions(); k-- > 0; rest /= view.shape()[k]) {
                at += rest % view.shape()[k] * view.strides()[k];
            }
            ASSERT_EQ(values[at], expected[i]);
        }
        held.clear();
    }
}

}  // namespace
}  // namespace metallic
