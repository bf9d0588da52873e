# The Metal backend: with Apple's frameworks where they are, or, for tests on other systems, on metalsim.
if(APPLE)
    set(METALLIC_METAL ON)
elseif(METALLIC_METALSIM)
    set(METALLIC_METAL ON)
    find_program(METALLIC_CLANG NAMES clang++-19 clang++-20 clang++-18 clang++ REQUIRED)
    set(CMAKE_OBJCXX_COMPILER ${METALLIC_CLANG} CACHE FILEPATH "The Objective-C++ compiler")
endif()
if(NOT METALLIC_METAL)
    return()
endif()

enable_language(OBJCXX)
set(CMAKE_OBJCXX_STANDARD 20)
set(CMAKE_OBJCXX_STANDARD_REQUIRED ON)
set(CMAKE_OBJCXX_EXTENSIONS OFF)
set(CMAKE_OBJCXX_VISIBILITY_PRESET hidden)
set(CMAKE_OBJCXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")
add_compile_options($<$<COMPILE_LANGUAGE:OBJCXX>:-fno-objc-arc>)

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
set(METALLIC_SHADER_FOLDER ${CMAKE_CURRENT_BINARY_DIR}/shaders)
set(METALLIC_EMBED ${CMAKE_CURRENT_SOURCE_DIR}/tools/embed_shaders.py)
file(GLOB METALLIC_SHADERS CONFIGURE_DEPENDS shaders/*.metal)
file(GLOB METALLIC_SHADER_HEADERS CONFIGURE_DEPENDS shaders/*.h)
add_custom_command(OUTPUT embedded_sources.cpp
    COMMAND ${Python_EXECUTABLE} ${METALLIC_EMBED} sources ${CMAKE_CURRENT_SOURCE_DIR}/shaders embedded_sources.cpp
        --folder ${METALLIC_SHADER_FOLDER}
    DEPENDS ${METALLIC_EMBED} ${METALLIC_SHADERS} ${METALLIC_SHADER_HEADERS})

# With Apple's offline compiler the kernels are compiled here; else, and on systems before macOS 14, the package compiles
# them on first use.
set(METALLIC_METALLIB "")
if(APPLE)
    execute_process(COMMAND xcrun -sdk macosx --find metal RESULT_VARIABLE METALLIC_NO_METAL OUTPUT_QUIET ERROR_QUIET)
    if(METALLIC_NO_METAL EQUAL 0)
        set(METALLIC_METALLIB ${CMAKE_CURRENT_BINARY_DIR}/metallic.metallib)
        set(METALLIC_AIR "")
        foreach(shader ${METALLIC_SHADERS})
            get_filename_component(family ${shader} NAME_WE)
            add_custom_command(OUTPUT ${family}.air
                COMMAND xcrun -sdk macosx metal -std=metal3.1 -fno-fast-math -O2 -c ${METALLIC_SHADER_FOLDER}/${family}.metal
                    -o ${family}.air
                DEPENDS embedded_sources.cpp)
            list(APPEND METALLIC_AIR ${family}.air)
        endforeach()
        add_custom_command(OUTPUT ${METALLIC_METALLIB}
            COMMAND xcrun -sdk macosx metallib ${METALLIC_AIR} -o ${METALLIC_METALLIB} DEPENDS ${METALLIC_AIR})
    endif()
endif()
add_custom_command(OUTPUT embedded_metallib.cpp
    COMMAND ${Python_EXECUTABLE} ${METALLIC_EMBED} metallib
        "$<$<BOOL:${METALLIC_METALLIB}>:--library;${METALLIC_METALLIB}>" embedded_metallib.cpp
    DEPENDS ${METALLIC_EMBED} ${METALLIC_METALLIB} COMMAND_EXPAND_LISTS)

file(GLOB METALLIC_METAL_SOURCES CONFIGURE_DEPENDS cpp/backend/metal/*.mm cpp/backend/metal/ops/*.mm)
target_sources(metallic_core PRIVATE ${METALLIC_METAL_SOURCES}
    ${CMAKE_CURRENT_BINARY_DIR}/embedded_sources.cpp ${CMAKE_CURRENT_BINARY_DIR}/embedded_metallib.cpp)
target_include_directories(metallic_core PUBLIC shaders)
target_compile_definitions(metallic_core PRIVATE METALLIC_METAL=1)
if(APPLE)
    # Without Core Graphics a command-line program has no default device (Apple: MTLCreateSystemDefaultDevice).
    target_link_libraries(metallic_core PUBLIC "-framework Metal" "-framework Foundation" "-framework CoreGraphics")
else()
    add_subdirectory(tests/metalsim)
    target_link_libraries(metallic_core PUBLIC metalsim)
endif()
