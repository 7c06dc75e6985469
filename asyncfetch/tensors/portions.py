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
from .gather import Want

__all__ = ["Portion", "plan_cut", "portion_of"]


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
    selections, shape = _selections(name, file, info, cut)
    memory = aligned_buffer(sum(selection.nbytes for selection in selections), 0)
    return Portion(name, file, info, shape, selections, math.prod(cut.shape[: cut.axis]), memory)


def plan_cut(name: str, file: SourceFile, info: TensorInfo, cut: Cut) -> SlicePlan:
    """How a part is fetched."""
    return plan_selections(*_selections(name, file, info, cut))


def _selections(name: str, file: SourceFile, info: TensorInfo, cut: Cut) -> tuple[list[Selection], tuple[int, ...]]:
    """The bytes of each index of `cut`, and the shape of them together."""
    offset = file.known_header.data_start + info.begin
    selections, shape = [], info.shape
    for index in cut.indices:
        if DTYPES[info.dtype].packed:
            selection, shape = select_packed(cut.shape, info.dtype, index, offset=offset, tensor=name)
        else:
            selection = select_part(cut.shape, DTYPES[info.dtype].numpy.itemsize, index, offset=offset)
            shape = selection.shape
        selections.append(selection)
    return selections, shape if cut.result is None else cut.result
