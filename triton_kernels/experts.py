"""Mixtures of experts over packed weights: which kernels for how many tokens (grouped.py has the kernels).

An `Experts` is made once, when a model is loaded, and checked then. A call launches a few kernels; their number and
size depend on the number of tokens only, never on where the tokens go, so that a CUDA graph can hold them. The last of
them also norms the result for the next half of the layer (`with_norm`), where a program can hold a row.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..quant import formats
from ..quant.floats import FLOAT_DTYPES
from . import codebooks
from .activations import FLOATS, INT8_VECTORS, Form, Units, empty_form, empty_units, in_form, quantize, spread
from .decode import DECODERS
from .grid import cdiv, next_power_of_2
from .grouped import (
    combine_kernel,
    combine_norm_kernel,
    expert_down_kernel,
    expert_glu_kernel,
    grouped_down_kernel,
    grouped_glu_kernel,
    sort_kernel,
)
from .linear import MAX_NORM_PER_LANE, MAX_NORM_WIDTH, Activation, Route, vector_lanes
from .norms import MAX_BLOCK, NextNorm, norm, row_groups
from .packing import UNIT, units
from .tuning import Tile, Tuning, arch_of, isa, multiprocessors, tuning, warp_size
from .weights import PackedWeight

# Up to so many assignments per expert are multiplied one by one; where the tuning table sends fewer rows of a matrix to
# the matvec kernel, up to so many. With more, weights are read several times. Not measured.
MATVEC_ROWS = 1
# Where programs that take a token's experts one after the other have fewer warps per multiprocessor than this, every
# expert gets programs of its own. Not measured.
WARPS = 8
# The least number of rows whose results a program can store as groups of 32.
GROUP = 32
# Rows of a tile per warp at most, where gate and up are multiplied together: the sums of both lie in its registers.
GLU_ROWS_PER_WARP = 16
# Groups of 32 values per warp, and warps at most, where a program adds up and norms a token's whole row.
GROUPS_PER_WARP = 8
NORM_WARPS = 16


NO_NORM = NextNorm(None, 0.0)


@dataclass(frozen=True, slots=True)
class _Results:
    """Where a call adds up its products, and how the sum is normed. out: None where there is no norm."""

    stream: Tensor
    residual: Tensor | None
    out: Tensor | None = None
    by: NextNorm = NO_NORM
    form: Form = "plain"

    @property
    def norm(self) -> tuple[Any, ...]:
        by = self.by
        return self.out, by.weight, by.bias, by.eps, by.post_weight, by.post_eps

    @property
    def norm_options(self) -> dict[str, Any]:
        groups = row_groups(self.stream.shape[1], self.form)
        return {"LAYER": self.by.layer, "FORM": self.form, "GROUPS": groups, "enable_fp_fusion": True}


class Experts:
    """y = residual + sum over a token's experts of share * (down(glu(gate x, up x))), each with its bias.

    gate, up: stacks [n_experts, n_ff, n_embd]; down: [n_experts, n_embd, n_ff]; each in a format of its own.
    activation: what the gate goes through (epilogue.py).
    route: "int8" quantises x and the hidden values to 8 bits per group of 32 where that is faster; "exact" never does:
        it decodes weights to the type of x (float32 for few tokens) and accumulates in float32.
    gate_bias, up_bias: [n_experts, n_ff] or None; down_bias: [n_experts, n_embd] or None.
    batch_invariant: a token's result does not depend on how many tokens are beside it.
    table: kernels and tiles; by default those of the weights' device.

    Calls of one object share counters: they must not overlap. ValueError where stacks and biases do not fit each other.
    """

    def __init__(
        self,
        gate: PackedWeight,
        up: PackedWeight,
        down: PackedWeight,
        *,
        activation: Activation,
        route: Route = "int8",
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
        batch_invariant: bool = False,
        table: Tuning | None = None,
    ) -> None:
        _check(gate, up, down, {"gate_bias": gate_bias, "up_bias": up_bias, "down_bias": down_bias})
        self.gate, self.up, self.down = gate, up, down
        self.gate_bias, self.up_bias, self.down_bias = gate_bias, up_bias, down_bias
        self.activation, self.batch_invariant = activation, batch_invariant
        self.device = gate.data.device
        self.n_experts, self.n_ff, self.n_embd = gate.shape
        # Plain numbers have no integers to multiply.
        self.int8 = route == "int8" and not {gate.format, up.format} & FLOAT_DTYPES.keys()
        self.hidden_int8 = route == "int8" and down.format not in FLOAT_DTYPES
        self.float32 = formats.F32 in (gate.format, up.format, down.format)
        arch = arch_of(self.device)
        self.table = table or tuning(arch)
        self.isa, self.warp_size = isa(arch), warp_size(arch)
        self.n_units, self.hidden_units = units(self.n_embd), units(self.n_ff)
        rows = self.table.matvec_rows if self.int8 and self.hidden_int8 else self.table.exact_rows
        self._few = 0 if batch_invariant else min(rows, MATVEC_ROWS) * self.n_experts
        self._lut = codebooks.table(self.device)
        vector = self.table.vector
        self._glu_rows, self._down_rows = max(GROUP, vector.rows), vector.rows
        wide = replace(self.table, vector=replace(vector, rows=self._glu_rows))
        self._glu_lanes = vector_lanes(wide, self.warp_size, self.n_units)
        self._down_lanes = vector_lanes(self.table, self.warp_size, self.hidden_units)
        self._split_programs = WARPS * multiprocessors(self.device) * self.warp_size // self._down_lanes
        # How many programs have stored their part: of a block of outputs, and of a token. Zero between launches.
        self._counters = torch.zeros(self._split_programs, dtype=torch.int32, device=self.device)
        self._arrived = torch.zeros(self._few, dtype=torch.int32, device=self.device)

    def __call__(
        self, x: Tensor, ids: Tensor, shares: Tensor, residual: Tensor | None = None, units: Tensor | None = None
    ) -> Tensor:
        """x [n, n_embd], rows with unit stride; ids int32 and shares float32, [n, n_used]; residual [n, n_embd] of any
        float dtype -> [n, n_embd] in the type of x.

        units: x in 8 bits (activations.quantize), int32 [n, units of n_embd, 88], which spares quantising it where
        integers are multiplied (`int8`). All but x contiguous. An id that names no expert counts as the nearest that
        does. ValueError where the tensors do not fit.
        """
        self._check_call(x, ids, shares, residual, units)
        y = torch.empty(len(x), self.n_embd, dtype=x.dtype, device=self.device)
        if ids.numel() == 0:
            return y if residual is None else y.copy_(residual)
        self._launch(_Results(y, residual), x, ids, shares, units)
        return y

    def with_norm(
        self,
        x: Tensor,
        ids: Tensor,
        shares: Tensor,
        residual: Tensor | None,
        following: NextNorm,
        form: Form,
        units: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | Units | None]:
        """The stream after the experts, [n, n_embd], and its norm in a form that the next layer reads (norms.norm): no
        launch more than a call for rows that a program can hold. Other arguments as a call has them."""
        if following.weight is None or not self._can_norm(ids.numel(), form):
            if following.post_weight is None:
                return norm(self(x, ids, shares, residual, units), following, form=form)
            return norm(self(x, ids, shares, units=units), following, residual, form)
        if following.width != self.n_embd:
            raise ValueError(f"expected a norm of {self.n_embd} values, found one of {following.width}")
        self._check_call(x, ids, shares, residual, units)
        stream = torch.empty(len(x), self.n_embd, dtype=x.dtype, device=self.device)
        out = empty_form(len(x), self.n_embd, form, x.dtype, self.device)
        self._launch(_Results(stream, residual, out, following, form), x, ids, shares, units)
        return stream, in_form(out, self.n_embd, form, x.dtype)

    def _can_norm(self, n_assignments: int, form: Form) -> bool:
        few = min(MAX_NORM_WIDTH, MAX_NORM_PER_LANE * self._down_lanes)
        width = few if n_assignments <= self._few else MAX_BLOCK
        return n_assignments > 0 and 32 * row_groups(self.n_embd, form) <= width

    def _check_call(
        self, x: Tensor, ids: Tensor, shares: Tensor, residual: Tensor | None, units: Tensor | None
    ) -> None:
        if (x.dim(), x.shape[-1], x.stride(-1), x.device) != (2, self.n_embd, 1, self.device) or x.dtype not in FLOATS:
            expected = f"x [n, {self.n_embd}] with unit stride, float32, float16 or bfloat16, on {self.device}"
            found = f"{x.dtype} {list(x.shape)} with strides {x.stride()} on {x.device}"
            raise ValueError(f"expected {expected}, found {found}")
        n = len(x)
        for name, tensor, dtype, shape in (
            ("ids", ids, torch.int32, (n, ids.shape[-1] if ids.dim() else 0)),
            ("shares", shares, torch.float32, ids.shape),
            ("residual", residual, None, (n, self.n_embd)),
            ("units", units, torch.int32, (n, self.n_units, 4 * INT8_VECTORS.value)),
        ):
            if tensor is not None and (
                (tensor.shape, tensor.dtype, tensor.device) != (shape, dtype or tensor.dtype, self.device)
                or not tensor.is_contiguous()
            ):
                expected = f"{name} {list(shape)}, {dtype or 'any type'}, contiguous, on {self.device}"
                found = f"{tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
                raise ValueError(f"expected {expected}, found {found}")

    # ---- the kernels --------------------------------------------------------------------------------------------

    def _launch(self, to: _Results, x: Tensor, ids: Tensor, shares: Tensor, units: Tensor | None) -> None:
        if ids.numel() <= self._few:
            self._one_by_one(to, x, ids, shares, units)
        else:
            self._sorted(to, x, ids, shares, units)

    def _one_by_one(self, to: _Results, x: Tensor, ids: Tensor, shares: Tensor, units: Tensor | None) -> None:
        n, n_used = ids.shape
        operand = units if units is not None and self.int8 else quantize(x) if self.int8 else spread(x)
        hidden = empty_units(n * n_used, self.n_ff, self.hidden_int8, self.device)
        options: dict[str, Any] = {"ISA": self.isa, "enable_fp_fusion": True}
        expert_glu_kernel[n * n_used, self.hidden_units * UNIT // self._glu_rows](
            *(hidden, operand, self._lut, ids, *self._gate_and_up()),
            *(self.n_experts, self.n_ff, n, self.n_units, self.hidden_units, n_used),
            **{"D_GATE": DECODERS[self.gate.format.id], "D_UP": DECODERS[self.up.format.id]},
            **{"ACTIVATION": self.activation, "INT8": self.int8, "HIDDEN_INT8": self.hidden_int8},
            **{"R": self._glu_rows, "LANES": self._glu_lanes, "num_warps": self._glu_lanes // self.warp_size},
            **options,
        )
        blocks = cdiv(self.n_embd, self._down_rows)
        split = n_used > 1 and n * blocks <= self._split_programs
        products = None
        if split:
            products = torch.empty(n * n_used, self.n_embd, dtype=torch.float32, device=self.device)
        # With a norm of its own, the sum becomes part of the stream only after it.
        y, stream = to.stream, None
        if to.by.post_weight is not None:
            y, stream = torch.empty_like(to.stream), to.stream
        expert_down_kernel[n, blocks, n_used if split else 1](
            *(y, products, self._counters, hidden, self._lut, ids, shares, to.residual),
            *(self.down.words, self.down_bias, _vectors(self.down)),
            *(self.n_experts, self.n_embd, n * n_used, self.hidden_units, n_used),
            *(self._arrived, stream, *to.norm),
            **{"DECODE": DECODERS[self.down.format.id], "INT8": self.hidden_int8, "SPLIT": split, "ISA": self.isa},
            **{"R": self._down_rows, "LANES": self._down_lanes, "num_warps": self._down_lanes // self.warp_size},
            **to.norm_options,
        )

    def _sorted(self, to: _Results, x: Tensor, ids: Tensor, shares: Tensor, units: Tensor | None) -> None:
        n, n_used = ids.shape
        tile = self._tile(n * n_used)
        places = self._sort(ids)
        hidden = self._glu_of_sorted(x, units, places, tile, n_used)
        products = self._down_of_sorted(hidden, places, tile)
        summed = to.stream, products, ids, shares, to.residual, self.down_bias, self.n_experts, self.n_embd, n_used
        if to.out is None:
            block = min(1024, next_power_of_2(self.n_embd))
            combine_kernel[n, cdiv(self.n_embd, block)](*summed, BLOCK=block, num_warps=4, enable_fp_fusion=True)
        else:
            options = to.norm_options
            warps = min(NORM_WARPS, max(1, options["GROUPS"] // GROUPS_PER_WARP))
            combine_norm_kernel[n,](*summed, *to.norm, num_warps=warps, **options)

    def _glu_of_sorted(
        self, x: Tensor, units: Tensor | None, places: tuple[Tensor, Tensor], tile: Tile, n_used: int
    ) -> Tensor:
        """[assignments by expert, n_ff]"""
        n_assignments = len(x) * n_used
        numbers = x.float() if self.float32 else x
        hidden = torch.empty(n_assignments, self.n_ff, dtype=numbers.dtype, device=self.device)
        int8 = self.int8 and tile.int8
        if int8:
            numbers = quantize(x) if units is None else units
        grouped_glu_kernel[cdiv(self.n_ff, tile.bn), self._blocks(n_assignments, tile)](
            *(hidden, numbers, self._lut, *places, *self._gate_and_up()),
            *(self.n_experts, self.n_ff, len(x), self.n_embd, self.n_units, numbers.stride(0), n_used),
            **{"D_GATE": DECODERS[self.gate.format.id], "D_UP": DECODERS[self.up.format.id]},
            **{"ACTIVATION": self.activation, "INT8": int8, "EVEN": self.n_embd % UNIT == 0},
            **{"num_warps": max(tile.warps, tile.bn // GLU_ROWS_PER_WARP), **self._tile_options(tile)},
        )
        return hidden

    def _down_of_sorted(self, hidden: Tensor, places: tuple[Tensor, Tensor], tile: Tile) -> Tensor:
        """[assignments, n_embd] float32, in the order of the tokens again."""
        n_assignments = len(hidden)
        products = torch.empty(n_assignments, self.n_embd, dtype=torch.float32, device=self.device)
        int8 = self.hidden_int8 and tile.int8
        grouped_down_kernel[cdiv(self.n_embd, tile.bn), self._blocks(n_assignments, tile)](
            *(products, quantize(hidden) if int8 else hidden, self._lut, *places),
            *(self.down.words, _vectors(self.down)),
            *(self.n_experts, self.n_embd, n_assignments, self.n_ff, self.hidden_units, self.n_ff),
            **{"DECODE": DECODERS[self.down.format.id], "INT8": int8, "EVEN": self.n_ff % UNIT == 0},
            **{"num_warps": tile.warps, **self._tile_options(tile)},
        )
        return products

    def _blocks(self, n_assignments: int, tile: Tile) -> int:
        """As many as there can be: every expert that has assignments may have one block that is not full."""
        return (n_assignments + min(self.n_experts, n_assignments) * (tile.bm - 1)) // tile.bm

    def _tile_options(self, tile: Tile) -> dict[str, Any]:
        return {
            "BN": tile.bn,
            "BM": tile.bm,
            "E2": next_power_of_2(self.n_experts),
            "ISA": self.isa,
            "STAGES": tile.stages,
            "enable_fp_fusion": True,
        }

    def _sort(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The assignments by expert, and where those of each expert begin: int32 [n * n_used], [n_experts + 1]."""
        n = ids.numel()
        order = torch.empty(n, dtype=torch.int32, device=self.device)
        starts = torch.empty(self.n_experts + 1, dtype=torch.int32, device=self.device)
        block = min(2048, next_power_of_2(n))
        sort_kernel[(self.n_experts,)](
            ids, order, starts, n, self.n_experts, BLOCK=block, num_warps=4, enable_fp_fusion=True
        )
        return order, starts

    def _tile(self, n_assignments: int) -> Tile:
        """The tile for as many rows as an expert has on average."""
        if self.batch_invariant:
            return self.table.invariant
        return self.table.tile(cdiv(n_assignments, self.n_experts))

    def _gate_and_up(self) -> tuple[Any, ...]:
        return (
            *(self.gate.words, self.up.words, self.gate_bias, self.up_bias),
            *(_vectors(self.gate), _vectors(self.up)),
        )


def _vectors(stack: PackedWeight) -> int:
    """Vectors of 16 bytes from one expert to the next."""
    return stack.data.shape[-1] // 16


def _check(gate: PackedWeight, up: PackedWeight, down: PackedWeight, biases: dict[str, Tensor | None]) -> None:
    shapes = [weight.shape for weight in (gate, up, down)]
    if (
        any(len(shape) != 3 for shape in shapes)
        or gate.shape != up.shape
        or down.shape != (gate.shape[0], gate.shape[2], gate.shape[1])
    ):
        expected = "stacks [n_experts, n_ff, n_embd] twice and [n_experts, n_embd, n_ff]"
        raise ValueError(f"expected {expected}, found {', '.join(str(list(shape)) for shape in shapes)}")
    device = gate.data.device
    for weight in (gate, up, down):
        if weight.data.device != device or not weight.data.is_contiguous():
            found = f"strides {weight.data.stride()} on {weight.data.device}"
            raise ValueError(f"expected contiguous stacks on {device}, found {found}")
    for (name, bias), width in zip(biases.items(), (gate.shape[1], gate.shape[1], gate.shape[2]), strict=True):
        shape = (gate.shape[0], width)
        if bias is not None and (bias.shape != shape or bias.device != device or not bias.is_contiguous()):
            found = f"{list(bias.shape)} with strides {bias.stride()} on {bias.device}"
            raise ValueError(f"expected {name} {list(shape)}, contiguous, on {device}, found {found}")
