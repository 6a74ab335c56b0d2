"""The kernels as nvcc made them, for the host: C++ of their PTX, for the grid of tests/native/cuda.

An instruction becomes one line. Registers are variables; addresses of all spaces are those of the host, but
of shared memory, where they count from the beginning of the block's. What this does not know raises an error.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

TYPES = {
    "pred": "bool",
    "b8": "u8",
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64)},
    **{f"b{bits}": f"u{bits}" for bits in (16, 32, 64)},
    "f32": "float",
    "f64": "double",
}
BYTES = {name: 1 if name == "pred" else int(name[1:]) // 8 for name in TYPES}
FLOATS = {"float", "double"}
SPECIAL = {"%tid.x": "threadIdx.x", "%ctaid.x": "blockIdx.x", "%nctaid.x": "gridDim.x"}
SPACES = {"global", "shared", "param", "local", "const"}
SHARED_MEMORY = 48 << 10  # of a block

# What an instruction computes from its operands a, b, c of its type T: integers or predicates ...
OF_BITS = {
    **{name: f"T(a {sign} b)" for name, sign in zip(("and", "or", "xor"), "&|^", strict=True)},
    **{name: f"T(a {sign} b)" for name, sign in zip(("add", "sub", "div", "rem"), "+-/%", strict=True)},
    "mul.lo": "T(a * b)",
    "mad.lo": "T(a * b + c)",
    "min": "a < b ? a : b",
    "max": "a > b ? a : b",
    "not": "T(~a)",
    "neg": "T(-a)",
    "prmt": "permuted(a, b, c)",
}
# ... or floating-point numbers. What does not say how it is rounded may be contracted, and is not here.
OF_FLOATS = {
    **{f"{name}.rn": f"a {sign} b" for name, sign in zip(("add", "sub", "mul", "div"), "+-*/", strict=True)},
    "rcp.rn": "1 / a",
    "rcp.approx.ftz": "approximate_reciprocal(a)",
    "sqrt.rn": "std::sqrt(a)",
    "fma.rn": "std::fma(a, b, c)",
    "neg": "-a",
    "abs": "std::fabs(a)",
}
HAVE_SIGNS = {"min", "max", "div", "rem"}  # all others make the same bits of signed and unsigned numbers
COMPARED = {
    **{
        name: f"a {sign} b"
        for name, sign in [("eq", "=="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")]
    },
    "ne": "a < b || a > b",  # neither is NaN
    "nan": "std::isnan(a) || std::isnan(b)",
    "neu": "!(a == b)",
    "ltu": "!(a >= b)",
    "leu": "!(a > b)",
    "gtu": "!(a <= b)",
    "geu": "!(a < b)",
}

BEGIN = """\
// Made by tests/ptx.py.
#include "ptx.hpp"

#include "cuda/launch.hpp"

"""


class UnknownError(ValueError):
    """Something in PTX that this does not know."""


@dataclass
class Function:
    """A kernel or a function of PTX."""

    name: str
    is_kernel: bool
    returned: list[str]  # the names of what it returns in, one at most
    parameters: list[tuple[str, int]]  # names and bytes
    body: str

    @property
    def head(self) -> str:
        """Its declaration in C++. Parameters of functions are memory of the caller."""
        if self.is_kernel:
            (_, size) = self.parameters[0]
            return f'extern "C" void {self.name}(Parameter<{size}> parameter)'
        names = [*self.returned, *(name for name, _ in self.parameters)]
        return f"void of_ptx{self.name}({', '.join(f'const u8* {name}' for name in names)})"


def functions(text: str) -> Iterator[Function]:
    """The functions that have a body."""
    number = r"(?:\.align \d+ )?\.(\w+) (\w+)(?:\[(\d+)\])?"
    pattern = re.compile(r"\.(entry|func)\s*(?:\(([^)]*)\)\s*)?(\w+)\s*(?:\(([^)]*)\))?[^{;]*([{;])")
    position = 0
    while head := pattern.search(text, position):
        position = head.end()
        if head[5] == ";":
            continue
        depth = 1
        while depth > 0:
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            position += 1
        sizes = [(m[2], BYTES[m[1]] * int(m[3] or 1)) for m in re.finditer(number, head[4] or "")]
        returned = [m[2] for m in re.finditer(number, head[2] or "")]
        yield Function(head[3], head[1] == "entry", returned, sizes, text[head.end() : position - 1])


def statements(body: str) -> Iterator[str]:
    """What ends in a semicolon, labels with their colon, and the braces of scopes."""
    pattern = re.compile(r"\s*([{}]|[\w$]+:|[^;{}]*(?:\{[^}]*\}[^;{}]*)*;)")
    position = 0
    while match := pattern.match(body, position):
        position = match.end()
        yield " ".join(match[1].rstrip(";").split())
    if body[position:].strip():
        raise UnknownError(body[position:].strip())


class Translation:
    """Of one function."""

    def __init__(self, function: Function, shared: dict[str, int]) -> None:
        self.function = function
        self.shared = shared  # where each variable begins in a block's memory
        self.memory = {name for name, _ in function.parameters} | set(function.returned)
        self.lines: list[str] = []

    def translate(self) -> str:
        function = self.function
        if function.is_kernel:
            self.lines.append(f"const u8* const {function.parameters[0][0]} = parameter.bytes;")
        for statement in statements(function.body):
            try:
                self.lines.append(self.line(statement))
            except KeyError as error:
                raise UnknownError(statement) from error
        body = "\n  ".join(self.lines)
        return f"{function.head} {{\n  {body}\n}}\n"

    def line(self, statement: str) -> str:
        if statement in ("{", "}") or statement.endswith(":"):
            return statement + (";" if statement.endswith(":") else "")
        if statement.startswith("."):
            return self.declaration(statement)
        condition = re.match(r"@(!?)%(\w+) ", statement)
        if condition:
            return f"if ({condition[1]}{condition[2]}) {self.line(statement[condition.end() :])}"
        name, _, rest = statement.partition(" ")
        return self.instruction(name, operands_of(rest)) + ";"

    def declaration(self, statement: str) -> str:
        if match := re.fullmatch(r"\.reg \.(\w+) %(\w+)<\d+>", statement):
            used = sorted(set(re.findall(rf"%({match[2]}\d+)\b", self.function.body)))
            return f"{TYPES[match[1]]} {', '.join(used)};" if used else ""
        if match := re.fullmatch(r"\.reg \.(\w+) %?(\w+)", statement):
            return f"[[maybe_unused]] {TYPES[match[1]]} {match[2]};"
        if match := re.fullmatch(
            r"\.(param|shared)(?: \.align (\d+))? \.(\w+) (\w+)(?:\[(\d+)\])?", statement
        ):
            size, align = BYTES[match[3]] * int(match[5] or 1), int(match[2] or BYTES[match[3]])
            if match[1] == "param":
                self.memory.add(match[4])
                return f"alignas({align}) u8 {match[4]}[{size}];"
            return ""  # place_shared has seen it
        if statement.startswith(".pragma "):  # a hint
            return ""
        raise UnknownError(statement)

    # Operands.

    def value(self, operand: str, kind: str) -> str:
        """An operand as a value of a type."""
        if operand in SPECIAL:
            return f"as<{kind}>(u32({SPECIAL[operand]}))"
        if operand.startswith("%"):
            return f"as<{kind}>({operand[1:]})"
        if match := re.fullmatch(r"0([fd])([0-9A-F]+)", operand):
            bits, of = ("u32", "float") if match[1] == "f" else ("u64", "double")
            return f"as<{kind}>(as<{of}>({bits}(0x{match[2]})))"
        if re.fullmatch(r"-?(\d+|0x[0-9a-fA-F]+)", operand):
            return f"{kind}({operand}{'' if kind == 'bool' else 'LL' if operand[0] == '-' else 'ULL'})"
        return f"as<{kind}>(u64({self.address_of(operand)}))"

    def address_of(self, symbol: str) -> str:
        if symbol in self.shared:
            return str(self.shared[symbol])
        if symbol in self.memory:
            return f"reinterpret_cast<u64>({symbol})"
        raise UnknownError(symbol)

    def address(self, operand: str, space: str) -> str:
        match = re.fullmatch(r"\[([%\w]+)(?:\+(-?\d+))?\]", operand)
        if match is None:
            raise UnknownError(operand)
        base = self.value(match[1], "u32" if re.fullmatch(r"%r\d+", match[1]) else "u64")
        where = f"u64({base}) + u64({match[2] or 0}LL)"
        return f"address_of_shared({where})" if space == "shared" else where

    # Instructions.

    def instruction(self, name: str, operands: list[str]) -> str:
        parts = name.split(".")
        if parts[0] in ("ld", "st"):
            return self.access(parts, operands)
        if parts[0] == "setp":
            kind = TYPES[parts[2]]
            return self.set(operands[0], self.computed(COMPARED[parts[1]], kind, operands[1:]), "bool")
        special = self.mul_wide if parts[:2] == ["mul", "wide"] else getattr(self, f"{parts[0]}_", None)
        if special is not None:
            return str(special(parts, operands))
        kind = TYPES[parts[-1]]
        expression = (OF_FLOATS if kind in FLOATS else OF_BITS)[".".join(parts[:-1])]
        if kind == "bool":
            expression = expression.replace("~", "!")
        if kind[0] == "s" and parts[0] not in HAVE_SIGNS:
            kind = "u" + kind[1:]  # which may overflow
        return self.set(operands[0], self.computed(expression, kind, operands[1:]), kind)

    def computed(self, expression: str, kind: str, operands: list[str]) -> str:
        values = dict(zip("abc", (self.value(operand, kind) for operand in operands), strict=False))
        return re.sub(r"\b[abcT]\b", lambda match: values.get(match[0], kind), expression)

    def set(self, operand: str, expression: str, kind: str) -> str:
        return f"{operand[1:]} = as<decltype({operand[1:]})>({kind}({expression}))"

    def access(self, parts: list[str], operands: list[str]) -> str:
        kind = TYPES[parts[-1]]
        modifiers = set(parts[1:-1])
        space = next(iter(modifiers & SPACES), "")
        count = next((part[1] for part in modifiers if re.fullmatch(r"v[24]", part)), "1")
        if modifiers - SPACES - {"cg", "v2", "v4"} or space in ("local", "const"):
            raise UnknownError(".".join(parts))
        loads = parts[0] == "ld"
        registers, memory = operands if loads else reversed(operands)
        address = self.address(memory, space)
        memory_of = "memory_of"
        if space in ("global", ""):
            memory_of, count = "global_memory_of", f"{count}, {str(loads).lower()}"
        lines = [f"{kind}* const memory = {memory_of}<{kind}, {count}>({address})"]
        for i, register in enumerate(registers.strip("{}").split(",")):
            element = f"memory[{i}]"
            register = register.strip()
            lines.append(
                self.set(register, element, kind) if loads else f"{element} = {self.value(register, kind)}"
            )
        return "{ " + "; ".join(lines) + "; }"

    def mov_(self, parts: list[str], operands: list[str]) -> str:
        kind = TYPES[parts[1]]
        to, of = operands
        if not to.startswith("{") and not of.startswith("{"):
            return self.set(to, self.value(of, kind), kind)
        packed, pieces = (of, to) if to.startswith("{") else (to, of)
        names = [piece.strip() for piece in pieces.strip("{}").split(",")]
        part = f"u{8 * BYTES[parts[1]] // len(names)}"
        if packed is of:
            lines = [f"const {kind} packed = {self.value(of, kind)}"]
            for i, name in enumerate(names):
                lines.append(self.set(name, f"packed >> ({i} * 8 * sizeof({part}))", part))
            return "{ " + "; ".join(lines) + "; }"
        shifted = (
            f"{kind}({self.value(name, part)}) << ({i} * 8 * sizeof({part}))" for i, name in enumerate(names)
        )
        return self.set(to, " | ".join(shifted), kind)

    def cvt_(self, parts: list[str], operands: list[str]) -> str:
        to, of = TYPES[parts[-2]], TYPES[parts[-1]]
        value = self.value(operands[1], of)
        modifiers = parts[1:-2]
        if modifiers not in ([], ["rn"], ["rzi"]) or (of in FLOATS and to not in FLOATS):
            raise UnknownError(".".join(parts))
        return self.set(operands[0], f"std::trunc({value})" if modifiers == ["rzi"] else value, to)

    def cvta_(self, parts: list[str], operands: list[str]) -> str:
        value = self.value(operands[1], "u64")
        if parts[1:3] == ["to", "shared"]:
            value = f"{value} - address_of_shared(0)"
        elif parts[1] == "shared":
            value = f"address_of_shared({value})"
        return self.set(operands[0], value, "u64")

    def mul_wide(self, parts: list[str], operands: list[str]) -> str:
        kind = TYPES[parts[-1]]
        wide = f"{kind[0]}{2 * int(kind[1:])}"
        return self.set(operands[0], self.computed(f"{wide}(a) * {wide}(b)", kind, operands[1:]), wide)

    def selp_(self, parts: list[str], operands: list[str]) -> str:
        kind = TYPES[parts[1]]
        to, first, second, condition = operands
        chosen = f"{self.value(condition, 'bool')} ? {self.value(first, kind)} : {self.value(second, kind)}"
        return self.set(to, chosen, kind)

    def shl_(self, parts: list[str], operands: list[str]) -> str:
        kind = TYPES[parts[1]]
        value, by = self.value(operands[1], kind), self.value(operands[2], "u32")
        return self.set(
            operands[0], f"shifted_{'left' if parts[0] == 'shl' else 'right'}({value}, {by})", kind
        )

    shr_ = shl_

    def bfi_(self, parts: list[str], operands: list[str]) -> str:
        kind = TYPES[parts[1]]
        inserted, into = (self.value(operand, kind) for operand in operands[1:3])
        begin, bits = (self.value(operand, "u32") for operand in operands[3:])
        return self.set(operands[0], f"with_bits({inserted}, {into}, {begin}, {bits})", kind)

    def shfl_(self, parts: list[str], operands: list[str]) -> str:
        to, valid = operands[0].split("|")
        if parts[1:] not in (["sync", "down", "b32"], ["sync", "idx", "b32"]):
            raise UnknownError(".".join(parts))
        given = ", ".join(self.value(operand, "u32") for operand in operands[1:])
        return self.set(to, f"shuffled_{parts[2]}({given}, {valid[1:]})", "u32")

    def atom_(self, parts: list[str], operands: list[str]) -> str:
        name = {"or.b32": "atomicOr", "inc.u32": "atomicInc"}[".".join(parts[2:])]
        address = self.address(operands[1], parts[1])
        return self.set(
            operands[0], f"{name}(memory_of<u32, 1>({address}), {self.value(operands[2], 'u32')})", "u32"
        )

    def membar_(self, parts: list[str], operands: list[str]) -> str:
        return {"gl": "__threadfence()"}[parts[1]]

    def bar_(self, parts: list[str], operands: list[str]) -> str:
        if parts[1:] == ["warp", "sync"] and operands == ["-1"]:
            return "__syncwarp()"
        if parts[1:] == ["sync"] and operands == ["0"]:
            return "__syncthreads()"
        raise UnknownError(".".join(parts))

    def bra_(self, parts: list[str], operands: list[str]) -> str:
        return f"goto {operands[0]}"

    def call_(self, parts: list[str], operands: list[str]) -> str:
        name = next(operand for operand in operands if not operand.startswith("("))
        given = [
            piece.strip()
            for operand in operands
            if operand.startswith("(")
            for piece in operand[1:-1].split(",")
        ]
        return f"of_ptx{name}({', '.join(filter(None, given))})"

    def ret_(self, parts: list[str], operands: list[str]) -> str:
        return "return"


def operands_of(text: str) -> list[str]:
    """Split at commas, but within brackets of any kind."""
    return [match[0].strip() for match in re.finditer(r"(?:\{[^}]*\}|\[[^]]*\]|\([^)]*\)|[^,])+", text)]


def place_shared(text: str) -> dict[str, int]:
    """Where each variable in shared memory begins, as if a block had all of them."""
    places, end = {}, 0
    for match in re.finditer(r"\.shared(?: \.align (\d+))? \.(\w+) (\w+)(?:\[(\d*)\])?", text):
        if match[4] == "":  # as much as a launch says
            raise UnknownError(match[0])
        end += -end % int(match[1] or BYTES[match[2]])
        places[match[3]] = end
        end += BYTES[match[2]] * int(match[4] or 1)
    if end > SHARED_MEMORY:
        raise UnknownError(f"{end} bytes of shared memory")
    return places


def checks_of_sizes(all_functions: list[Function]) -> str:
    """That the host means the same by a kernel's parameter, which is the last word of its mangled name."""
    sizes = set()
    for function in all_functions:
        if not function.is_kernel:
            continue
        of = re.match(r".*NS_\d+(\w+)E$", function.name)
        if of is None:
            raise UnknownError(function.name)
        sizes.add((of[1], function.parameters[0][1]))
    why = "the kernels are of other sources; install the package again"
    return "".join(
        f'static_assert(sizeof(fusedstep::{of}) == {size}, "{why}");\n' for of, size in sorted(sizes)
    )


def translate(text: str, files: int) -> list[str]:
    """C++ of a module of PTX, in so many files of about the same size."""
    text = re.sub(r"//.*|/\*.*?\*/", "", text)
    shared = place_shared(text)
    all_functions = list(functions(text))
    begin = BEGIN + "".join(f"{function.head};\n" for function in all_functions)
    of_files = [begin + checks_of_sizes(all_functions)] * files
    for function in sorted(all_functions, key=lambda function: -len(function.body)):
        shortest = min(range(files), key=lambda i: len(of_files[i]))
        of_files[shortest] += "\n" + Translation(function, shared).translate()
    return of_files
