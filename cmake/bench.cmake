find_package(benchmark REQUIRED)

file(GLOB METALLIC_BENCH_SOURCES CONFIGURE_DEPENDS bench/*_bench.cpp)
foreach(source ${METALLIC_BENCH_SOURCES})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE metallic_core benchmark::benchmark)
    target_include_directories(${name} PRIVATE tests/cpp)
endforeach()
