find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module
    OPTIONAL_COMPONENTS Development.SABIModule)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
    OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT)
find_package(nanobind CONFIG REQUIRED)

file(GLOB METALLIC_BINDINGS CONFIGURE_DEPENDS cpp/bindings/*.cpp)
set(METALLIC_STRIP "")
if(METALLIC_SANITIZE)
    set(METALLIC_STRIP NOSTRIP)  # reports and suppressions name functions
endif()
nanobind_add_module(_native STABLE_ABI NB_STATIC ${METALLIC_STRIP} ${METALLIC_BINDINGS})
target_link_libraries(_native PRIVATE metallic_core)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(_native PRIVATE
        "-Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map" -Wl,--gc-sections)
    set_target_properties(_native PROPERTIES LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map)
endif()
install(TARGETS _native LIBRARY DESTINATION metallic_native)

# With the simulated device: a package beside the installed one, for PYTHONPATH.
if(METALLIC_METALSIM)
    set(METALLIC_SITE ${CMAKE_BINARY_DIR}/site/metallic_native)
    file(MAKE_DIRECTORY ${METALLIC_SITE})
    file(GLOB METALLIC_PACKAGE CONFIGURE_DEPENDS python/metallic_native/[a-z_]*)
    foreach(entry ${METALLIC_PACKAGE})
        get_filename_component(name ${entry} NAME)
        if(NOT name MATCHES "^(__pycache__|_native)")
            file(CREATE_LINK ${entry} ${METALLIC_SITE}/${name} SYMBOLIC)
        endif()
    endforeach()
    set_target_properties(_native PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${METALLIC_SITE})
    return()
endif()

if(NOT METALLIC_SANITIZE)
    nanobind_add_stub(_native_stub MODULE _native OUTPUT _native.pyi PYTHON_PATH $<TARGET_FILE_DIR:_native>
        DEPENDS _native)
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/_native.pyi DESTINATION metallic_native)
endif()
