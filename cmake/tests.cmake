find_package(GTest REQUIRED)
include(GoogleTest)

file(GLOB METALLIC_TEST_SOURCES CONFIGURE_DEPENDS tests/cpp/*_test.cpp)
if(METALLIC_METAL)
    file(GLOB METALLIC_METAL_TESTS CONFIGURE_DEPENDS tests/cpp/metal_*_test.mm)
    list(APPEND METALLIC_TEST_SOURCES ${METALLIC_METAL_TESTS})
else()
    list(FILTER METALLIC_TEST_SOURCES EXCLUDE REGEX "/metal_[a-z_]*_test\\.cpp$")
endif()
foreach(source ${METALLIC_TEST_SOURCES})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE metallic_core GTest::gtest_main)
    target_include_directories(${name} PRIVATE tests/cpp)
    gtest_discover_tests(${name} TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
endforeach()

# What holds on every device, once more on Metal; METALLIC_TEST_DEVICE names the device.
if(METALLIC_METAL)
    foreach(name backend_test steps_test attention_steps_test)
        add_test(NAME metal.${name} COMMAND ${name})
        set_tests_properties(metal.${name} PROPERTIES ENVIRONMENT METALLIC_TEST_DEVICE=metal TIMEOUT 1200)
    endforeach()
endif()

# With Clang, -fsanitize=fuzzer and gguf_fuzz.cpp alone make a libFuzzer binary; this driver needs no such runtime.
add_executable(gguf_fuzz tests/fuzz/gguf_fuzz.cpp tests/fuzz/gguf_fuzz_driver.cpp tests/fuzz/gguf_seeds.cpp
    tests/fuzz/allocation_meter.cpp)
target_link_libraries(gguf_fuzz PRIVATE metallic_core)
add_test(NAME gguf_fuzz COMMAND gguf_fuzz --count 5000 --seed 1)
set_tests_properties(gguf_fuzz PROPERTIES TIMEOUT 600)
