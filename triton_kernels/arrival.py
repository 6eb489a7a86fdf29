"""The last of several programs to finish, which goes on with what all of them have stored."""

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(counter, n, ISA: tl.constexpr):
    """Whether this program is the last of n to come here; it then sees what the others stored before.

    counter: int32, zero before and after, so that a captured graph can launch again. Read what others stored with
    cache_modifier=".cg": the cache next to the multiprocessor may hold older values.
    """
    if ISA == "gfx9":
        # CDNA's barrier waits for no store, and the atomic operation only for those of its own wave.
        lane = tl.arange(0, 64)
        wait: tl.constexpr = "s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1"
        tl.inline_asm_elementwise(wait, "=v,v", [lane], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == n - 1
    if last:
        tl.store(counter, 0)
    return last
