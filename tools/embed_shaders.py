"""Writes shaders as C++: the sources of each op family, or a compiled metallib, as arrays of bytes.

A running program's shader compiler sees no files, so quoted includes are put in place, each once.

    embed_shaders.py sources SHADERS OUTPUT.cpp [--folder FOLDER]     also as files, for an offline compiler
    embed_shaders.py metallib FILE OUTPUT.cpp
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"/]+)"')


def inlined(path: Path, seen: set[Path]) -> str:
    """The text of a file with its quoted includes in place."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = INCLUDE.match(line)
        if match:
            header = path.parent / match[1]
            if header not in seen:
                seen.add(header)
                lines.append(inlined(header, seen))
        elif line.strip() != "#pragma once":
            lines.append(line)
    return "\n".join(lines) + "\n"


def byte_array(name: str, data: bytes) -> str:
    """A constant array of bytes."""
    rows = [",".join(str(byte) for byte in data[at : at + 32]) for at in range(0, len(data), 32)]
    return f"const unsigned char {name}[] = {{\n" + ",\n".join(rows) + "\n};\n"


def write_if_changed(path: Path, text: str) -> None:
    """Leaves the file and its time alone where nothing changed."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def embed_sources(shaders: Path, output: Path, folder: Path | None) -> None:
    """One array a family, and the look-up that shader_source.h declares."""
    families = {path.stem: inlined(path, set()) for path in sorted(shaders.glob("*.metal"))}
    arrays = "".join(byte_array(f"k_{name}", text.encode()) for name, text in families.items())
    cases = "".join(
        f'    if (family == "{name}") return {{reinterpret_cast<const char*>(k_{name}), sizeof(k_{name})}};\n'
        for name in families
    )
    output.write_text(
        '#include "backend/metal/shader_source.h"\n\nnamespace metallic::metal {\nnamespace {\n\n'
        f"{arrays}\n}}  // namespace\n\n"
        f"std::string_view shader_source(std::string_view family) noexcept {{\n{cases}    return {{}};\n}}\n\n"
        "}  // namespace metallic::metal\n",
        encoding="utf-8",
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in families.items():
            write_if_changed(folder / f"{name}.metal", text)


def embed_metallib(library: Path | None, output: Path) -> None:
    """The compiled library; empty where there is none."""
    data = library.read_bytes() if library else b""
    array = byte_array("k_metallib", data) if data else ""
    value = "std::as_bytes(std::span(k_metallib))" if data else "{}"
    output.write_text(
        '#include "backend/metal/shader_source.h"\n\nnamespace metallic::metal {\nnamespace {\n\n'
        f"{array}\n}}  // namespace\n\n"
        f"std::span<const std::byte> embedded_metallib() noexcept {{\n    return {value};\n}}\n\n"
        "}  // namespace metallic::metal\n",
        encoding="utf-8",
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sources = commands.add_parser("sources")
    sources.add_argument("shaders", type=Path)
    sources.add_argument("output", type=Path)
    sources.add_argument("--folder", type=Path)
    metallib = commands.add_parser("metallib")
    metallib.add_argument("--library", type=Path)
    metallib.add_argument("output", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "sources":
        embed_sources(arguments.shaders, arguments.output, arguments.folder)
    else:
        embed_metallib(arguments.library, arguments.output)


if __name__ == "__main__":
    main()
