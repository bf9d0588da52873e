find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module
    OPTIONAL_COMPONENTS Development.SABIModule)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
    OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT)
find_package(nanobind CONFIG REQUIRED)

file(GLOB METALLIC_BINDINGS CONFIGURE_DEPENDS cpp/bindings/*.cpp)
nanobind_add_module(_native STABLE_ABI NB_STATIC ${METALLIC_BINDINGS})
target_link_libraries(_native PRIVATE metallic_core)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(_native PRIVATE
        "-Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map" -Wl,--gc-sections)
    set_target_properties(_native PROPERTIES LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map)
endif()
install(TARGETS _native LIBRARY DESTINATION metallic_native)

if(NOT METALLIC_SANITIZE)
    nanobind_add_stub(_native_stub MODULE _native OUTPUT _native.pyi PYTHON_PATH $<TARGET_FILE_DIR:_native>
        DEPENDS _native)
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/_native.pyi DESTINATION metallic_native)
endif()
