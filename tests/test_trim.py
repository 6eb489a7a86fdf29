"""What is let go of after starting up."""

from __future__ import annotations

from naiad.runtime.trim import LEAST_BYTES, _code

LARGE = f"{0x7F0000000000:x}-{0x7F0000000000 + LEAST_BYTES:x}"
CLEAN, CHANGED = "Private_Dirty:         0 kB", "Private_Dirty:         4 kB"


def test_only_code_that_nobody_has_changed_is_let_go_of() -> None:
    smaps = [
        (f"{LARGE} r-xp 00001000 fe:00 77  /usr/lib/library with spaces.so", CLEAN),
        (f"{LARGE} r-xp 00001000 fe:00 77  /usr/lib/changed.so", CHANGED),
        (f"{LARGE} r--p 00001000 fe:00 77  /usr/lib/numbers.so", CLEAN),
        (f"{LARGE} rwxp 00001000 fe:00 77  /usr/lib/writable.so", CLEAN),
        (f"{LARGE} r-xp 00000000 00:00 0", CLEAN),
        (f"{LARGE} r-xp 00000000 00:00 0  [vdso]", CLEAN),
        ("7f0000000000-7f0000001000 r-xp 00001000 fe:00 77  /usr/lib/small.so", CLEAN),
    ]
    text = "\n".join(f"{head}\nSize:  4 kB\n{dirty}\nVmFlags: rd ex" for head, dirty in smaps)
    assert list(_code(text)) == [(0x7F0000000000, 0x7F0000000000 + LEAST_BYTES)]
