# The rooms of the core, one static library. See docs/architecture.md for what may include what.
file(GLOB METALLIC_SOURCES CONFIGURE_DEPENDS
    cpp/core/*.cpp cpp/trace/*.cpp cpp/gguf/*.cpp cpp/sampling/*.cpp cpp/program/*.cpp cpp/memory/*.cpp cpp/kv/*.cpp
    cpp/runtime/*.cpp cpp/backend/*.cpp cpp/backend/cpu/*.cpp cpp/backend/cpu/ops/*.cpp cpp/backend/cpu/isa/*.cpp)
file(GLOB METALLIC_AVX2 CONFIGURE_DEPENDS cpp/backend/cpu/isa/*_avx2.cpp)
file(GLOB METALLIC_AVX512 CONFIGURE_DEPENDS cpp/backend/cpu/isa/*_avx512.cpp)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(METALLIC_AVX2_FLAGS -mavx2 -mfma -mf16c -mbmi2)
    set_source_files_properties(${METALLIC_AVX2} PROPERTIES COMPILE_OPTIONS "${METALLIC_AVX2_FLAGS}")
    set_source_files_properties(${METALLIC_AVX512} PROPERTIES COMPILE_OPTIONS
        "${METALLIC_AVX2_FLAGS};-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni")
    set(METALLIC_X86 ON)
else()
    list(REMOVE_ITEM METALLIC_SOURCES ${METALLIC_AVX2} ${METALLIC_AVX512})
endif()

# The pool reads back at once what it has just stored, field by field. Fields that the compiler joined into a vector
# would have to wait for the stores: a tenth of an allocation's time.
file(GLOB METALLIC_POOL CONFIGURE_DEPENDS cpp/memory/*.cpp)
set_source_files_properties(${METALLIC_POOL} PROPERTIES COMPILE_OPTIONS -fno-tree-slp-vectorize)

add_library(metallic_core STATIC ${METALLIC_SOURCES})
target_include_directories(metallic_core PUBLIC cpp)
target_link_libraries(metallic_core PUBLIC Threads::Threads)
target_compile_options(metallic_core PRIVATE -Wshadow)
if(METALLIC_X86)
    target_compile_definitions(metallic_core PUBLIC METALLIC_X86_KERNELS=1)
endif()
