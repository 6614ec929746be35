"""All that only a GPU can say, in one go: checks, speed, memory, a kill; a table at the end.

    python benchmarks/gpu_session.py --minutes 9
    python benchmarks/gpu_session.py --minutes 9 --packages wheels   # for a bare image, see below
    python benchmarks/gpu_session.py --device cpu --minutes 2        # the same in small, to try it

Parts run in order of worth, each in a process and under a time limit of its own; those that time
nothing run beside each other, first; torch compiles timm in the background until it is timed.
What is done is kept in --out, so the same command goes on where the time ended. It writes
session.json, session.md and log.txt there, and ends with 1 if a check failed or an obligatory part
was not done.

The image needs torch with Triton, numpy, pyarrow and safetensors; timm where it is to be compared.
--packages names a folder of wheels of pydantic, ruamel.yaml and simplejpeg for its Python:
`pip download --only-binary :all: --python-version 3.12 -d wheels pydantic ruamel.yaml simplejpeg`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
FACTS = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    network: str
    side: int
    batch: int
    rounds: int
    photos: int
    steps: int
    """Of the pretraining."""


LARGE = Size("R50x1", 224, 256, 5, 800, 600)
SMALL = Size("R14x0.25", 32, 4, 1, 40, 8)


@dataclass(frozen=True)
class Part:
    """Something to find out."""

    name: str
    seconds: int
    """At most; on a CPU, in small, a fifth."""
    what: str
    do: Callable[[Session], FACTS]
    obligatory: bool = False
    gpu_alone: bool = False
    timed: bool = True
    """Whether nothing may run beside it."""


class Session:
    """What the parts share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device: str = arguments.device
        self.cuda = self.device == "cuda"
        self.size = LARGE if self.cuda else SMALL
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [
                    os.environ.get("PYTHONPATH", ""),
                    str(self.site),
                    str(PROJECT),
                    str(PROJECT / "tests"),
                ]
            ),
            "TORCHINDUCTOR_CACHE_DIR": str(self.out / "inductor"),
            "TRITON_CACHE_DIR": str(self.out / "triton"),
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def site(self) -> Path:
        """Folder that packages are installed into."""
        return self.out / "site"

    @property
    def few(self) -> list[str]:
        """Return the flag of checks in small."""
        return [] if self.cuda else ["--few"]

    def run(self, *words: str) -> str:
        """Run a Python program of the project; return what it printed.

        Raises:
            RuntimeError: If it failed; the end of what it said.
        """
        said: list[str] = []
        with (self.out / "log.txt").open("a", buffering=1) as log, TemporaryFile("w+") as errors:
            log.write(f"$ {' '.join(words)}\n")
            process = subprocess.Popen(
                [sys.executable, *words], cwd=PROJECT, env=self.environment, text=True,
                stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:  # so a part whose time ends leaves what it had found
                said.append(line)
                log.write(line)
            code = process.wait()
            errors.seek(0)
            wrong = errors.read()
            log.write(wrong)
        if code:
            last = (wrong or "".join(said)).strip().splitlines()[-1:] or ["no word"]
            raise RuntimeError(f"{words[0]}: exit {code}: {last[0][:300]}")
        return "".join(said)

    def benchmark(self, script: str, *words: str, name: str) -> FACTS:
        """Run one of the benchmarks; return its rows."""
        target = self.out / f"{name}.json"
        self.run(
            f"benchmarks/{script}.py", "--device", self.device, "--rounds", str(self.size.rounds),
            "--json", str(target), *words,
        )  # fmt: skip
        rows = json.loads(target.read_text())
        for row in rows.values():
            row["seconds"] = sorted(row["seconds"])[len(row["seconds"]) // 2]
        return {"rows": rows}

    def compile_timm(self, scripts: list[str]) -> None:
        """Fill torch's cache of compiled programs, for the rows of compiled timm."""
        size, only = self.size, ("--compile", "--only", "^compiled timm NHWC$", "--rounds", "1")
        words = ["--model", size.network, "--size", str(size.side), "--batch", str(size.batch)]
        with ThreadPoolExecutor() as pool:
            programs = [
                pool.submit(
                    self.run, f"benchmarks/{script}.py", "--device", self.device, *words, *only
                )
                for script in scripts
            ]
            for program in programs:
                program.result()

    @property
    def _params(self) -> Path:
        return self.out / "params.yaml"

    def prepare(self) -> None:
        """Draw photographs and pack them, once."""
        if (self.out / "shards").is_dir():
            return
        size = self.size
        draw(self.out / "photos", size.photos, 500 if self.cuda else 48)
        base = (PROJECT / "params.yaml").read_text()
        crop = 224 if self.cuda else 32
        epochs = size.steps * min(256, size.batch * 2) / (size.photos * 0.9)
        overlay = {
            "datasets": {"photos": {"path": "photos"}},
            "pretrain": {
                "dataset": "photos", "architecture": size.network, "root": "imagenet",
                "epochs": round(epochs, 4), "decay_epochs": [round(epochs * 0.9, 4)],
                "batch_size": min(256, size.batch * 2), "warmup_steps": 2, "base_lr": 0.01,
                "precrop": crop, "crop": crop, "augmentation": "inception", "flip": True,
                "threads": min(16, os.cpu_count() or 1), "device": self.device,
                "precision": "bfloat16" if self.cuda else "float32", "evaluation_steps": 10**6,
                "probe": {"dataset": "photos", "examples_per_class": [], "seeds": [0]},
                "checkpoint_steps": max(2, size.steps // 5), "checkpoint_seconds": None,
            },
            "tasks": {"photos": {"dataset": "photos"}},
        }  # fmt: skip
        self._params.write_text(base)
        (self.out / "overlay.yaml").write_text(json.dumps(overlay))
        self.run("benchmarks/gpu_session.py", "--pack", str(self.out))

    def pretrain_words(self, output: Path) -> list[str]:
        """Return the words of a pretraining that writes there."""
        return [str(HERE / "gpu_session.py"), "--out", str(self.out), "--pretrain", str(output)]


def pretrain(session: Path, output: Path) -> None:
    """Run the project's pretraining on what was packed; its state is kept in the output."""
    import peers  # noqa: F401  # finds the project

    from bigtransfer import config
    from bigtransfer.errors import BigTransferError
    from bigtransfer.train.pretrain import Outputs, pretrain

    params = config.load(session / "params.yaml", session / "overlay.yaml").pretrain
    shards = session / "shards"
    outputs = Outputs(output / "checkpoint", output / "metrics.json", output / "history.csv")
    try:
        pretrain(params, shards, shards, outputs, output / "work", lambda step, values: None)
    except BigTransferError as error:
        sys.exit(str(error))


def draw(folder: Path, count: int, side: int) -> None:
    """Draw so many photographs of four classes: smooth colours under noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        label = number % 4
        own = folder / ("val" if number % 10 == 9 else "train") / f"class{label}"
        own.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        coarse[..., label % 3] //= 2 + label
        picture = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        noise = random.integers(-12, 13, (picture.height, picture.width, 3))
        pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(own / f"{number:05d}.jpg", quality=88)


def pack(folder: Path, short_side: int | None = None) -> None:
    """Pack what was drawn, without the data gate, which a bare image has no packages for."""
    import peers  # noqa: F401  # finds the project

    from bigtransfer.artifacts.decoding import DecodeSettings
    from bigtransfer.artifacts.validation import Counts, ManifestFacts
    from bigtransfer.data.inspection import Limits
    from bigtransfer.data.manifest import INSPECTED, inspect_rows, write_manifest
    from bigtransfer.data.packing import write_shards
    from bigtransfer.data.shard_plan import Packing
    from bigtransfer.data.sources.opening import open_source
    from bigtransfer.data.tables import collect
    from bigtransfer.storage import sha256_json

    photos, path = folder / "photos", folder / "manifest.parquet"
    source = open_source(photos, "auto")
    every = range(len(source.images))
    limits, decode = Limits(8, 10**5, 10**9, 10**9, 0), DecodeSettings()
    table = collect(inspect_rows(source, limits, decode, "photos", every), INSPECTED)
    classes, images = tuple(source.labels), len(table)
    counts = Counts(
        images=images, listed=images, classes=len(classes), splits={}, rejected=0, flags={},
        ignored_files=0, bytes=0,
    )  # fmt: skip
    facts = ManifestFacts(
        dataset="photos", address=source.address, layout=source.layout, multi_label=False,
        validation_sha256="0" * 64, classes=classes, classes_sha256=sha256_json(list(classes)),
        near_duplicate_side=0, counts=counts, decode=DecodeSettings(),
    )  # fmt: skip
    write_manifest(path, table, facts)
    write_shards(photos, path, folder / "shards", Packing(64 << 20, short_side, 0))


def kernels(session: Session) -> FACTS:
    """Compare each kernel with float64."""
    if not session.cuda:
        from importlib.util import find_spec

        if find_spec("triton") is None:
            return {"left out": "no Triton here"}
        session.environment["TRITON_INTERPRET"] = "1"
    words = ["-W", "ignore", "-m", "fixtures.processes.interpreted_kernels"]
    words += ["--device", session.device, *session.few]
    shares = 6 if session.cuda else 1  # the compiler of kernels takes longest
    with ThreadPoolExecutor(shares) as pool:
        said = pool.map(
            lambda number: session.run(*words, "--share", f"{number}/{shares}"),
            range(1, shares + 1),
        )
        found = {case: values for part in said for case, values in json.loads(part).items()}
    worst = {
        name: max(case.get(name, 0.0) for case in found.values())
        for name in ("y", "dx", "dgain", "doffset")
    }
    wrong = [
        f"{case}: {name} {value:.2g}"
        for case, values in found.items()
        for name, value in values.items()
        if (value is False if isinstance(value, bool) else value > _tolerance(case))
    ]
    return {"cases": len(found), "worst": worst, "wrong": wrong}


def _tolerance(case: str) -> float:
    if "bfloat16" in case:
        return 2e-2
    return 2e-3 if "cancel" in case else 1e-5


def network(session: Session) -> FACTS:
    """Compare a whole network and its gradient with float64."""
    return dict(
        json.loads(session.run("benchmarks/gpu_session.py", "--check-network", session.device))
    )


def check_network(device: str) -> None:
    """Print how far logits and gradients are from float64, for each way to recompute."""
    import peers  # noqa: F401  # finds the project
    import torch
    import torch.nn.functional as F

    from bigtransfer.model import create_model
    from bigtransfer.model.resnet import RECOMPUTE

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name, sides = ("R50x1", (97, 160)) if device == "cuda" else ("R14x0.25", (33, 40))
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, *sides), torch.arange(4)
    head = torch.randn(10, create_model(name, 10).num_features) * 0.05

    def gradients(kind: torch.dtype, where: str, what: Any, x: torch.Tensor = x) -> tuple[Any, Any]:
        model = create_model(name, 10, seed=0).recompute(what)
        model.head.weight.data.copy_(head)
        model.to(where, kind)
        logits = model(x.to(where, kind))
        F.cross_entropy(logits, y.to(where)).backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return logits.detach().double().cpu(), flat.double().cpu()

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).norm() / other.norm())

    # Where a ReLU's input is next to zero, rounding opens or closes it; how much of the gradient
    # that is, a noise of a millionth shows in float64.
    exact, its_gradient = gradients(torch.float64, device, "none")
    noise = torch.randn(x.shape, dtype=torch.float64) * 1e-6
    unsure = apart(gradients(torch.float64, device, "none", x + noise)[1], its_gradient)
    found: FACTS = {"wrong": [], "gradient under noise of 1e-6": unsure}
    for what in RECOMPUTE:
        logits, gradient = gradients(torch.float32, device, what)
        off = float((logits - exact).abs().max() / exact.abs().max())
        far = apart(gradient, its_gradient)
        found[what] = {"logits": off, "gradient": far}
        if off > 1e-4 or far > 1e-3 + 2 * unsure:
            found["wrong"].append(f"recompute {what}: logits {off:.2g}, gradient {far:.2g}")
    print(json.dumps(found))


def _train_step(
    network: str, side: int, batch: int, name: str, *more: str
) -> Callable[[Session], FACTS]:
    def do(session: Session) -> FACTS:
        own = (network, side, batch) if session.cuda else ("R14x0.25", 32, 2)
        words = ["--model", own[0], "--size", str(own[1]), "--batch", str(own[2]), *more]
        if not session.cuda:
            words = [word for word in words if word != "--compile"]
        return session.benchmark("train_step", *words, name=name)

    return do


def inference(session: Session) -> FACTS:
    """Time folded networks."""
    size = session.size
    words = ["--model", size.network, "--size", str(size.side), "--batch", str(size.batch)]
    if session.cuda:
        words += ["--compile", "--only", "^ours", "^timm NHWC$", "^compiled timm NHWC$"]
    return session.benchmark("inference", *words, name="inference")


def profile(session: Session) -> FACTS:
    """Say where the time of the captured step went."""
    measured = json.loads((session.out / "train-r50x1.json").read_text())
    kernels = measured["ours"]["kernels"]
    whole = sum(seconds for _, _, seconds in kernels)
    said = [
        f"{whole * 1e3:.1f} ms of kernels a step:",
        "",
        "| ms | % | launches | |",
        "|--|--|--|--|",
    ]
    for name, launches, seconds in kernels[:30]:
        said.append(
            f"| {seconds * 1e3:.2f} | {seconds / whole:.1%} | {launches:.0f} | {name[:90]} |"
        )
    return {"said": said}


def pretraining(session: Session) -> FACTS:
    """Pretrain as the component does; compare its images/s with the bare step's."""
    session.prepare()
    output = session.out / "whole"
    output.mkdir(exist_ok=True)
    began = time.monotonic()
    said = session.run(*session.pretrain_words(output))
    seconds = time.monotonic() - began
    speeds = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) images/s", said)]
    waits = [int(n) for n in re.findall(r"data wait (\d+)%", said)]
    found: FACTS = {"seconds": round(seconds, 1)}
    if session.cuda:
        found["captured"] = "not captured" not in said
    if speeds:
        found |= {"images/s": speeds[-1], "data wait %": waits[-1]}
        bare = session.out / "train-r50x1.json"
        if session.cuda and bare.is_file():
            best = json.loads(bare.read_text())["ours"]["images_per_second"]
            found["of the bare step"] = round(speeds[-1] / best, 3)
    return found


def kill(session: Session) -> FACTS:
    """Kill a pretraining in the middle, run the same again, compare the bits."""
    session.prepare()
    whole, killed = session.out / "whole", session.out / "killed"
    if not (whole / "metrics.json").is_file():
        pretraining(session)
    shutil.rmtree(killed, ignore_errors=True)
    killed.mkdir()
    words = session.pretrain_words(killed)
    with (session.out / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=PROJECT, env=session.environment, stdout=log, stderr=log
        )
        try:
            while process.poll() is None and not list(killed.rglob("step-*/MANIFEST.json")):
                time.sleep(0.01)
            caught = process.poll() is None
        finally:
            process.kill()
            process.wait()
    said = session.run(*words)
    own, other = (
        (folder / "checkpoint" / "weights.safetensors").read_bytes() for folder in (whole, killed)
    )
    went_on = re.search(r"resuming at step ([\d,]+)", said)
    return {
        "killed": caught,
        "resumed at": went_on.group(1) if went_on else None,
        "bits equal": own == other,
        "wrong": ["it began anew"] if caught and not went_on else [],
    }


def transfer(session: Session) -> FACTS:
    """Time fine-tuning by the HyperRule's shapes, in micro-batches, with and without MixUp."""
    own = ("R50x1", 384, 128, 4) if session.cuda else ("R14x0.25", 32, 2, 2)
    words = ["--model", own[0], "--size", str(own[1]), "--batch", str(own[2])]
    return session.benchmark(
        "transfer_step", *words, "--micro-batches", str(own[3]), name="transfer"
    )


def cudnn(session: Session) -> FACTS:
    """Time the captured step with cuDNN's heuristics, four tried algorithms, and all it has."""
    found: FACTS = {"rows": {}}
    size = session.size
    for name, tried in (("heuristics", "0"), ("4 tried", "4"), ("10 tried", "10")):
        rows = session.benchmark(
            "train_step", "--model", size.network, "--size", str(size.side), "--batch",
            str(size.batch), "--only", "^ours$", "--cudnn-tries", tried, name=f"cudnn-{tried}",
        )["rows"]  # fmt: skip
        found["rows"][name] = rows["ours"]
    return found


def planned(session: Session) -> FACTS:
    """Set what `plan` counts beside the peaks that were measured."""
    import peers  # noqa: F401  # finds the project
    import torch

    from bigtransfer.model import create_model
    from bigtransfer.model.costs import kept_per_image
    from bigtransfer.model.resnet import Recompute

    said = ["| | planned MiB | measured peak MiB | ratio |", "|---|---|---|---|"]
    for name, network, side, batch in (
        ("train-r50x1", "R50x1", 224, 256),
        ("train-r101x3", "R101x3", 224, 128),
        ("train-r152x4", "R152x4", 480, 16),
    ):
        file = session.out / f"{name}.json"
        if not file.is_file():
            continue
        with torch.device("meta"):
            parameters = sum(p.numel() for p in create_model(network, 1000).parameters())
        rows: dict[str, Recompute] = {"ours": "none", "ours, recompute norms": "norms"}
        for row, what in rows.items():
            measured = json.loads(file.read_text()).get(row, {}).get("mebibytes")
            if measured is None:
                continue
            image, fixed = kept_per_image(network, 1000, side, recompute=what)
            wanted = (12 * parameters + (fixed + image * batch) // 2) / 2**20
            said.append(
                f"| {network}, {row} | {wanted:,.0f} | {measured:,.0f} | {measured / wanted:.2f} |"
            )
    return {"said": said}


def prepare(session: Session) -> FACTS:
    """Draw and pack photographs."""
    session.prepare()
    return {}


def switches(session: Session) -> FACTS:
    """Time the captured step with each kernel switched off."""
    found: FACTS = {"rows": {}}
    size = session.size
    for name in ("none", "one_pass", "max_pool", "images", "root"):
        session.environment["BIGTRANSFER_PLAIN"] = "" if name == "none" else name
        rows = session.benchmark(
            "train_step", "--model", size.network, "--size", str(size.side), "--batch",
            str(size.batch), "--only", "^ours$", name=f"without-{name}",
        )["rows"]  # fmt: skip
        found["rows"][f"without {name}"] = rows["ours"]
    return found


_OURS, _LEAN, _TIMM = "^ours$", "^ours, recompute norms$", "^timm NHWC$"
PARTS = (
    Part("kernels", 90, "each kernel against float64", kernels, obligatory=True, timed=False),
    Part("network", 90, "logits and gradient against float64", network, obligatory=True,
         timed=False),
    Part("preparation", 90, "drawn photographs, packed", prepare, timed=False),
    Part("train-r50x1", 120, "training step R50x1, 224 px, batch 256",
         _train_step("R50x1", 224, 256, "train-r50x1", "--profile", "--only", _OURS,
                     "^eager ours$", _TIMM),
         obligatory=True),
    Part("profile", 10, "where the captured step's time goes", profile, gpu_alone=True),
    Part("pretraining", 150, "pretraining on drawn photographs", pretraining, obligatory=True),
    Part("kill", 150, "kill -9 and the same again", kill, obligatory=True),
    Part("inference", 90, "folded network", inference),
    Part("transfer", 90, "fine-tuning at 384 px, micro-batches, MixUp", transfer),
    Part("train-r101x3", 120, "training step R101x3, 224 px, batch 128",
         _train_step("R101x3", 224, 128, "train-r101x3", "--only", _OURS, _LEAN, _TIMM),
         gpu_alone=True),
    Part("train-r152x4", 150, "training step R152x4, 480 px, batch 16",
         _train_step("R152x4", 480, 16, "train-r152x4", "--only", _OURS, _LEAN, _TIMM),
         gpu_alone=True),
    Part("compiled", 120, "timm compiled beside the captured step",
         _train_step("R50x1", 224, 256, "compiled", "--compile", "--only", _OURS,
                     "^compiled timm NHWC$"), gpu_alone=True),
    Part("switches", 90, "each kernel switched off", switches, gpu_alone=True),
    Part("cudnn", 90, "how many algorithms cuDNN tries", cudnn, gpu_alone=True),
    Part("plan", 60, "memory that `plan` counts, beside the peaks", planned, gpu_alone=True),
)  # fmt: skip


_COMPILED = {"inference": "inference", "compiled": "train_step"}
"""Part that times what torch compiled -> its benchmark."""


def main() -> None:
    """Do the parts that are left, while there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (default: 9)")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="wheels to install first")
    parser.add_argument("--out", type=Path, default=PROJECT / ".work" / "gpu_session")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone, again")
    parser.add_argument("--compile-timm", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--check-network", help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pretrain", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check_network:
        check_network(arguments.check_network)
        return
    if arguments.pretrain:
        pretrain(arguments.out, arguments.pretrain)
        return
    if arguments.pack:
        pack(arguments.pack, 256)  # as params.yaml advises where a GPU waits for images
        return
    session = Session(arguments)
    if arguments.compile_timm:
        session.compile_timm(arguments.compile_timm)
        return
    if arguments.part:
        part = next(part for part in PARTS if part.name == arguments.part)
        print(json.dumps(part.do(session)))
        return
    sys.exit(_all(session, arguments))


def _all(session: Session, arguments: argparse.Namespace) -> int:
    end = time.monotonic() + arguments.minutes * 60
    kept = session.out / "session.json"
    state: FACTS = json.loads(kept.read_text()) if kept.is_file() else {"parts": {}}
    _install(session, arguments.packages)
    state["machine"] = _machine(session)
    wanted = [part for part in PARTS if not arguments.only or part.name in arguments.only]
    compiler = None
    compiled = [_COMPILED[part.name] for part in wanted if part.name in _COMPILED]
    if session.cuda and compiled:
        words = [sys.executable, __file__, "--out", str(session.out), "--compile-timm", *compiled]
        compiler = subprocess.Popen(words, start_new_session=True)
    for group in ([p for p in wanted if not p.timed], *([p] for p in wanted if p.timed)):
        left = end - time.monotonic()
        to_do = [
            part for part in group
            if (arguments.only or not state["parts"].get(part.name, {}).get("done"))
            and not (part.gpu_alone and not session.cuda)
        ]  # fmt: skip
        if not to_do or left < 10:
            continue
        if any(part.name in _COMPILED for part in to_do) and compiler is not None:
            with suppress(subprocess.TimeoutExpired):
                compiler.wait(max(1, left - 60))
        with ThreadPoolExecutor() as pool:
            running = {}
            for part in to_do:
                limit = min(left - 2, part.seconds if session.cuda else 60)
                print(f"{part.name}: {part.what} (at most {limit:.0f} s) …", flush=True)
                running[part.name] = pool.submit(_limited, part, limit, arguments)
            for name, future in running.items():
                state["parts"][name] = future.result()
                kept.write_text(json.dumps(state, indent=1))
                print(f"  {name}: {_short(state['parts'][name])}", flush=True)
    if compiler is not None and compiler.poll() is None:
        os.killpg(compiler.pid, signal.SIGKILL)
    table = _table(state, session)
    (session.out / "session.md").write_text(table)
    print("\n" + table)
    return _verdict(state, wanted, session)


def _limited(part: Part, seconds: float, arguments: argparse.Namespace) -> FACTS:
    """Do a part in a process group of its own, which ends with its time."""
    words = [sys.executable, __file__, "--device", arguments.device, "--out", str(arguments.out)]
    began = time.monotonic()
    process = subprocess.Popen(
        [*words, "--part", part.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"done": False, "why": f"not done within {seconds:.0f} s"}
    took = round(time.monotonic() - began, 1)
    if process.returncode:
        with (arguments.out / "log.txt").open("a") as log:
            log.write(f"{part.name}:\n{err}\n")
        last = err.strip().splitlines()[-1:] or ["no word"]
        return {"done": False, "why": last[0][:400], "took": took}
    return {"done": True, "took": took, **json.loads(out.strip().splitlines()[-1])}


def _install(session: Session, packages: Path | None) -> None:
    """Install the wheels of a folder that this Python lacks."""
    if packages is None or session.site.is_dir():
        return
    wheels = [w for w in packages.glob("*.whl") if not _is_installed(w.name.split("-")[0])]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target",
         str(session.site), *map(str, wheels)],
        check=True,
    )  # fmt: skip


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _machine(session: Session) -> FACTS:
    found: FACTS = {"python": platform.python_version(), "cpus": os.cpu_count()}
    words = (
        "import json, torch; c = torch.cuda.is_available(); print(json.dumps({'torch': "
        "torch.__version__, 'cuda': torch.version.cuda, 'card': torch.cuda.get_device_name() if c "
        "else None, 'cudnn': torch.backends.cudnn.version()}))"
    )
    found |= json.loads(session.run("-c", words))
    if session.cuda and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(
            query, capture_output=True, text=True, check=False
        ).stdout.strip()
    return found


def _short(facts: FACTS) -> str:
    if not facts["done"]:
        return f"not done: {facts['why']}"
    shown = {k: v for k, v in facts.items() if k not in ("done", "rows", "said")}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _table(state: FACTS, session: Session) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in state["machine"].items() if value)
    lines = [f"# A session on {state['machine'].get('card') or 'a CPU'}", "", machine, ""]
    for part in PARTS:
        facts = state["parts"].get(part.name)
        if facts is None:
            if not (part.gpu_alone and not session.cuda):
                lines += [f"- **{part.name}** ({part.what}): no time was left"]
            continue
        lines += [f"- **{part.name}** ({part.what}): {_short(facts)}"]
        if rows := facts.get("rows"):
            peers = [
                next((r for name, r in rows.items() if name.startswith(peer)), None)
                for peer in ("timm", "compiled timm")
            ]
            head = ("", "images/s", "TFLOP/s", "peak MiB", "ready, s", "/ timm", "/ compiled timm")
            lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
            for name, row in rows.items():
                lead = " | ".join(
                    f"x{peer['seconds'] / row['seconds']:.2f}" if peer else "" for peer in peers
                )
                memory = f"{row['mebibytes']:,.0f}" if row.get("mebibytes") else ""
                lines += [
                    f"| {name} | {row['images_per_second']:,.0f} | "
                    f"{row['flops_per_second'] / 1e12:.1f} | {memory} | "
                    f"{row['ready_seconds']:.0f} | {lead} |"
                ]
            lines += [""]
        if said := facts.get("said"):
            lines += ["", *said, ""]
    return "\n".join(lines) + "\n"


def _verdict(state: FACTS, wanted: list[Part], session: Session) -> int:
    bad = 0
    for part in wanted:
        facts = state["parts"].get(part.name, {"done": False, "why": "no time was left"})
        for line in facts.get("wrong", []):
            print(f"WRONG {part.name}: {line}")
            bad = 1
        if part.obligatory and not facts["done"]:
            print(f"OPEN {part.name}: {facts['why']}")
            bad = 1
    return bad


if __name__ == "__main__":
    main()
