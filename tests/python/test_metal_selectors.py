"""Our Metal and Foundation headers, and what the Metal backend uses of them, against Apple's.

Apple publishes Metal's interface for C++ (metal-cpp, Apache-2.0), in which every method is a selector sent with typed
arguments; the mlx-metal wheel carries a copy. What our headers declare must be there, with the same types and values.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metal_headers import Declarations, MetalCpp, ObjectiveC, Signature, messages

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "tests" / "metalsim" / "include"
BACKEND = ROOT / "cpp" / "backend" / "metal"
WHEEL = ["mlx-metal", "--platform", "macosx_14_0_arm64", "--no-deps", "--only-binary=:all:"]

# What Apple has in Objective-C and not in C++, by class and selector, and why. Documented at
# https://developer.apple.com/documentation/objectivec (nsobject-swift.class, nsobjectprotocol) and .../foundation
# (nsstring, nsdata, nscopying). An entry that metal-cpp comes to have, or that we no longer declare, fails.
EXCEPTIONS = {
    ("NSObject", "alloc"): "a function that takes the class in metal-cpp",
    ("NSObject", "new"): "C++ has alloc and init",
    ("NSObject", "dealloc"): "not sent by hand",
    ("NSObject", "class"): "classes are no objects in C++",
    ("NSObject", "self"): "is `this` in C++",
    ("NSObject", "isKindOfClass:"): "classes are no objects in C++",
    ("NSObject", "conformsToProtocol:"): "protocols are no objects in C++",
    ("NSObject", "respondsToSelector:"): "a function that takes the object in metal-cpp",
    ("NSCopying", "copyWithZone:"): "sent by copy",
    ("NSData", "bytes"): "metal-cpp has mutableBytes alone",
    ("NSData", "dataWithBytes:length:"): "metal-cpp makes no data",
    ("NSData", "initWithBytes:length:"): "metal-cpp makes no data",
    ("NSString", "initWithBytes:length:encoding:"): "metal-cpp has the variant that does not copy",
    ("NSString", "initWithFormat:"): "variadic",
    ("NSString", "initWithFormat:arguments:"): "variadic",
    ("NSString", "stringWithFormat:"): "variadic",
    ("NSString", "initWithUTF8String:"): "metal-cpp has initWithCString:encoding:",
    ("NSString", "stringWithUTF8String:"): "metal-cpp has stringWithCString:encoding:",
}
# https://developer.apple.com/documentation/metal/mtlcommandbuffererrordomain, .../mtllibraryerrordomain,
# https://developer.apple.com/documentation/foundation/nslog.
SYMBOL_EXCEPTIONS = {
    "MTLCommandBufferErrorDomain": "not in metal-cpp",
    "MTLLibraryErrorDomain": "not in metal-cpp",
    "NSLog": "variadic",
}
HELPERS = {"MTLSizeMake", "MTLOriginMake"}  # inline functions of Apple's Objective-C headers: MTLTypes.h


@pytest.fixture(scope="session")
def apple(tmp_path_factory: pytest.TempPathFactory) -> Declarations:
    folder = tmp_path_factory.mktemp("mlx-metal")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        *WHEEL,
        "-d",
        str(folder),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index did not answer: Apple's headers are not compared")
    wheels = list(folder.glob("mlx_metal-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
        pytest.skip(f"the mlx-metal wheel cannot be downloaded ({reason[0]}): Apple's headers are not compared")
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if "/metal_cpp/" in name and name.endswith(".hpp")]
        wheel.extractall(folder, names)
    headers = next(folder.rglob("metal_cpp"))
    return MetalCpp(headers).found


@pytest.fixture(scope="session")
def ours() -> Declarations:
    files = sorted(INCLUDE.glob("Foundation/*.h")) + sorted(INCLUDE.glob("Metal/*.h"))
    return ObjectiveC(files).found


def method_problems(ours: Declarations, apple: Declarations) -> list[str]:
    problems = []
    for (owner, selector), signatures in sorted(ours.methods.items()):
        theirs = apple.find(owner, selector)
        excepted = (owner, selector) in EXCEPTIONS
        if not theirs:
            if not excepted:
                problems.append(f"{owner} has no {selector}")
        elif excepted:
            problems.append(f"{owner} has {selector}: an exception that is none")
        elif not signatures <= theirs:
            problems.append(f"{owner} {selector} is {sorted(theirs, key=str)}, not {sorted(signatures, key=str)}")
    return problems


def constant_problems(ours: Declarations, apple: Declarations) -> list[str]:
    problems = [
        f"{name} is {apple.constants.get(name)}, not {value}"
        for name, value in sorted(ours.constants.items())
        if apple.constants.get(name) != value
    ]
    problems += [
        f"{name} is of {apple.enums.get(name)}, not {kind}"
        for name, kind in sorted(ours.enums.items())
        if apple.enums.get(name) != kind
    ]
    return problems + [
        f"{name} holds {apple.structs.get(name)}, not {fields}"
        for name, fields in sorted(ours.structs.items())
        if apple.structs.get(name) != fields
    ]


def test_methods(ours: Declarations, apple: Declarations, record_property: Callable[[str, object], None]) -> None:
    assert len(ours.methods) > 400 and len(apple.methods) > 1500, "headers were not read"
    assert method_problems(ours, apple) == []
    assert sorted(set(EXCEPTIONS) - set(ours.methods)) == []
    record_property("methods compared", len(ours.methods) - len(EXCEPTIONS))


def test_constants_and_structs(
    ours: Declarations, apple: Declarations, record_property: Callable[[str, object], None]
) -> None:
    assert len(ours.constants) > 200 and len(ours.structs) > 5, "headers were not read"
    assert constant_problems(ours, apple) == []
    record_property("constants compared", len(ours.constants))


def test_symbols(ours: Declarations, apple: Declarations) -> None:
    missing = ours.symbols - apple.symbols
    assert missing == set(SYMBOL_EXCEPTIONS), "extern constants and functions"


def test_backend(ours: Declarations, apple: Declarations, record_property: Callable[[str, object], None]) -> None:
    """The backend sends no selector, and names nothing, that is not Apple's."""
    files = sorted(path for path in BACKEND.rglob("*") if path.suffix in (".h", ".mm"))
    if not files:
        pytest.skip("there is no Metal backend in this tree")
    selectors = apple.selectors | {selector for _, selector in EXCEPTIONS}
    names = set(apple.constants) | set(apple.enums) | set(apple.structs) | set(apple.bases) | apple.symbols
    names |= {owner for owner, _ in apple.methods} | set(SYMBOL_EXCEPTIONS) | HELPERS
    names |= apple.blocks
    sent, problems = set(), []
    for path in files:
        text = path.read_text()
        for selector in messages(text):
            sent.add(selector)
            if selector not in selectors:
                problems.append(f"{path.name}: no selector {selector}")
        for name in set(re.findall(r"\bMTL_?[A-Z]\w+", re.sub(r"//[^\n]*", "", text))):
            if name not in names:
                problems.append(f"{path.name}: no {name}")
    assert problems == []
    record_property("selectors of the backend", len(sent))


# --- the comparison itself ------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str) -> Declarations:
    path = tmp_path / "header.h"
    path.write_text(text)
    return ObjectiveC([path]).found


APPLE = Declarations(
    methods={
        ("MTLBuffer", "addDebugMarker:range:"): {Signature("void", ("NSString*", "NSRange"))},
        ("MTLBuffer", "length"): {Signature("NSUInteger", ())},
        ("MTLResource", "setLabel:"): {Signature("void", ("NSString*",))},
        ("MTLResource", "label"): {Signature("NSString*", ())},
    },
    bases={"MTLBuffer": ["MTLResource"]},
    constants={"MTLStorageModeShared": 0, "MTLStorageModePrivate": 2},
    enums={"MTLStorageMode": "NSUInteger"},
)
GOOD = """
typedef NS_ENUM(NSUInteger, MTLStorageMode) { MTLStorageModeShared = 0, MTLStorageModePrivate = 1 << 1 };
@protocol MTLBuffer <MTLResource>
@property(readonly) NSUInteger length;
@property(nullable, copy) NSString* label;
- (void)addDebugMarker:(NSString*)marker range:(NSRange)range;
@end
"""


def test_a_faithful_header_passes(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert method_problems(found, APPLE) == [] and constant_problems(found, APPLE) == []
    assert len(found.methods) == 4 and len(found.constants) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("addDebugMarker:(NSString*)marker range:", "addDebugMarker:(NSString*)marker inRange:"),
        ("(NSRange)range", "(NSUInteger)range"),
        ("- (void)addDebugMarker", "+ (void)addDebugMarker"),
        ("- (void)addDebugMarker", "- (BOOL)addDebugMarker"),
        ("NSUInteger length", "uint32_t length"),
        ("NSUInteger length", "NSUInteger size"),
        ("(readonly) NSUInteger", "(readwrite) NSUInteger"),
        ("1 << 1", "1 << 2"),
        ("MTLStorageModePrivate", "MTLStorageModeExclusive"),
        ("NS_ENUM(NSUInteger", "NS_ENUM(NSInteger"),
    ],
)
def test_a_difference_is_found(tmp_path: Path, old: str, new: str) -> None:
    assert old in GOOD
    found = read(tmp_path, GOOD.replace(old, new))
    assert len(method_problems(found, APPLE) + constant_problems(found, APPLE)) >= 1


def test_messages_are_found() -> None:
    source = """
    [encoder setBuffer:b.buffer offset:b.offset + table[i] atIndex:index];  // [not this:one]
    auto made = Ref<id<MTLHeap>>::adopt([[device newHeapWithDescriptor:d.get()] retain]);
    const auto call = [&, this](int a) { return a; };
    for (const auto& [name, value] : map) [x foo:(a ? b : c) bar:^(id<MTLBuffer> y) { [y length]; }];
    """
    expected = {"setBuffer:offset:atIndex:", "newHeapWithDescriptor:", "retain", "foo:bar:", "length"}
    assert messages(source) == expected
