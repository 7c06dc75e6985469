"""A tensor or a part of one, on its way from a file into an array of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..format.arrays import PackedArray, tensor_view
from ..format.dtypes import DTYPES, Array, cast
from ..format.header import TensorInfo
from ..format.packed import select_packed
from ..format.ranks import Cut
from ..format.slices import Selection, SlicePlan, plan_selections, select_part, tensor_piece
from ..sources.located import SourceFile
from ..storage.buffers import aligned_buffer
from .gather import Want, put

__all__ = ["Portion", "cut_info", "part_of", "plan_cut", "portion_of"]


@dataclass(eq=False, slots=True)
class Portion:
    """A part of a tensor, or all of it (without selections), and the memory that its bytes go to, one after another."""

    name: str
    file: SourceFile
    info: TensorInfo
    shape: tuple[int, ...]
    selections: list[Selection]
    outer: int  # how often the selections take turns in the result
    memory: memoryview

    def wants(self) -> list[Want]:
        """What is to be read for it."""
        if not self.selections:
            offset = self.file.known_header.data_start + self.info.begin
            pieces = [tensor_piece(offset, self.info.nbytes)] if self.info.nbytes else []
            return [Want(self.file, pieces, self.memory)]
        found, at = [], 0
        for selection in self.selections:
            found.append(Want(self.file, list(selection.pieces()), self.memory[at : at + selection.nbytes]))
            at += selection.nbytes
        return found

    def array(self, dtype: np.dtype[Any] | None) -> Array:
        """The array on the memory, which is full; cast where `dtype` asks for it."""
        info = TensorInfo(self.info.dtype, self.shape, 0, len(self.memory))
        backwards = self.selections[0].reversed_axes if self.selections else ()
        memory = self.memory
        if len(self.selections) > 1 and self.outer > 1:
            memory = self._taking_turns()
        elif backwards and DTYPES[self.info.dtype].packed:
            memory = _turned_round(memory, self.selections[0])
        array = tensor_view(memory, info, 0, file=self.file.name, tensor=self.name)
        if backwards and not isinstance(array, PackedArray):
            array = np.flip(array, backwards)
        return array if dtype is None else cast(array, dtype)

    def _taking_turns(self) -> memoryview:
        memory, at = aligned_buffer(len(self.memory), 0), 0
        rows = np.frombuffer(memory, np.uint8).reshape(self.outer, -1)
        stored = np.frombuffer(self.memory, np.uint8)
        for selection in self.selections:
            width = selection.nbytes // self.outer
            begin = at * self.outer
            rows[:, at : at + width] = stored[begin : begin + selection.nbytes].reshape(self.outer, width)
            at += width
        return memory


def _turned_round(memory: memoryview, selection: Selection) -> memoryview:
    """A copy in which what was selected backwards lies so."""
    stored = np.frombuffer(memory, np.uint8).reshape(*selection.shape, selection.itemsize)
    turned = aligned_buffer(len(memory), 0)
    np.frombuffer(turned, np.uint8).reshape(stored.shape)[...] = np.flip(stored, selection.reversed_axes)
    return turned


def portion_of(name: str, file: SourceFile, info: TensorInfo, cut: Cut | None) -> Portion:
    """The part `cut` of a tensor, or all of it, with memory of its own. Raises IndexError, SourceError."""
    if cut is None:
        return Portion(name, file, info, info.shape, [], 1, aligned_buffer(info.nbytes, 0))
    selections, shape = _selections(name, info, cut, file.known_header.data_start + info.begin)
    memory = aligned_buffer(sum(selection.nbytes for selection in selections), 0)
    return Portion(name, file, info, shape, selections, math.prod(cut.shape[: cut.axis]), memory)


def part_of(whole: Array, name: str, file: SourceFile, info: TensorInfo, cut: Cut) -> Array:
    """The part `cut` of a tensor that is here as `whole`: a view where it is one stretch, else a copy on 64 bytes.

    Raises as `portion_of`.
    """
    if isinstance(whole, PackedArray):
        return _part_of_packed(whole, name, file, info, cut)
    parts = [whole.reshape(cut.shape)[index] for index in cut.indices]
    if len(parts) == 1 and parts[0].flags.c_contiguous:
        return parts[0] if cut.result is None else parts[0].reshape(cut.result)
    joined = list(parts[0].shape)
    joined[cut.axis] = sum(part.shape[cut.axis] for part in parts) if len(parts) > 1 else joined[cut.axis]
    memory = aligned_buffer(sum(part.nbytes for part in parts), 0)
    copy = np.frombuffer(memory, whole.dtype).reshape(joined)
    if len(parts) > 1:
        np.concatenate(parts, cut.axis, out=copy)
    else:
        copy[...] = parts[0]
    return copy if cut.result is None else copy.reshape(cut.result)


def _part_of_packed(whole: PackedArray, name: str, file: SourceFile, info: TensorInfo, cut: Cut) -> Array:
    selections, shape = _selections(name, info, cut, 0)
    first, nbytes = selections[0], sum(selection.nbytes for selection in selections)
    if not nbytes or (len(selections) == 1 and first.run == nbytes):
        start = first.start if nbytes else 0
        return tensor_view(whole, TensorInfo(info.dtype, shape, start, start + nbytes), 0, file=file.name, tensor=name)
    outer = math.prod(cut.shape[: cut.axis])
    portion = Portion(name, file, info, shape, selections, outer, aligned_buffer(nbytes, 0))
    stored, at = whole.view(np.ndarray).data, 0
    for selection in selections:
        for piece in selection.pieces():
            put(piece, stored[piece.start : piece.stop], portion.memory[at : at + selection.nbytes])
        at += selection.nbytes
    return portion.array(None)


def cut_info(name: str, info: TensorInfo, cut: Cut) -> TensorInfo:
    """What a part is, when it lies by itself from byte 0 on. Raises as `portion_of`."""
    selections, shape = _selections(name, info, cut, 0)
    return TensorInfo(info.dtype, shape, 0, sum(selection.nbytes for selection in selections))


def plan_cut(name: str, file: SourceFile, info: TensorInfo, cut: Cut) -> SlicePlan:
    """How a part is fetched."""
    return plan_selections(*_selections(name, info, cut, file.known_header.data_start + info.begin))


def _selections(name: str, info: TensorInfo, cut: Cut, offset: int) -> tuple[list[Selection], tuple[int, ...]]:
    """The bytes of each index of `cut` of a tensor that begins at byte `offset`, and the shape of them together."""
    selections, shape = [], info.shape
    for index in cut.indices:
        if DTYPES[info.dtype].packed:
            selection, shape = select_packed(cut.shape, info.dtype, index, offset=offset, tensor=name)
        else:
            selection = select_part(cut.shape, DTYPES[info.dtype].numpy.itemsize, index, offset=offset)
            shape = selection.shape
        selections.append(selection)
    return selections, shape if cut.result is None else cut.result
