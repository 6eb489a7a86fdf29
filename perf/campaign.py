"""All that is to be found out on a card, in its order: is it right, how fast, beside whom, what does it wait for.

python perf/campaign.py pack [--llama-cpp SOURCE]      where there is a network: what the card's machine may lack
python perf/campaign.py run [--minutes 9] [--out DIR]  on the card's machine; once more goes on with what is left
python perf/campaign.py run --only tests,sanitize      some stages, whether or not they have run before
python perf/campaign.py unpack DIR/campaign.tar.gz     results into perf/results, logs into .campaign/logs
python perf/campaign.py stages                         their names and what they run

`pack` fills .campaign-pack/ (about 8 MB): wheels of Python packages without compiled code, and llama.cpp's source.
`run` needs no network, installs nothing outside .campaign/, and leaves the card's settings alone. llama.cpp is built in
the background while results are checked; nothing is timed before that has ended. A stage begins only where the minutes
left suffice for it, so a run is never cut off in the midst of one. Exit code 1: a stage failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACK, WORK = ROOT / ".campaign-pack", ROOT / ".campaign"
RESULTS, LOGS, STATE = WORK / "results", WORK / "logs", WORK / "state.json"
LLAMA_CPP, ARCHIVE = WORK / "llama.cpp", PACK / "llama.cpp.tar.xz"
# What a machine with torch and Triton may lack; none has compiled code or needs more than is there.
WHEELS = ("gguf", "einops", "gemlite")
BUILD = "build"
# Lines of a stage's output that are printed when it has ended.
SHOWN = 12


@dataclass(frozen=True, slots=True)
class Stage:
    """A program with its arguments. seconds: the most that it may take; results: the name of the file that it writes,
    with ARCH for the card's architecture, if it writes one; timed: whether it wants the machine for itself."""

    name: str
    program: tuple[str, ...]
    seconds: int
    results: str = ""
    timed: bool = True


def models(name: str, *options: str, seconds: int) -> Stage:
    program = ("perf/models.py", "--models", name, *options)
    return Stage(name, program, seconds, f"models-ARCH-{name}.json")


EIGHTS = ("--batches", "1,8", "--depths", "0,8192", "--served", "0")
STAGES = (
    Stage(BUILD, ("perf/peer.py", "build", str(ARCHIVE), str(LLAMA_CPP)), 540, timed=False),
    Stage(
        "tests", ("-m", "pytest", "-m", "gpu and not slow", "-n", "12", "--dist", "worksteal", "-q"), 420, timed=False
    ),
    models(
        *("llama-3-8b", "--batches", "1,2,4,8,16,32,64,128,256", "--depths", "0,1024,8192", "--served", "256"),
        seconds=360,
    ),
    Stage("kernels", ("perf/kernels.py", "--quick"), 240, "kernels-ARCH-quick.json"),
    models("qwen3-30b-a3b", *EIGHTS, seconds=150),
    models("qwen2.5-32b", *EIGHTS, seconds=150),
    models("qwen2.5-7b", *EIGHTS, seconds=120),
    models("llama-3-70b", *EIGHTS, seconds=210),
    models("llama-3.2-1b", *EIGHTS, seconds=90),
    Stage("peer", ("perf/peer.py", "run", str(LLAMA_CPP)), 400, "peer-ARCH.json"),
    Stage("counters", ("perf/counters.py",), 150, "counters-ARCH.json"),
    Stage("sanitize", ("perf/sanitize.py",), 300, "sanitize-ARCH.json", timed=False),
    Stage("tune", ("perf/tune.py",), 420, "tuning.json"),
    Stage("all-kernels", ("perf/kernels.py",), 540, "kernels-ARCH.json"),
)

# ---- before -----------------------------------------------------------------------------------------------------


def pack(source: Path | None) -> None:
    """Wheels, and llama.cpp's source: `source`, or what the source distribution of llama-cpp-python holds. ValueError
    for wheels of compiled code."""
    shutil.rmtree(PACK, ignore_errors=True)
    PACK.mkdir()
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(PACK), *WHEELS], check=True)
    made_of = [wheel.name for wheel in PACK.glob("*.whl") if not wheel.name.endswith("-none-any.whl")]
    if made_of:
        raise ValueError(f"expected wheels for any machine, found {', '.join(made_of)}")
    with tempfile.TemporaryDirectory() as download:
        if source is None:
            name = "llama-cpp-python"
            line = [*pip, "download", "-q", "--no-deps", "--no-binary", name, "-d", download, name]
            subprocess.run(line, check=True)
            (source,) = Path(download).glob("*.tar.gz")
        subprocess.run([sys.executable, "perf/peer.py", "pack", str(source), str(ARCHIVE)], cwd=ROOT, check=True)


def prepare() -> dict[str, str]:
    """The environment of the stages: the tree under its import name, and the packages that were carried."""
    links, packages = WORK / "links", WORK / "packages"
    shutil.rmtree(links, ignore_errors=True)
    (links / "naiad").mkdir(parents=True)
    for path in (
        *(ROOT / "runtime/naiad").iterdir(),
        *(ROOT / n for n in ("runtime", "quant", "loaders", "triton_kernels")),
    ):
        (links / "naiad" / path.name).symlink_to(path)
    wheels = sorted(PACK.glob("*.whl"))
    if wheels and not packages.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(packages)]
        subprocess.run([*pip, *map(str, wheels)], check=True)
    for folder in (RESULTS, LOGS):
        folder.mkdir(exist_ok=True)
    search = os.pathsep.join(filter(None, (str(links), os.environ.get("PYTHONPATH", ""), str(packages))))
    return {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"}


# ---- stages -----------------------------------------------------------------------------------------------------


class Campaign:
    """What has run, and what is left. Processes are killed with all that they started."""

    def __init__(self, minutes: float, environment: dict[str, str]) -> None:
        self.start, self.seconds, self.environment = time.monotonic(), minutes * 60, environment
        self.state: dict[str, Any] = json.loads(STATE.read_text()) if STATE.exists() else {}
        self.building: subprocess.Popen[bytes] | None = None
        self.failed = False

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def run(self, stages: Sequence[Stage]) -> None:
        """In their order. Where time does not suffice for one, it may for another; the first begins in any case."""
        begun = False
        try:
            for stage in stages:
                if stage.name == BUILD:
                    self.building = self._begin(stage)
                    continue
                if stage.timed:
                    self._wait_for_build()
                if begun and self.left() < stage.seconds:
                    self.say(f"{stage.name}: {self.left():.0f} s are left, it may take {stage.seconds}")
                    continue
                begun = True
                self._finish(stage, self._begin(stage), min(stage.seconds, max(1.0, self.left())))
            self._wait_for_build()
        finally:
            if self.building is not None:
                kill(self.building)

    def _begin(self, stage: Stage) -> subprocess.Popen[bytes]:
        out = ["--out", str(RESULTS / stage.results)] if stage.results else []
        self.say(f"{stage.name}: {' '.join([*stage.program, *out])}")
        with (LOGS / f"{stage.name}.txt").open("wb") as log:
            line = [sys.executable, *stage.program, *out]
            return subprocess.Popen(
                line, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _wait_for_build(self) -> None:
        if self.building is not None:
            (stage,) = (stage for stage in STAGES if stage.name == BUILD)
            self._finish(stage, self.building, max(0, self.left()), again=True)
            self.building = None

    def _finish(self, stage: Stage, process: subprocess.Popen[bytes], seconds: float, again: bool = False) -> None:
        """Waits; a stage that takes too long has ended too, unless it can go on another time."""
        start = time.monotonic()
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            kill(process)
            code = None
        self.failed |= code != 0
        tail = (LOGS / f"{stage.name}.txt").read_text(errors="replace").splitlines()[-SHOWN:]
        took = time.monotonic() - start
        self.say(f"{stage.name}: {'cut off' if code is None else f'exit code {code}'} after {took:.0f} s")
        print("".join(f"    {line[:200]}\n" for line in tail), end="", flush=True)
        if code is not None or not again:
            self.state[stage.name] = {"exit_code": code, "seconds": round(took)}
            STATE.write_text(json.dumps(self.state, indent=1) + "\n")


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def collect(out: Path) -> Path:
    """Results, logs and the state of the stages in one file."""
    out.mkdir(parents=True, exist_ok=True)
    archive = out / "campaign.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in (RESULTS, LOGS, STATE):
            if path.exists():
                tar.add(path, path.name)
    return archive


def unpack(archive: Path) -> None:
    """Where each file goes is printed. Tiles and thresholds go beside the kernels."""
    WORK.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(WORK, filter="data")
    for path in sorted(RESULTS.glob("*.json")):
        target = ROOT / "triton_kernels/tuning.json"
        if path.name != target.name:
            arch = json.loads(path.read_text())["device"]["arch"]
            target = ROOT / "perf/results" / path.name.replace("ARCH", arch)
        shutil.copy(path, target)
        print(target.relative_to(ROOT))


# ---- the program ------------------------------------------------------------------------------------------------


def chosen(only: str | None, state: dict[str, Any]) -> list[Stage]:
    """ValueError for unknown names."""
    if only is None:
        return [stage for stage in STAGES if stage.name not in state]
    names = only.split(",")
    unknown = [name for name in names if name not in {stage.name for stage in STAGES}]
    if unknown:
        raise ValueError(f"expected stages among {', '.join(stage.name for stage in STAGES)}, found {unknown[0]!r}")
    return [stage for stage in STAGES if stage.name in names]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("pack", help="what the card's machine may lack")
    action.add_argument("--llama-cpp", type=Path, help="its source, in place of llama-cpp-python's from the index")
    action = actions.add_parser("run", help="the stages that are left")
    action.add_argument("--minutes", type=float, default=9.0, help="by default 9")
    action.add_argument("--only", help="stages, separated by commas")
    action.add_argument("--out", type=Path, help="where campaign.tar.gz goes; by default .campaign")
    actions.add_parser("unpack", help="results into perf/results").add_argument("archive", type=Path)
    actions.add_parser("stages", help="what there is")
    options = parser.parse_args(argv)
    try:
        if options.action == "pack":
            pack(options.llama_cpp)
        elif options.action == "unpack":
            unpack(options.archive)
        elif options.action == "stages":
            print(*(f"{stage.name:<14} {stage.seconds:4} s  {' '.join(stage.program)}" for stage in STAGES), sep="\n")
        else:
            campaign = Campaign(options.minutes, prepare())
            stages = chosen(options.only, campaign.state)
            try:
                campaign.run(stages)
            finally:
                campaign.say(f"wrote {collect(options.out or WORK)}")
            return int(campaign.failed)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"campaign.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
