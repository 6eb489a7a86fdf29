"""Linear layers over packed weights: which kernel, which tile, which launch.

A `Linear` is made once, when a model is loaded, and checked then; a call only chooses by the number of rows and
launches. It stands for one of three things: a matrix; up to three side by side (Q, K and V), in any formats; or a gate
and an up matrix whose products are combined by an activation.

For few rows the matvec kernel reads x in units (activations.py). Who computes x may write them at once: `form` says
which; `gated` and `with_norm` do that for the next layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..quant import formats
from ..quant.floats import FLOAT_DTYPES
from . import codebooks
from .activations import FLOATS, Form, Units, converted, empty_form, in_form, quantize
from .decode import DECODERS
from .gates import Activation as Activation
from .gates import glu_reference
from .grid import cdiv, next_power_of_2
from .matmul import matmul_glu_kernel, matmul_kernel, reduce_kernel
from .matvec import matvec_glu_kernel, matvec_glu_units_kernel, matvec_kernel, matvec_norm_kernel
from .norms import NextNorm, norm, row_groups
from .packing import UNIT, units
from .tuning import SharedTile, Tile, Tuning, arch_of, isa, multiprocessors, tuning, warp_size
from .weights import PackedWeight

Route = Literal["int8", "exact"]

# Memory for decoded weights at a time.
WORKSPACE_BYTES = 256 * 2**20
MAX_SPLITS = 8
# Decoders that need more registers than a shared tile leaves them.
NEVER_SHARED = {formats.Q1_0, formats.TQ1_0, formats.TQ2_0, formats.IQ3_S}
# A row that the last program of a matrix-vector product norms lies in its registers: so many values per lane at most.
MAX_NORM_WIDTH = 8192
MAX_NORM_ROWS = 64
MAX_NORM_PER_LANE = 64


class Linear:
    """y = x [W0; W1; W2]^T (+ bias) (+ residual), or y = activation(x W0^T) * (x W1^T).

    weights: one to three matrices with the same n_in; with an activation two of one shape.
    bias: [sum of n_out]; with an activation that of the gate, then that of up.
    route: "int8" quantises x to 8 bits per group of 32 where that is faster; "exact" never does: it decodes weights to
        the type of x (float32 in the matvec kernel) and accumulates in float32.
    batch_invariant: a row's result does not depend on how many rows are beside it.
    table: kernels and tiles; by default those of the weights' device.
    workspace_bytes: memory for decoded weights, used by calls with many rows.

    ValueError where weights, bias and activation do not fit each other.
    """

    def __init__(
        self,
        weights: Sequence[PackedWeight],
        *,
        bias: Tensor | None = None,
        activation: Activation | None = None,
        route: Route = "int8",
        batch_invariant: bool = False,
        table: Tuning | None = None,
        workspace_bytes: int = WORKSPACE_BYTES,
    ) -> None:
        _check(weights, bias, activation)
        self.weights = tuple(weights)
        self.bias, self.activation, self.batch_invariant = bias, activation, batch_invariant
        self.device = weights[0].data.device
        self.n_in = weights[0].shape[1]
        self.widths = [weight.shape[0] for weight in weights]
        self.n_out = self.widths[0] if activation else sum(self.widths)
        # Plain numbers have no integers to multiply.
        self.int8 = route == "int8" and not any(weight.format in FLOAT_DTYPES for weight in weights)
        self.float32 = any(weight.format is formats.F32 for weight in weights)
        arch = arch_of(self.device)
        self.table = table or tuning(arch)
        self.isa, self.warp_size = isa(arch), warp_size(arch)
        unshared = any(weight.format in NEVER_SHARED for weight in weights)
        self._shared = None if unshared else self.table.shared
        self.workspace_bytes = workspace_bytes
        self.n_units = units(self.n_in)
        empty = [None] * (3 - len(weights))
        self._words = [weight.words for weight in weights] + empty
        self._decoders = [DECODERS[weight.format.id] for weight in weights] + empty
        self._sizes = self.widths + [0] * len(empty)
        self._lut = codebooks.table(self.device)
        self._lanes = vector_lanes(self.table, self.warp_size, self.n_units)
        # Groups of 32 outputs that become units are one program's.
        vector = self.table.vector
        self._group_rows = max(32, vector.rows)
        grouped = replace(self.table, vector=replace(vector, rows=self._group_rows))
        self._group_lanes = vector_lanes(grouped, self.warp_size, self.n_units)
        # How many programs have stored their part of a row: zero between launches.
        self._arrived = torch.zeros(MAX_NORM_ROWS, dtype=torch.int32, device=self.device)

    def form(self, m: int) -> Form:
        """What m rows of x are read as. Numbers ("plain") are taken in any case."""
        if not m or self.batch_invariant or self.float32:
            return "plain"
        if self.int8:
            return "int8" if m <= self.table.matvec_rows else "plain"
        return "spread" if m <= self.table.exact_rows else "plain"

    def __call__(self, x: Tensor | Units, residual: Tensor | None = None) -> Tensor:
        """x [M, n_in], rows with unit stride, residual [M, n_out] contiguous -> [M, n_out] in the type of x.

        x may be units where `form(M)` says so. ValueError for what does not fit.
        """
        self._check_call(x, residual)
        m, table = len(x), self.table
        y = torch.empty(m, self.n_out, dtype=x.dtype, device=self.device)
        if m == 0:
            return y
        form = self.form(m)
        if form != "plain":
            self._matvec(_data(x, form), y, residual)
            return y
        assert isinstance(x, Tensor)
        if self.batch_invariant:
            self._matmul(x, y, residual, table.invariant, splits=1)
        elif self.float32:
            # Matrices of float32 are small (routers), and their kernels would need more registers than there are.
            wide = torch.empty(m, self.n_out, dtype=torch.float32, device=self.device)
            self._decode_and_multiply(x.float(), wide, residual)
            y.copy_(wide)
        elif m < table.workspace_rows:
            tile = self._tile(x)
            self._matmul(x, y, residual, tile, self._splits(m, tile))
        else:
            self._decode_and_multiply(x, y, residual)
        return y

    def gated(self, x: Tensor | Units, form: Form) -> Tensor | Units:
        """The layer's result (of a gated pair) in a form that the next layer reads; without a launch of its own where
        x is read in units."""
        m = len(x)
        mine = self.form(m)
        if form == "plain" or mine == "plain" or not self.activation:
            return converted(self(x), form)
        self._check_call(x, None)
        out = empty_form(m, self.n_out, form, x.dtype, self.device)
        (gate, up, _), (d_gate, d_up, _), options = self._words, self._decoders, self._vector_options(m)
        options |= {"R": self._group_rows, "LANES": self._group_lanes}
        options["num_warps"] = self._group_lanes // self.warp_size
        grid = (cdiv(m, options["BM"]), cdiv(UNIT * units(self.n_out), self._group_rows))
        matvec_glu_units_kernel[grid](
            *(out, _data(x, mine), self._lut, self.bias, gate, up, self.n_out, m, self.n_units),
            **{"D_GATE": d_gate, "D_UP": d_up, "ACTIVATION": self.activation, "FORM": form, **options},
        )
        return in_form(out, self.n_out, form, x.dtype)

    def with_norm(
        self, x: Tensor | Units, residual: Tensor | None, following: NextNorm, form: Form
    ) -> tuple[Tensor, Tensor | Units | None]:
        """The stream after this layer, [M, n_out], and its norm in a form that the next layer reads (norms.norm): one
        launch for a matrix that is no wider than a program can hold, where x is read in units."""
        m = len(x)
        mine = self.form(m)
        if mine == "plain" or following.weight is None or not self._can_norm(m, row_groups(self.n_out, form)):
            if following.post_weight is None:
                return norm(self(x, residual), following, form=form)
            return norm(self(x), following, residual, form)
        if following.width != self.n_out:
            raise ValueError(f"expected a norm of {self.n_out} values, found one of {following.width}")
        self._check_call(x, residual)
        y = torch.empty(m, self.n_out, dtype=x.dtype, device=self.device)
        stream = None if following.post_weight is None else torch.empty_like(y)
        out = empty_form(m, self.n_out, form, x.dtype, self.device)
        options = self._vector_options(m)
        by = (following.weight, following.bias, following.eps, following.post_weight, following.post_eps)
        matvec_norm_kernel[cdiv(m, options["BM"]), cdiv(self.n_out, options["R"])](
            *(y, _data(x, mine), self._lut, self.bias, residual, self._words[0], self.n_out, m, self.n_units),
            *(self._arrived, stream, out, *by),
            **{"DECODE": self._decoders[0], "LAYER": following.layer, "FORM": form},
            **{"GROUPS": row_groups(self.n_out, form), **options},
        )
        return y if stream is None else stream, in_form(out, self.n_out, form, x.dtype)

    def _can_norm(self, m: int, groups: int) -> bool:
        width = min(MAX_NORM_WIDTH, MAX_NORM_PER_LANE * self._lanes)
        return len(self.weights) == 1 and m <= MAX_NORM_ROWS and 32 * groups <= width

    def _check_call(self, x: Tensor | Units, residual: Tensor | None) -> None:
        # One comparison of tuples: what cannot change between calls was checked when the layer was made.
        if isinstance(x, Units):
            found_units = (x.n_in, "int8" if x.int8 else "spread", x.data.device)
            if found_units != (self.n_in, self.form(len(x)), self.device):
                expected = f"{self.n_in} values per row as {self.form(len(x))} on {self.device}"
                raise ValueError(f"expected {expected}, found units of {found_units}")
        elif (x.dim(), x.shape[-1], x.stride(-1), x.device) != (2, self.n_in, 1, self.device) or x.dtype not in FLOATS:
            expected = f"x [M, {self.n_in}] with unit stride, float32, float16 or bfloat16, on {self.device}"
            found = f"{x.dtype} {list(x.shape)} with strides {x.stride()} on {x.device}"
            raise ValueError(f"expected {expected}, found {found}")
        if residual is not None and (
            self.activation or residual.shape != (len(x), self.n_out) or not residual.is_contiguous()
        ):
            what = "no residual beside an activation" if self.activation else f"a residual [{len(x)}, {self.n_out}]"
            raise ValueError(f"expected {what}, contiguous, found {list(residual.shape)}, {residual.stride()}")

    # ---- the kernels --------------------------------------------------------------------------------------------

    def _vector_options(self, m: int) -> dict[str, Any]:
        vector = self.table.vector
        return {
            "INT8": self.int8,
            "R": vector.rows,
            "LANES": self._lanes,
            "BM": min(vector.batch, next_power_of_2(m)) if self.int8 else 1,
            "ISA": self.isa,
            "num_warps": self._lanes // self.warp_size,
            "enable_fp_fusion": True,
        }

    def _matvec(self, operand: Tensor, y: Tensor, residual: Tensor | None) -> None:
        options, rows = self._vector_options(len(y)), self.table.vector.rows
        shape, batches = (len(y), self.n_units), cdiv(len(y), options["BM"])
        (w0, w1, w2), (n0, n1, n2), (d0, d1, d2) = self._words, self._sizes, self._decoders
        if self.activation:
            matvec_glu_kernel[batches, cdiv(n0, rows)](
                *(y, operand, self._lut, self.bias, w0, w1, n0, *shape),
                **{"D_GATE": d0, "D_UP": d1, "ACTIVATION": self.activation, **options},
            )
        else:
            matvec_kernel[batches, sum(cdiv(n, rows) for n in self.widths)](
                *(y, operand, self._lut, self.bias, residual, w0, w1, w2, n0, n1, n2, *shape),
                **{"D0": d0, "D1": d1, "D2": d2, **options},
            )

    def _tile(self, x: Tensor) -> Tile | SharedTile:
        shared = self._shared
        if shared is not None and shared.min_rows <= len(x) <= shared.bm and x.itemsize == 2:
            return shared
        return self.table.tile(len(x))

    def _matmul(self, x: Tensor, y: Tensor, residual: Tensor | None, tile: Tile | SharedTile, splits: int) -> None:
        m, shared = len(x), isinstance(tile, SharedTile)
        int8 = self.int8 and isinstance(tile, Tile) and tile.int8
        options: dict[str, Any] = {
            "INT8": int8,
            "EVEN": self.n_in % UNIT == 0,
            "BN": tile.bn,
            "BM": tile.bm,
            "ISA": self.isa,
            "STAGES": tile.stages,
            "num_warps": tile.warps,
            "enable_fp_fusion": True,
        }
        numbers = x.float() if self.float32 else x
        operand = quantize(x) if int8 else numbers
        shape = (m, self.n_in, self.n_units, x.stride(0))
        (w0, w1, w2), (n0, n1, n2), (d0, d1, d2) = self._words, self._sizes, self._decoders
        columns = cdiv(m, tile.bm)
        if self.activation and splits == 1 and not shared:
            matmul_glu_kernel[cdiv(n0, tile.bn), columns](
                *(y, operand, self._lut, self.bias, w0, w1, n0, *shape),
                **{"D_GATE": d0, "D_UP": d1, "ACTIVATION": self.activation, **options},
            )
            return
        width = sum(self.widths)
        # A gate and what it opens would not both fit into the registers of a shared tile.
        whole = splits == 1 and not self.activation
        target = y if whole else torch.empty(splits, m, width, dtype=torch.float32, device=self.device)
        added = (self.bias, residual) if whole else (None, None)
        matmul_kernel[sum(cdiv(n, tile.bn) for n in self.widths), columns, splits](
            *(target, operand, self._lut, *added, w0, w1, w2, n0, n1, n2, *shape),
            **{"D0": d0, "D1": d1, "D2": d2, "SHARED": shared, "SPLITS": splits, **options},
        )
        if not whole:
            block = min(1024, next_power_of_2(self.n_out))
            reduce_kernel[m, cdiv(self.n_out, block)](
                *(y, target, self.bias, residual, self.n_out, m * width),
                **{"ACTIVATION": self.activation, "SPLITS": splits, "BLOCK": block, "num_warps": 4},
            )

    def _splits(self, m: int, tile: Tile | SharedTile) -> int:
        """1, 2, 4 or 8: among how many programs K is divided."""
        if isinstance(tile, Tile) and not tile.split:
            return 1
        programs = sum(cdiv(n, tile.bn) for n in self.widths) * cdiv(m, tile.bm)
        splits = 1
        while splits * 2 <= min(MAX_SPLITS, self.n_units) and splits * programs < 2 * multiprocessors(self.device):
            splits *= 2
        return splits

    def _decode_and_multiply(self, x: Tensor, y: Tensor, residual: Tensor | None) -> None:
        if self.activation:
            gate, up = (self._product(x, weight, torch.empty_like(y)) for weight in self.weights)
            if self.bias is not None:
                gate += self.bias[: self.n_out]
                up += self.bias[self.n_out :]
            y.copy_(glu_reference(gate, up, self.activation))
            return
        start = 0
        for weight, width in zip(self.weights, self.widths, strict=True):
            self._product(x, weight, y[:, start : start + width])
            start += width
        if self.bias is not None:
            y += self.bias
        if residual is not None:
            y += residual

    def _product(self, x: Tensor, weight: PackedWeight, out: Tensor) -> Tensor:
        """x W^T into out [M, n_out], W decoded to the type of x in parts of at most workspace_bytes."""
        n_out, n_in = weight.shape
        step = min(n_out, max(1, self.workspace_bytes // (n_in * x.itemsize)))
        workspace = torch.empty(step, n_in, dtype=x.dtype, device=self.device)
        for start in range(0, n_out, step):
            part = weight.dense_into(start, workspace[: min(step, n_out - start)])
            torch.mm(x, part.t(), out=out[:, start : start + len(part)])
        return out


def _data(x: Tensor | Units, form: Form) -> Tensor:
    """The units of x in a form other than "plain"."""
    given = x if isinstance(x, Units) else converted(x, form)
    assert isinstance(given, Units)
    return given.data


def _check(weights: Sequence[PackedWeight], bias: Tensor | None, activation: Activation | None) -> None:
    shapes = [weight.shape for weight in weights]
    if not 1 <= len(weights) <= 3 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"expected one to three matrices, found shapes {shapes}")
    device = weights[0].data.device
    if len({shape[1] for shape in shapes}) > 1 or any(weight.data.device != device for weight in weights):
        raise ValueError(f"expected matrices with one n_in on one device, found shapes {shapes}")
    combined = f"an activation combines two matrices of one shape {'without' if bias is None else 'and'} a bias"
    if activation is not None and (len(weights) != 2 or shapes[0] != shapes[1]):
        raise ValueError(f"{combined}, found {len(weights)} of shapes {shapes}")
    width = sum(shape[0] for shape in shapes)
    if bias is not None and (bias.shape != (width,) or bias.device != device):
        expected = f"expected a bias [{width}] on {device}, found {list(bias.shape)} on {bias.device}"
        raise ValueError(expected if activation is None else f"{combined}: {expected}")


def vector_lanes(table: Tuning, warp_size: int, n_units: int) -> int:
    """Lanes of a matvec program: as many as the table allows while at most a fifth of them wait in the last step."""
    across = max(1, warp_size * table.vector.warps // table.vector.rows)
    while across > 1 and 4 * across * -(-n_units // across) > 5 * n_units:
        across //= 2
    return max(warp_size, across * table.vector.rows)
