"""What headers declare: Apple's metal-cpp (C++), and our Objective-C ones. Both come out in the same form.

Types are spelled as in Objective-C without qualifiers: `id<MTLBuffer>` and `const MTL::Buffer*` are both `MTLBuffer*`,
blocks are `block`, `BOOL` is `bool`, arrays are pointers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Signature:
    returns: str
    arguments: tuple[str, ...]
    of_class: bool = False


@dataclass
class Declarations:
    """Methods by class and selector (one that several C++ overloads share has several signatures)."""

    methods: dict[tuple[str, str], set[Signature]] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    enums: dict[str, str] = field(default_factory=dict)  # name to underlying type
    structs: dict[str, tuple[str, ...]] = field(default_factory=dict)  # types of the fields
    symbols: set[str] = field(default_factory=set)  # extern constants and functions
    selectors: set[str] = field(default_factory=set)
    blocks: set[str] = field(default_factory=set)  # names of types of blocks

    def add(self, owner: str, selector: str, signature: Signature) -> None:
        self.methods.setdefault((owner, selector), set()).add(signature)
        self.selectors.add(selector)

    def find(self, owner: str, selector: str) -> set[Signature]:
        """The signatures of a method of a class or of what it inherits from."""
        found = self.methods.get((owner, selector), set())
        for base in self.bases.get(owner, []):
            inherited = self.find(base, selector)
            if selector in ("init", "copy", "retain", "autorelease"):  # these return what they are sent to
                inherited = {Signature(f"{owner}*", at.arguments, at.of_class) for at in inherited}
            found = found | inherited
        return found


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)


def split_arguments(text: str) -> list[str]:
    """The parts between commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += c in "(<[{"
        depth -= c in ")>]}"
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    rest = text[start:].strip()
    return [part.strip() for part in parts] + ([rest] if rest else [])


def evaluate(expression: str, known: dict[str, int]) -> int:
    """The value of an enumerator's expression: literals, names of enumerators, casts, shifts, sums."""
    expression = re.sub(r"\(\s*(NSUInteger|NSInteger)\s*\)", "", expression)
    expression = re.sub(r"(?<=[0-9a-fA-F])(?:[uU]?[lL]{1,2}|[uU])\b", "", expression)
    expression = re.sub(r"\bNS::UIntegerMax\b|\bNSUIntegerMax\b", str(2**64 - 1), expression)
    expression = re.sub(r"\bNS::IntegerMax\b|\bNSIntegerMax\b", str(2**63 - 1), expression)
    expression = re.sub(r"0x[0-9a-fA-F]+", lambda number: str(int(number.group(), 16)), expression)
    expression = re.sub(r"[A-Za-z_]\w*", lambda name: str(known[name.group()]), expression)
    if not re.fullmatch(r"[-+~|&<>()\s\d]+", expression):
        raise ValueError(f"cannot evaluate {expression!r}")
    return int(eval(expression, {"__builtins__": {}}))


def enumerators(body: str, prefix: str, known: dict[str, int]) -> dict[str, int]:
    """The enumerators of an enum's body; names in expressions may be without the prefix."""
    out: dict[str, int] = {}
    value = -1
    for part in body.split(","):
        match = re.match(r"(\w+)\s*(?:=\s*(.+))?$", part.strip(), re.S)
        if match is None:
            continue
        name, expression = match.groups()
        local = {**known, **{key.removeprefix(prefix): number for key, number in {**known, **out}.items()}, **out}
        value = evaluate(expression, local) if expression else value + 1
        out[prefix + name] = value
    return out


# --- metal-cpp ------------------------------------------------------------------------------------------------------


_WORDS = {"unsigned", "signed", "long", "short", "int", "char"}
_CPP_NAMES = {
    "_Class": "NSObject",
    "_Object": "NSObject",
    "Object": "NSObject",
    "BOOL": "bool",
    "Integer": "NSInteger",
    "UInteger": "NSUInteger",
    "NSunichar": "unichar",
}


def plain_type(text: str) -> str:
    """A type without a parameter's name, qualifiers, namespaces and template arguments; arrays are pointers."""
    stars = text.count("*") + len(re.findall(r"\[\s*\]", text))
    words = re.sub(r"[*]|\[\s*\]", " ", text).split()
    if len(words) > 1 and words[-1] not in _WORDS:
        words.pop()
    if not words or not all(re.fullmatch(r"\w+", word) for word in words):
        raise ValueError(f"cannot read the type {text!r}")
    return " ".join(words) + "*" * stars


def cpp_type(text: str) -> str:
    """Our spelling of a C++ type, with or without a parameter's name."""
    if "^" in text or "std::function" in text:
        return "block"
    text = re.sub(r"\b(const|class|struct)\b", " ", text)
    text = re.sub(r"\b(MTL4?|NS)::", r"\1", text)
    text = plain_type(re.sub(r"<[^<>]*>", "", re.sub(r"\bstd::", "", text)))
    name = text.rstrip("*")
    return _CPP_NAMES.get(name, name) + text[len(name) :]


class MetalCpp:
    """Reads metal-cpp's headers: the tables of selectors, and the inline bodies that send them."""

    def __init__(self, folder: Path) -> None:
        self.found = Declarations()
        self.found.bases["NSObject"] = ["NSReferencing", "NSCopying"]
        self._locals: dict[str, set[str]] = {"NS": set(), "MTL": set()}
        texts = []
        for prefix, part in (("NS", "Foundation"), ("MTL", "Metal")):
            for path in sorted((folder / part).glob("*.hpp")):
                texts.append((prefix, without_comments(path.read_text())))
        self.accessors: dict[tuple[str, str], str] = {}
        for prefix, text in texts:
            for accessor, selector in re.findall(r'_PRIVATE_DEF_SEL\(\s*(\w+)\s*,\s*"([^"]+)"\s*\)', text):
                self.accessors[prefix, accessor] = selector
                self.found.selectors.add(selector)
            for name in re.findall(r"using\s+(\w+)\s*=\s*void\s*\(\^", text):
                self.found.blocks.add(prefix + name)
        for prefix, text in texts:
            self._types(prefix, text)
        for prefix, text in texts:
            self._methods(prefix, text)

    def _type(self, text: str, prefix: str) -> str:
        spelled = cpp_type(text)
        base = re.match(r"\w+", spelled)
        if base is not None and base.group() in self._locals[prefix]:
            spelled = prefix + spelled
        spelled = {"NSunichar": "unichar"}.get(spelled, spelled)
        return "block" if spelled in self.found.blocks else spelled

    def _types(self, prefix: str, text: str) -> None:
        for name, rest in re.findall(r"\bclass\s+(?:_NS_EXPORT\s+)?(\w+)\s*:\s*public\s+([^{;]+)\{", text):
            self._locals[prefix].add(name)
            if name in ("Object", "Referencing", "Copying", "SecureCoding"):
                continue  # templates around each other
            arguments = re.search(r"<(.*)>", rest)
            parts = split_arguments(arguments.group(1)) if arguments else []
            bases = [cpp_type(part) for part in parts[1:]] or ["NSObject"]
            own = [base if base.startswith(("NS", "MTL")) else prefix + base for base in bases]
            self.found.bases[prefix + name] = [base for base in own if base != prefix + name]
        aliases = re.findall(r"\busing\s+(\w+)\s*=", text)
        self._locals[prefix].update(aliases)
        self.found.symbols.update(prefix + name for name in aliases)
        for kind, name, body in re.findall(r"_ENUM\(\s*([\w:]+)\s*,\s*(\w+)\s*\)\s*\{([^}]*)\}", text):
            self._enum(prefix, kind, name, body)
        for kind, name, body in re.findall(r"_OPTIONS\(\s*([\w:]+)\s*,\s*(\w+)\s*\)\s*\{([^}]*)\}", text):
            self._enum(prefix, kind, name, body)
        for name, body in re.findall(r"\bstruct\s+(\w+)\s*\{(.*?)\}\s*_(?:MTL|NS)_PACKED", text, re.S):
            fields = re.findall(r"^\s*([\w: ]+\s?\**)\s*\b(\w+)(\[\d+\])?;", body, re.M)
            self.found.structs[prefix + name] = tuple(cpp_type(kind) + (extent or "") for kind, _, extent in fields)
            self._locals[prefix].add(name)
        for name in re.findall(r"_CONST\(\s*[\w:]+\s*,\s*(\w+)\s*\)", text):
            self.found.symbols.add(prefix + name)
        self.found.symbols.update(re.findall(r'extern "C"[^;(]*?\b(MTL\w+)\(', text))
        for name, value in re.findall(r"static const NS::UInteger (\w+)\s*=\s*(static_cast<[^;]+);", text):
            literal = re.search(r"\((.+)\)", value)
            assert literal is not None
            self.found.constants[prefix + name] = evaluate(literal.group(1), {}) % 2**64

    def _enum(self, prefix: str, kind: str, name: str, body: str) -> None:
        self._locals[prefix].add(name)
        self.found.enums[prefix + name] = cpp_type(kind)
        self.found.constants.update(enumerators(body, prefix, self.found.constants))

    def _methods(self, prefix: str, text: str) -> None:
        pattern = (
            r"_(?:MTL|NS)_INLINE\s+([^;{}()]*?)\b(MTL|NS)::(\w+)(?:<[^>]*>)?::(\w+)\(((?:[^()]|\([^()]*\))*)\)"
            r"\s*(?:const)?\s*\{(.*?)\n\}"
        )
        for returns, space, owner, _, arguments, body in re.findall(pattern, text, re.S):
            sent = re.search(r"_(MTL|NS)_PRIVATE_SEL\(\s*(\w+)\s*\)", body)
            if sent is None:
                continue
            selector = self.accessors.get((sent.group(1), sent.group(2)))
            if selector is None:
                continue
            returns = re.sub(r"template\s*<[^>]*>", "", returns).replace("_NS_INLINE", "").strip()
            taken = tuple(self._type(part, space) for part in split_arguments(arguments))
            if len(taken) != selector.count(":"):
                continue  # a C++ convenience over the method
            of_class = re.search(r"sendMessage<[^(]*>\(_(?:MTL|NS)_PRIVATE_CLS", body) is not None
            self.found.add(space + owner, selector, Signature(self._type(returns, space), taken, of_class))
        # alloc and init of classes are inherited from templates.
        for name in re.findall(r"_PRIVATE_CLS\(\s*(\w+)\s*\)", text):
            self.found.bases.setdefault(name, ["NSObject"])


# --- Objective-C ----------------------------------------------------------------------------------------------------

_NOISE = re.compile(
    r"\b(API_\w+|NS_SWIFT_NAME)\((?:[^()]|\([^()]*\))*\)"
    r"|\bNS_(?:RETURNS_\w+|DESIGNATED_INITIALIZER|UNAVAILABLE|REQUIRES_\w+)\b"
    r"|\b(?:_Nullable|_Nonnull|nullable|nonnull|oneway|__unsafe_unretained|__covariant)\b"
    r"|__attribute__\(\((?:[^()]|\([^()]*\))*\)\)"
)


def objc_type(text: str, owner: str) -> str:
    """Our spelling of an Objective-C type."""
    if "^" in text:
        return "block"
    text = re.sub(r"\b(const|struct)\b", " ", text)
    text = re.sub(r"\bid\s*<\s*(\w+)\s*>", r"\1*", text)
    while "<" in text:
        text = re.sub(r"<[^<>]*>", "", text)
    text = re.sub(r"\binstancetype\b", owner + "*", text)
    text = re.sub(r"\bid\b|\b(?:ObjectType|KeyType)\b", "NSObject*", text)
    return plain_type(re.sub(r"\bBOOL\b", "bool", text))


class ObjectiveC:
    """Reads our headers."""

    def __init__(self, files: list[Path]) -> None:
        self.found = Declarations()
        texts = [_NOISE.sub(" ", without_comments(path.read_text())) for path in files]
        for text in texts:
            self.found.blocks.update(re.findall(r"typedef\s+void\s*\(\^\s*(\w+)\s*\)", text))
            self._constants(text)
        for text in texts:
            for match in re.finditer(r"@(protocol|interface)\s+(\w+)([^;\n]*)\n(.*?)@end", text, re.S):
                self._type(match.group(2), match.group(3), match.group(4))

    def _constants(self, text: str) -> None:
        macros = dict(re.findall(r"#define (MTL\w+) (.+)", text))
        known = self.found.constants
        for name, value in macros.items():
            for other in macros:
                value = re.sub(rf"\b{other}\b", f"({macros[other]})", value)
            try:
                known[name] = evaluate(value, known) % 2**64
            except (KeyError, ValueError, SyntaxError):
                continue
        macro_names = set(macros) - {"MTLCounterErrorValue", "MTLCounterDontSample"}
        pattern = r"typedef NS_(?:ENUM|OPTIONS)\(\s*(\w+)\s*,\s*(\w+)\s*\)\s*\{([^}]*)\}"
        for kind, name, body in re.findall(pattern, text):
            self.found.enums[name] = kind
            known.update(enumerators(body, "", known))
        for body in re.findall(r"^enum : NSUInteger \{([^}]*)\}", text, re.M):
            known.update(enumerators(body, "", known))
        for name in macro_names:
            known.pop(name, None)
        for body, name in re.findall(r"typedef struct \w*\s*\{([^}]*)\}\s*(\w+);", text):
            fields: list[str] = []
            for kind, names in re.findall(r"^\s*([\w ]+?\s?\**)\s*\b(\w+(?:\[\d+\])?(?:,\s*\w+)*);", body, re.M):
                for one in names.split(","):
                    extent = re.search(r"\[\d+\]", one)
                    fields.append(objc_type(kind, name) + (extent.group() if extent else ""))
            self.found.structs[name] = tuple(fields)
        pattern = r"^(?:MTL_EXTERN|FOUNDATION_EXPORT)\s+[^;()#]*?(\w+)\s*(?:\([^;]*\))?\s*;"
        self.found.symbols.update(re.findall(pattern, text, re.M))

    def _kind(self, text: str, owner: str) -> str:
        spelled = objc_type(text, owner)
        return "block" if spelled in self.found.blocks else spelled

    def _type(self, owner: str, header: str, body: str) -> None:
        header = re.sub(r"^\s*<[^>]*>\s*(?=[:(])", "", header)
        bases = re.match(r"\s*:\s*(\w+)", header)
        adopted = re.search(r"<([^>]*)>", header)
        self.found.bases.setdefault(owner, [])
        if bases is not None:
            self.found.bases[owner].append(bases.group(1))
        if adopted is not None and "(" not in header:
            self.found.bases[owner] += [name.strip() for name in adopted.group(1).split(",")]
        body = re.sub(r"^\s*\{[^}]*\}", "", body)
        for attributes, rest in re.findall(r"@property\s*(?:\(([^)]*)\))?\s*([^;]+);", body):
            self._property(owner, attributes, rest)
        body = re.sub(r"@property[^;]+;", "", body)
        for method in re.findall(r"[-+]\s*\([^;]+;", body):
            self._method(owner, method)

    def _property(self, owner: str, attributes: str, text: str) -> None:
        match = re.match(r"(.*?)(\w+)\s*$", text.strip(), re.S)
        assert match is not None, text
        kind, name = self._kind(match.group(1), owner), match.group(2)
        getter = re.search(r"getter\s*=\s*(\w+)", attributes)
        of_class = re.search(r"\bclass\b", attributes) is not None
        self.found.add(owner, getter.group(1) if getter else name, Signature(kind, (), of_class))
        if "readonly" not in attributes:
            self.found.add(owner, f"set{name[0].upper()}{name[1:]}:", Signature("void", (kind,)))

    def _method(self, owner: str, text: str) -> None:
        at = text.index("(")
        returns, at = self._bracketed(text, at)
        rest = text[at:].rstrip("; \n")
        names, arguments = [], []
        if ":" not in rest:
            self.found.add(owner, rest.strip(), Signature(self._kind(returns, owner), (), text.startswith("+")))
            return
        position = 0
        while (colon := rest.find(":", position)) >= 0:
            label = re.search(r"(\w*)\s*$", rest[position:colon])
            assert label is not None
            names.append(label.group(1) + ":")
            opening = rest.index("(", colon)
            argument, position = self._bracketed(rest, opening)
            arguments.append(self._kind(argument, owner))
            name = re.match(r"\s*\w+", rest[position:])
            position += name.end() if name else 0
        if rest[position:].lstrip().startswith(","):
            arguments.append("...")
        signature = Signature(self._kind(returns, owner), tuple(arguments), text.startswith("+"))
        self.found.add(owner, "".join(names), signature)

    @staticmethod
    def _bracketed(text: str, opening: int) -> tuple[str, int]:
        """What the bracket at `opening` holds, and the place behind it."""
        depth = 0
        for i in range(opening, len(text)):
            depth += {"(": 1, ")": -1}.get(text[i], 0)
            if depth == 0:
                return text[opening + 1 : i], i + 1
        raise ValueError(f"unbalanced: {text!r}")


# --- messages -------------------------------------------------------------------------------------------------------


def messages(source: str) -> set[str]:
    """The selectors of the message expressions in Objective-C++ source."""
    source = re.sub(r'@?"(?:\\.|[^"\\])*"', '""', without_comments(source))
    source = re.sub(r"'(?:\\.|[^'\\])+'", "0", source)
    found: set[str] = set()
    stack: list[int] = []
    for i, c in enumerate(source):
        if c == "[":
            stack.append(i)
        elif c == "]" and stack:
            start = stack.pop()
            before = source[start - 1] if start else " "
            after = source[i + 1 :].lstrip()[:1]
            content = source[start + 1 : i]
            subscript = before.isalnum() or before in "_)]>" or (content.startswith("[") and after == "]")
            capture = (after and after in "{(") or re.match(r"\s*(?:[&=*]|this\b|$)", content)
            if subscript or capture or re.fullmatch(r"\s*\w+(?:\s*,\s*\w+)*\s*", content):
                continue
            selector = _selector(content)
            if selector:
                found.add(selector)
    return found


def _selector(content: str) -> str:
    """The selector of what a message's brackets hold; empty if that is no message."""
    flat, depth = [], 0
    for c in content:
        depth -= c in ")]}"
        flat.append(c if depth == 0 else " ")
        depth += c in "([{"
    text = re.sub(r"\?[^:?]*:", " ", re.sub(r"::", "  ", "".join(flat)))
    text = re.sub(r"<[^<>;]*>", " ", text)
    parts = re.findall(r"(\w+)\s*:", text)
    if parts:
        return "".join(part + ":" for part in parts)
    match = re.search(r"(?:\S)\s+(\w+)\s*$", text)
    return match.group(1) if match and not match.group(1).isdigit() else ""
