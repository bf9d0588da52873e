#include <gtest/gtest.h>

#include "core/error.h"
#include "metal_checks.h"
#include "reference_check.h"

// The precision of matrix products on the Metal backend.
namespace metallic::testing {
namespace {

TestModel one_product(DType dtype) {
    TestModel model;
    LinearStep step{};
    step.in = model.input(256);
    step.parts[0] = {model.whole(model.weight(dtype, 256, 70)), kNone, model.value(70)};
    model.step(step);
    model.finish(step.parts[0].out);
    return model;
}

std::vector<float> run(const TestModel& model, Precision precision, const BatchSpec& batch) {
    Session::Options options;
    options.device = "metal";
    options.precision = precision;
    return Session(model, options).forward(batch.runs, batch.outputs);
}

std::string refusal(Precision precision) {
    try {
        run(one_product(DType::F32), precision, one_run(1));
    } catch (const RequestError& error) {
        return error.what();
    }
    return "";
}

// Both operands are rounded, to 2^-11 or 2^-8 of their size; of 256 products with such errors in turn, most cancel.
TEST(MetalPrecision, TilesRoundWhatWasAskedFor) {
    const DeviceInfo device = create_backend({"metal", 0})->device();
    if (!device.matrix_units || !device.half_arithmetic || !device.bfloat16_arithmetic) {
        GTEST_SKIP() << device.name << " has no tiles of float16 and bfloat16";
    }
    const Checks unchecked(false);
    for (const DType dtype : {DType::F32, DType::Q8_0, DType::Q4_K}) {
        const TestModel model = one_product(dtype);
        const BatchSpec few = one_run(1), many = one_run(48);
        const std::vector<double> wanted = ReferenceForward(model).forward(many.runs, many.outputs);
        const std::vector<float> exact = run(model, Precision::float32, many);
        EXPECT_LT(relative_error(exact, wanted), 1e-5);
        EXPECT_TRUE(same_bits(run(model, Precision::automatic, many), exact));
        const std::pair<Precision, double> coarser[] = {{Precision::float16, 0x1p-11}, {Precision::bfloat16, 0x1p-8}};
        for (const auto& [precision, unit] : coarser) {
            const double error = relative_error(run(model, precision, many), wanted);
            EXPECT_GT(error, unit / 4) << precision_name(precision);
            EXPECT_LT(error, unit * 8) << precision_name(precision);
            EXPECT_TRUE(same_bits(run(model, precision, few), run(model, Precision::float32, few)));
        }
    }
}

TEST(MetalPrecision, RefusesInt8) {
    const std::string text = refusal(Precision::int8);
    EXPECT_NE(text.find("metal has no matrix products in int8; it has float32"), std::string::npos) << text;
}

#if __has_include("metalsim/control.h")
TEST(MetalPrecision, RefusesWhatTheDeviceHasNoArithmeticFor) {
    struct Restore {
        ~Restore() { metalsim::set_device({}); }
    } restore;
    metalsim::DeviceModel older;
    older.macos_major = 13;  // whose shading language has no bfloat
    metalsim::set_device(older);
    EXPECT_EQ(refusal(Precision::bfloat16),
              "the device metal has no matrix products in bfloat16; it has float32, float16");
    EXPECT_EQ(refusal(Precision::float16), "");
    older.apple_family = 0;
    metalsim::set_device(older);
    EXPECT_EQ(refusal(Precision::float16), "the device metal has no matrix products in float16; it has float32");
    EXPECT_EQ(refusal(Precision::float32), "");
}
#endif

}  // namespace
}  // namespace metallic::testing
