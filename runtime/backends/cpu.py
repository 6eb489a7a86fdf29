"""The CPU: the operations on the kernels of cpu_kernels/.

All layers are served as one: a program of about twelve instructions for each (cpu_layers.py), through which all threads
walk together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...loaders.stored import StoredTensor
from ...quant.formats import Q4_K
from ..batch import Batch
from ..cache import LayerCache
from ..cpu_kernels import Kernels
from ..cpu_kernels.language import LANES
from ..cpu_kernels.product import SERVED
from ..cpu_kernels.tiles import n_strips, strip_bytes
from ..layers import Attention, Linear, Mlp, Moe, Norm
from ..ops import Angles, Declined, Stream, Weight
from .cpu_layers import AttentionHalf, MlpHalf, MoeHalf, Product, Rows, Steps
from .cpu_programs import Buffers, Part, Plan
from .cpu_routes import MIN_ROWS, Route, fastest_route, timed
from .cpu_weights import TiledWeight, decoded_product, empty_bytes, pack

if TYPE_CHECKING:
    from ..decoder import Layer

LEFT_TO_TORCH = Declined("part of all layers or left to torch", expected=True)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The product that routes are measured with.
MEASURED, MEASURED_ROWS = 2048, 256


class CpuOps:
    """The operations on the CPU; what the kernels do not serve is left to torch.

    mixed: prompts are left to torch where it multiplies them faster. Their results are then others than the kernels',
    and depend on what is multiplied together.
    """

    name = "cpu"

    def __init__(self, kernels: Kernels, *, fused_attention: bool = True, mixed: bool = False) -> None:
        self.kernels, self.fused_attention = kernels, fused_attention
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.buffers, self.steps = Buffers(), Steps()
        self._route: Route | None = None if mixed else "int8"
        self._plans: dict[Any, tuple[Plan | Declined, Any]] = {}
        self._stacks: dict[tuple[int, int], tuple[Plan | Declined, LayerCache, Layer]] = {}

    # ---- weights ----

    def load(self, tensor: StoredTensor, scale: torch.Tensor | None = None) -> Weight | Declined:
        fmt, shape = tensor.format, tensor.shape
        if fmt.name not in SERVED:
            return Declined(f"no kernel decodes {fmt.name}")
        if shape[-1] % 32:
            return Declined(f"rows of {shape[-1]} weights are no multiple of 32")
        if len(shape) == 3 and shape[-2] % LANES:
            return Declined(f"experts of {shape[-2]} rows are no multiple of {LANES}")
        return pack(tensor, self.kernels, scale)

    def load_embedding(self, tensor: StoredTensor) -> Weight | Declined:
        return self.load(tensor)

    # ---- single operations ----

    def rows(self, weight: Weight, ids: torch.Tensor) -> torch.Tensor | Declined:
        plan = self.plan(id(weight), lambda: [Rows(weight)], weight)
        if isinstance(plan, Declined):
            return plan
        assert not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < weight.shape[0])
        ids, y = ids.contiguous(), torch.empty(len(ids), weight.shape[-1])
        plan.run(len(ids), ids=ids.data_ptr(), y=y.data_ptr())
        return y

    def linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, norm: Norm | None = None
    ) -> torch.Tensor | Declined:
        plan = self.plan((id(weight), id(bias), id(norm)), lambda: [Product(weight, bias, norm)], (weight, bias, norm))
        if isinstance(plan, Declined):
            return plan
        part = plan.parts[0]
        assert isinstance(part, Product)
        n_rows = x.shape[0]
        route = self.prompt_route(n_rows)
        if norm is None and route != "int8" and part.weight.format.is_quantized:
            y = decoded_product(x, part.weight, DTYPES[route], self.kernels)
            return y if bias is None else y + bias
        x, y = x.float().contiguous(), torch.empty(n_rows, part.weight.width)
        plan.run(n_rows, x=x.data_ptr(), y=y.data_ptr())
        return y[:, : part.weight.n_out]

    def logits(self, x: torch.Tensor, norm: Norm, output: Linear) -> torch.Tensor | Declined:
        return self.linear(x, output.weight, output.bias, norm)

    # What is not part of a program is rare, and torch's as well as anybody's.

    def norm(self, *args: object) -> Declined:
        return LEFT_TO_TORCH

    def rope(self, *args: object) -> Declined:
        return LEFT_TO_TORCH

    def glu(self, *args: object) -> Declined:
        return LEFT_TO_TORCH

    def experts(self, *args: object) -> Declined:
        return LEFT_TO_TORCH

    def attention(self, *args: object) -> Declined:
        return LEFT_TO_TORCH

    # ---- layers ----

    def layers(
        self,
        layers: Sequence[Layer],
        stream: Stream,
        angles: dict[int, Angles],
        caches: Sequence[LayerCache],
        batch: Batch,
    ) -> Stream | Declined:
        if self.prompt_route(stream.x.shape[0]) != "int8":
            return Declined("torch multiplies prompts faster", expected=True)
        key = id(layers[0]), len(layers)
        plan = self._stacks.get(key)
        if plan is None or plan[1] is not caches[0]:
            # Instructions know where a cache lies. What the key is made of is kept, so that nothing else can become it.
            made = self._made(lambda: self._parts_of(layers, caches, angles))
            plan = self._stacks[key] = made, caches[0], layers[0]
        if isinstance(plan[0], Declined):
            return plan[0]
        self.steps.begin(batch, angles)
        plan[0].run(stream.x.shape[0], x=stream.x.data_ptr())
        return Stream(stream.x)

    def _parts_of(self, layers: Sequence[Layer], caches: Sequence[LayerCache], angles: dict[int, Angles]) -> list[Part]:
        if not self.fused_attention:
            raise ValueError("fused attention is switched off")
        parts: list[Part] = []
        for layer, cache in zip(layers, caches, strict=True):
            rope, p = id(layer.rope), layer.attention.params
            tables, turns = self.steps.tables(p, cache.group), self.steps.angles(rope)
            parts.append(AttentionHalf(layer.attention, cache, tables, turns, 2 * angles[rope][0].shape[1]))
            parts.append(MoeHalf(layer.mlp) if isinstance(layer.mlp, Moe) else MlpHalf(layer.mlp))
        return parts

    def attention_block(self, *args: object) -> Declined:
        return LEFT_TO_TORCH

    def mlp_block(self, block: Mlp | Moe, stream: Stream, following: Attention | None) -> Stream | Declined:
        if isinstance(block, Mlp) and self.prompt_route(stream.x.shape[0]) != "int8":
            return Declined("torch multiplies prompts faster", expected=True)
        plan = self.plan(id(block), lambda: [MoeHalf(block) if isinstance(block, Moe) else MlpHalf(block)], block)
        if isinstance(plan, Declined):
            return plan
        plan.run(stream.x.shape[0], x=stream.x.data_ptr())
        return Stream(stream.x)

    def prompt_route(self, n_rows: int) -> Route:
        """How so many rows are multiplied with quantised weights."""
        if n_rows < MIN_ROWS:
            return "int8"
        if self._route is None:
            self._route = fastest_route(self.kernels, self._measure)
        return self._route

    def _measure(self, route: Route) -> float:
        """Seconds that a product of usual size takes."""
        weight = TiledWeight(Q4_K, (MEASURED, MEASURED), empty_bytes(n_strips(MEASURED), strip_bytes(Q4_K, MEASURED)))
        x, y = torch.ones(MEASURED_ROWS, MEASURED), torch.empty(MEASURED_ROWS, MEASURED)
        if route != "int8":
            return timed(lambda: decoded_product(x, weight, DTYPES[route], self.kernels))
        plan = Plan(self.kernels, self.buffers, [Product(weight, None)])
        plan.run(2, x=x.data_ptr(), y=y.data_ptr())
        return timed(lambda: plan.run(len(x), x=x.data_ptr(), y=y.data_ptr()))

    def plan(self, key: Any, parts: Callable[[], Sequence[Part]], keep: Any) -> Plan | Declined:
        """The plan of parts, or why there is none; made once. keep: what the key's ids belong to."""
        if key not in self._plans:
            self._plans[key] = self._made(parts), keep
        return self._plans[key][0]

    def _made(self, parts: Callable[[], Sequence[Part]]) -> Plan | Declined:
        try:
            return Plan(self.kernels, self.buffers, parts())
        except ValueError as error:
            return Declined(str(error))

    def describe(self) -> list[str]:
        kernels, host = self.kernels, self.kernels.compiler.host
        threads = f"{kernels.plans.decode.n_threads} threads, {kernels.plans.batch.n_threads} for prompts"
        return [f"cpu: {host.cpu}, {host.isa.name}, {threads}"]
