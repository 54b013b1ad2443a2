# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, type-arg"
# The bodies of intrinsics are written in LLVM's terms, for which there are no types.
"""Many bytes at once, as LLVM can and numba's own operations do not say: loads, masks, wide products, copies.

The caller has checked the bounds: nothing here does. All are exact on every machine, with or without vectors.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """A pointer to the byte at `index` of a uint8 array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def load8(_context: Any, data: Any, _index: Any) -> Any:
    """data[index : index + 8] as one little-endian number (uint64), whatever the alignment."""

    def generate(context, builder, signature, arguments):
        place = _at(context, builder, signature.args[0], *arguments)
        loaded = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()))
        loaded.align = 1
        return loaded

    return types.uint64(data, types.intp), generate


@intrinsic
def where_equal(_context: Any, data: Any, _index: Any, _byte: Any) -> Any:
    """A bit for each of data[index : index + 64], the lowest for the first: whether it is `byte` (uint64)."""

    def generate(context, builder, signature, arguments):
        array, index, byte = arguments
        place = _at(context, builder, signature.args[0], array, index)
        vector = ir.VectorType(ir.IntType(8), 64)
        loaded = builder.load(builder.bitcast(place, vector.as_pointer()))
        loaded.align = 1
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), byte, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
        all_of_it = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)
        return builder.bitcast(builder.icmp_unsigned("==", loaded, all_of_it), ir.IntType(64))

    return types.uint64(data, types.intp, types.uint8), generate


@intrinsic
def lowest_bit(_context: Any, _value: Any) -> Any:
    """Number of the lowest bit that is set (int64); 64 for 0."""

    def generate(_context, builder, _signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def bits_set(_context: Any, _value: Any) -> Any:
    """How many bits are set (int64)."""

    def generate(_context, builder, _signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic
def folded(_context: Any, _left: Any, _right: Any) -> Any:
    """The high and the low half of the 128-bit product, in exclusive or (uint64)."""

    def generate(_context, builder, _signature, arguments):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in arguments))
        high = builder.lshr(product, ir.Constant(wide, 64))
        return builder.trunc(builder.xor(high, product), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def copy_bytes(_context: Any, to: Any, _at_to: Any, data: Any, _start: Any, _length: Any) -> Any:
    """to[at_to : at_to + length] = data[start : start + length] of arrays that do not overlap."""

    def generate(context, builder, signature, arguments):
        target, at_target, source, start, length = arguments
        kinds = signature.args
        cgutils.raw_memcpy(
            builder,
            _at(context, builder, kinds[0], target, at_target),
            _at(context, builder, kinds[2], source, start),
            length,
            1,
        )
        return context.get_dummy_value()

    return types.none(to, types.intp, data, types.intp, types.intp), generate
