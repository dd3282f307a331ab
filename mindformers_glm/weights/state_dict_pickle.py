"""Read the pickle inside a file of torch.save, without unpickling.

A pickle is a program: the standard library's reader would import and call whatever it names. This
one knows the few operations that a dictionary of tensors is written with, and the only calls it
makes are the functions of `_CALLS` below, so nothing of a file is ever run. `pickletools.genops`
cuts the bytes into operations; torch_tensors.py says what tensors are made of.
Source: `pickletools` of Python 3.11 (the operations).
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from mindformers_glm.weights.torch_tensors import (
    STORAGE_TYPES,
    Global,
    StateDictError,
    Storage,
    read_storage,
    rebuild_parameter,
    rebuild_tensor,
    require,
)

# Operations that hold bytes, and how many bytes tell their length.
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8}
_MAX_OPERATIONS = 200_000  # a tensor takes 33; a million take seconds


@dataclass
class _State:
    """The stack machine that a pickle is written for.

    Attributes:
        stack: what is built since the last mark; outer_stacks: what was built before each mark.
        memo: values that are named again, by their number.
        calls: the functions that may be called, by the names that pickles have for them.
        storages: every storage named so far, by its key.
    """

    stack: list[Any] = field(default_factory=list)
    outer_stacks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    calls: Mapping[str, Callable[[tuple[Any, ...]], Any]] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def pop_since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer_stacks.pop()
        return items


@dataclass(frozen=True)
class StoredBytes:
    """Bytes that lie in a pickle, which its memo would keep all of.

    begin: their position in the stream.
    """

    begin: int
    content: bytes


class Buildable(Protocol):
    """What a function of `calls` may make: a pickle sets its attributes later."""

    def build(self, attributes: Any) -> None: ...


def read_pickle(
    stream: BinaryIO,
    calls: Mapping[str, Callable[[tuple[Any, ...]], Any]] | None = None,
) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle; the stream stands behind it afterwards.

    Args:
        calls: functions that the pickle may call besides those of a state dict; with any, it may
            hold bytes (`StoredBytes`), and set attributes of what they make.
    Returns:
        The value (None, bool, int, float, str, tuple, list, dict with str keys, StoredTensor),
        and every storage it names, by its key.
    Raises:
        StateDictError: it asks for anything that a state dict does not need, or is broken.
    """
    state = _State(calls=_CALLS | dict(calls or {}))
    try:
        for index, (operation, argument, position) in enumerate(pickletools.genops(stream)):
            if operation.name == "STOP":
                break
            if index == _MAX_OPERATIONS:
                raise StateDictError(
                    f"takes more than {_MAX_OPERATIONS} operations to describe its tensors, which "
                    "no state dict needs: it is not loaded"
                )
            if calls and operation.name in _BYTES and position is not None:
                begin = position + 1 + _BYTES[operation.name]
                state.stack.append(StoredBytes(begin, bytes(argument or b"")))
                continue
            run = _OPERATIONS.get(operation.name)
            if run is None:
                raise StateDictError(
                    f"uses the pickle operation {operation.name}, which a state dict of tensors "
                    "does not need: it is not loaded"
                )
            run(state, argument)
        (value,) = state.stack
    except (ValueError, IndexError, KeyError):  # no such operation, cut off, an empty stack
        raise StateDictError("holds a broken pickle: download it again") from None
    return value, state.storages


def _push(state: _State, value: Any) -> None:
    state.stack.append(value)


def _push_mark(state: _State, _: None) -> None:
    state.outer_stacks.append(state.stack)
    state.stack = []


def _push_global(state: _State, module_and_name: str) -> None:
    name = module_and_name.replace(" ", ".")
    if name not in state.calls and name not in STORAGE_TYPES:
        raise StateDictError(
            f"asks for {name[:100]!r}, but only plain dense tensors are loaded (nothing of the "
            "file was run): save the model's state_dict() alone, or use .safetensors files"
        )
    state.stack.append(Global(name))


def _push_stack_global(state: _State, _: None) -> None:
    name, module = state.stack.pop(), state.stack.pop()
    require(isinstance(name, str) and isinstance(module, str), "names a class by another type")
    _push_global(state, f"{module} {name}")


def _push_tuple_since_mark(state: _State, _: None) -> None:
    items = state.pop_since_mark()
    state.stack.append(tuple(items))


def _push_tuple_of(size: int) -> Callable[[_State, None], None]:
    def run(state: _State, _: None) -> None:
        items = [state.stack.pop() for _ in range(size)]
        state.stack.append(tuple(reversed(items)))

    return run


def _append(state: _State, _: None) -> None:
    _extend(state, [state.stack.pop()])


def _append_since_mark(state: _State, _: None) -> None:
    _extend(state, state.pop_since_mark())


def _extend(state: _State, items: list[Any]) -> None:
    require(isinstance(state.stack[-1], list), "appends to what is not a list")
    state.stack[-1].extend(items)


def _set_item(state: _State, _: None) -> None:
    value, key = state.stack.pop(), state.stack.pop()
    _set(state, [key, value])


def _set_since_mark(state: _State, _: None) -> None:
    _set(state, state.pop_since_mark())


def _set(state: _State, items: list[Any]) -> None:
    mapping = state.stack[-1]
    require(isinstance(mapping, dict) and len(items) % 2 == 0, "fills what is not a dictionary")
    for key, value in zip(items[0::2], items[1::2], strict=True):
        # Text only: the hash of a deeply nested tuple would exhaust the C stack.
        require(isinstance(key, str), "has a dictionary key that is not a text")
        require(key not in mapping, f"names {key[:100]!r} twice")
        mapping[key] = value


def _put(state: _State, number: int) -> None:
    state.memo[number] = state.stack[-1]


def _put_next(state: _State, _: None) -> None:
    state.memo[len(state.memo)] = state.stack[-1]


def _get(state: _State, number: int) -> None:
    state.stack.append(state.memo[number])


def _drop_attributes(state: _State, _: None) -> None:
    """BUILD: a state dict carries `_metadata`, the versions of modules, as an attribute."""
    attributes = state.stack.pop()
    if hasattr(state.stack[-1], "build"):
        state.stack[-1].build(attributes)
        return
    require(isinstance(state.stack[-1], dict), "sets attributes of what is not a dictionary")


def _reduce(state: _State, _: None) -> None:
    arguments, function = state.stack.pop(), state.stack.pop()
    is_call = isinstance(function, Global) and isinstance(arguments, tuple)
    require(is_call and function.name in state.calls, "calls what is not a function")
    state.stack.append(state.calls[function.name](arguments))


def _name_storage(state: _State, _: None) -> None:
    """BINPERSID: what a pickle keeps beside it, which of torch.save is a storage."""
    storage = read_storage(state.stack.pop())
    known = state.storages.setdefault(storage.key, storage)
    require(known == storage, f"describes its storage {storage.key[:100]!r} in two ways")
    state.stack.append(storage)


def _new_mapping(arguments: tuple[Any, ...]) -> dict[str, Any]:
    require(not arguments, "makes an OrderedDict from values")
    return {}


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _new_mapping,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
}

_OPERATIONS: dict[str, Callable[[_State, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda state, _: None),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
            *("BINUNICODE", "SHORT_BINUNICODE"),
        ),
        _push,
    ),
    "NONE": lambda state, _: _push(state, None),
    "NEWTRUE": lambda state, _: _push(state, True),
    "NEWFALSE": lambda state, _: _push(state, False),
    "EMPTY_TUPLE": lambda state, _: _push(state, ()),
    "EMPTY_LIST": lambda state, _: _push(state, []),
    "EMPTY_DICT": lambda state, _: _push(state, {}),
    "MARK": _push_mark,
    "TUPLE": _push_tuple_since_mark,
    "TUPLE1": _push_tuple_of(1),
    "TUPLE2": _push_tuple_of(2),
    "TUPLE3": _push_tuple_of(3),
    "APPEND": _append,
    "APPENDS": _append_since_mark,
    "SETITEM": _set_item,
    "SETITEMS": _set_since_mark,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put_next,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _push_global,
    "STACK_GLOBAL": _push_stack_global,
    "REDUCE": _reduce,
    "BUILD": _drop_attributes,
    "BINPERSID": _name_storage,
}
