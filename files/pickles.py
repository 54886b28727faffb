"""Pickles of tensors, looked at before torch's unpickler gets them.

`torch.load(weights_only=True)` executes nothing, and yet a file of 600 bytes makes it hash for ever
(a dictionary's key of nested tuples that unfold to 2^60 elements), ask for gigabytes
(`bytearray(2**31)`), or read past the end of a storage that is shorter than the pickle says. Here
the opcodes are followed without building anything, and only what torch.save writes for tensors in
dictionaries and lists is let through. This happens in the child process: a zip may have a million
entries, and an old file may begin with a text of gigabytes.
"""

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from files.bounded import call
from files.errors import UserError

LARGEST = 4_000_000  # bytes of a pickle; that of a model has a hundredth of it
SECONDS = 5.0  # of computing
LONGEST_KEY = 2**31  # of a number as a key; larger ones could all have the same hash
ORDERED, REBUILT = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
FUNCTIONS = {ORDERED, REBUILT, "torch._utils _rebuild_parameter", "torch Size"}
ITEM_SIZES = {  # storage -> bytes of an element
    "torch.storage UntypedStorage": 1, "torch DoubleStorage": 8, "torch LongStorage": 8,
    "torch FloatStorage": 4, "torch IntStorage": 4, "torch HalfStorage": 2,
    "torch BFloat16Storage": 2, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1,
}  # fmt: skip
CONSTANTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BINUNICODE", "SHORT_BINSTRING"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
LEGACY = 5  # pickles at the start of a file of torch before 1.6
OTHER = object()  # a value that is no constant


@dataclass(frozen=True)
class Storage:
    """What a pickle refers to as a storage."""

    elements: int


class Refused(ValueError):
    """Why a pickle is not let through."""


def is_zip(path: Path) -> bool:
    """Whether torch takes the file for a zip, as it writes since 1.6. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} is not a file")  # a pipe would be waited for
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_pickle(path: Path) -> None:
    """Raise UserError unless the file is what torch.save writes for tensors."""
    call("files.pickles:check", str(path.absolute()), f"reading {path}", SECONDS)


def check(name: str) -> None:
    """In the child: `check_pickle` of the file of this name."""
    path = Path(name)
    try:
        if is_zip(path):
            check_zip(path)
        else:
            with open(path, "rb") as file:
                start = BytesIO(file.read(LARGEST))  # where the pickles are
            holds = all_within(path.stat().st_size)
            for _ in range(LEGACY):
                follow(start, holds)
    except Refused as error:
        raise UserError(f"{path} is refused, it holds more than tensors: {error!s:.200}") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a malformed zip or pickle makes Python raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason:.200}") from None


def all_within(length: int) -> Callable[[str, int], bool]:
    """Of an old file of this many bytes: whether all its storages together can be in it."""
    sizes: dict[str, int] = {}
    total = 0

    def holds(key: str, size: int) -> bool:
        nonlocal total
        total += size - sizes.get(key, 0)
        sizes[key] = size
        return total <= length

    return holds


def check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        sizes = {entry.filename: entry.file_size for entry in entries}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(f"{path} is compressed, torch's own files are not")
        pickles = [name for name in sizes if name.endswith("data.pkl")]
        if len(pickles) != 1 or len(sizes) != len(entries):
            raise UserError(f"{path} cannot be read: its zip holds other files than torch writes")
        if sizes[pickles[0]] > LARGEST:
            raise Refused(f"a pickle of {sizes[pickles[0]]:,} bytes")
        data = pickles[0].removesuffix(".pkl")
        with file.open(pickles[0]) as stream:
            follow(stream, lambda key, size: size <= sizes.get(f"{data}/{key}", -1))


def follow(stream: BinaryIO, holds: Callable[[str, int], bool]) -> None:
    """Follow one pickle up to its STOP. Raises Refused; ValueError and others for what is none.

    holds(key, bytes): whether the file has a storage of this size.
    """
    stack: list = []
    below: list[list] = []  # the stacks under each MARK
    memo: dict[int, object] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in CONSTANTS:
            stack.append(argument)
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append(() if name == "EMPTY_TUPLE" else OTHER)
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            values, stack = stack, below.pop()
            if name == "TUPLE":
                stack.append(tuple(values))
            elif name == "SETITEMS":
                check_keys(values[::2])
        elif name == "APPEND":
            stack.pop()
        elif name == "SETITEM":
            check_keys(stack[-2:-1])
            del stack[-2:]
        elif name == "GLOBAL":
            if argument not in FUNCTIONS and argument not in ITEM_SIZES:
                raise Refused(argument)
            stack.append(argument)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, str) or function not in FUNCTIONS:
                raise Refused(f"a call of {function!s:.100}")
            if function == ORDERED and arguments:
                raise Refused(f"{function} of values")
            if function == REBUILT:
                check_view(arguments)
            stack.append([ORDERED] if function == ORDERED else OTHER)
        elif name == "BUILD":
            stack.pop()
            if stack[-1] != [ORDERED]:
                raise Refused("attributes of an object")
        elif name == "BINPERSID":
            stack.append(check_storage(stack.pop(), holds))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in ("PROTO", "STOP"):
            raise Refused(f"the opcode {name}")


def check_keys(keys: list) -> None:
    """Raise Refused unless these keys of a dictionary are texts or numbers."""
    for key in keys:
        if not isinstance(key, str | int) or (isinstance(key, int) and abs(key) >= LONGEST_KEY):
            raise Refused("a key that is neither a text nor a number of 32 bits")


def check_storage(place, holds: Callable[[str, int], bool]) -> Storage:
    """What a pickle says of a storage. Raises Refused unless the file has one of this size."""
    kind, storage, key, _, count = place[:5]
    if not all(isinstance(value, str) for value in (kind, storage, key)) or kind != "storage":
        raise Refused("a reference to something else than a storage")
    if storage not in ITEM_SIZES or type(count) is not int:
        raise Refused(f"a storage of the kind {storage}")
    if count < 0 or not holds(key, count * ITEM_SIZES[storage]):
        raise Refused(f"storage {key:.50} of {count:,} elements, which are not in the file")
    return Storage(count)


def check_view(arguments: tuple) -> None:
    """Raise Refused unless a tensor lies within its storage, which torch would enlarge."""
    storage, offset, shape, strides = arguments[:4]
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise Refused("a tensor that is none of a storage")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Refused("a tensor of a shape that is none")
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.elements:
        raise Refused(f"a tensor {list(shape)} of a storage of {storage.elements:,} elements")
