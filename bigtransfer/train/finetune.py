"""Transfer to a task: every cell (init, examples per class, seed) of a small grid, by HyperRule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import Cell, Cells, ListedCell
from bigtransfer.artifacts.decoding import as_stored_line
from bigtransfer.artifacts.weights import TunedMeta, WeightsMeta
from bigtransfer.config import TaskParams
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import CheckpointError, ConfigError
from bigtransfer.model.checkpoint import read_meta, read_tuned_meta, write_checkpoint
from bigtransfer.model.processor import use_cpu
from bigtransfer.progress import counted, progress
from bigtransfer.storage import (
    digest_of,
    lock,
    new_folder,
    verify_folder,
)
from bigtransfer.storage.places import Place
from bigtransfer.storage.s3 import S3Path
from bigtransfer.train.cell import CheckpointPolicy, InitialWeights, train_cell
from bigtransfer.train.code import code_version
from bigtransfer.train.compute import Machine
from bigtransfer.train.fitting import images_that_fit
from bigtransfer.train.forecast import warn_if_long, warn_of_another_size
from bigtransfer.train.grid import OVERRIDES, RECIPE, Grid, GridPlan
from bigtransfer.train.hyperrule import HyperRule
from bigtransfer.train.interrupts import Interrupts, watched
from bigtransfer.train.mirror import GridMirror, place_of, state_target
from bigtransfer.train.state import fingerprint
from bigtransfer.train.workers import in_workers

Log = Callable[[int, dict[str, float]], None]
"""`log(step, metrics)`: where curves go."""
OnCell = Callable[[Cell, dict[str, float]], None]
"""`on_cell(cell, scores)`: a cell is finished."""


def finetune(
    params: TaskParams,
    pretrained: Path,
    shards_place: Place,
    output: Path,
    work: Path,
    log: Log,
    on_cell: OnCell = lambda cell, figures: None,
    *,
    longest_seconds: float | None = None,
    keep_mirror: bool = False,
) -> Cells:
    """Fine-tune every cell and write one folder with a checkpoint per cell and `cells.json`.

    Each cell starts from the upstream weights (or, for `scratch`, from fresh ones of the same
    architecture) with a zero head, and trains by HyperRule's schedule. Finished cells are kept
    under `work`, and the state of those that are being trained: an interrupted run goes on at the
    step where it was. With `checkpoint_mirror` a bucket has both, too, until the output is in
    place: then a run goes on from an empty disk. Cells of `output` that this very recipe and this
    very code made are taken over (with `resume: any_code`, of any code); the others stay until the
    new ones are complete.

    Args:
        params: Of the task.
        pretrained: Upstream checkpoint.
        shards_place: Shards of the task's dataset; needs the splits train and val.
        output: Folder to write.
        work: Folder for resumable state.
        log: Receives the scores of each cell when it is finished.
        on_cell: Receives each cell with its scores, those that were there already first.
        longest_seconds: What takes longer on a CPU is refused, because nobody has agreed to it;
            None: it is only said.
        keep_mirror: Whether the mirror keeps what it has: the output itself may still be lost.

    Returns:
        What `cells.json` holds.

    Raises:
        DatasetError: If a class has fewer images than the largest subset needs.
        ConfigError: If few-shot subsets are asked of a dataset with several labels per image.
        KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM; the same again goes on.
    """
    shards = open_shards(shards_place)
    upstream = read_meta(pretrained)
    _require_possible(params.trained, upstream)
    plan, machine = _plan_of(params), _machine_of(params)
    grid = Grid(plan, InitialWeights(pretrained, upstream, shards, params.trained))
    made = _MadeOf(recipe_of(params), upstream.digest, shards.content_digest)
    code = code_version(__name__)
    same_code = params.resume == "same_code"
    done = work / fingerprint(code if same_code else None, **vars(made))
    there = _made_before(output, made)
    usable = _usable(there, code, same_code=same_code)
    if outdated := len(there) - len(usable):
        _say(
            f"{params.name}: of {str(output)!r}, {counted(outdated, 'network')} made by other code "
            "(another version of this program, or of PyTorch) will be trained again; "
            "resume: any_code keeps what is there"
        )
    _take_over(output, usable, done)
    mirror_place = place_of(params.checkpoint_mirror, params.name, done.name)
    mirror = GridMirror(mirror_place, _say)
    mirror.bring([cell.name for cell in grid.cells], done)
    if line := as_stored_line(f"dataset {shards.summary.dataset!r}", shards.summary.decode):
        _say(line)
    for line in grid.explained():
        _say(line)
    missing = []
    for number, cell in enumerate(grid.cells):
        if (done / cell.name).is_dir():
            on_cell(cell, _figures(read_tuned_meta(done / cell.name).calibration))
        else:
            missing.append(number)
    warn_of_another_size(grid, upstream)
    warn_if_long(grid, missing, upstream, machine, longest_seconds)
    make = partial(
        _Worker,
        plan=plan,
        machine=machine,
        pretrained=pretrained,
        shards_place=shards_place,
        trained=params.trained,
        flip=params.flip,
        checkpoint_seconds=params.checkpoint_seconds,
        mirror_place=mirror_place,
        done=done,
        code=code,
    )

    def finished(cell: Cell, figures: dict[str, float]) -> None:
        mirror.send_soon(done / cell.name)
        on_cell(cell, figures)

    workers = params.workers or _own_workers(params.device)
    with (
        watched(params.stop_seconds) as interrupts,
        mirror.sending(all_of_them=keep_mirror),
    ):
        _train(grid, missing, make, workers, interrupts, log, finished)
    result = Cells(
        task=params.name,
        dataset=shards.summary.dataset,
        multi_label=shards.summary.multi_label,
        recipe=made.recipe,
        upstream_digest=made.upstream_digest,
        shards_digest=shards.digest,
        content_digest=made.content_digest,
        code={cell.name: read_tuned_meta(done / cell.name).code for cell in grid.cells},
        cells=tuple(map(ListedCell.of, grid.cells)),
    )
    with new_folder(output) as partial_output:
        for cell in grid.cells:
            verify_folder(done / cell.name)
            shutil.copytree(done / cell.name, partial_output / cell.name)
        result.write(partial_output)
    shutil.rmtree(done)
    if not keep_mirror:
        mirror.clear()
    elif mirror_place is not None:
        _say(f"{params.name}: the networks stay at {mirror_place}, till somebody removes them")
    return result


def _require_possible(trained: str, upstream: WeightsMeta) -> None:
    if trained == "head" and upstream.norm in ("bn", "bn_ws"):
        raise ConfigError(
            f"trained: head leaves the network as it is, but norm {upstream.norm} changes with "
            "every batch; set 'trained' to all"
        )


def _train(
    grid: Grid,
    missing: list[int],
    make: Callable[[int], _Worker],
    workers: int,
    interrupts: Interrupts,
    log: Log,
    on_cell: OnCell,
) -> None:
    """Train the missing cells, several at a time, and show how far all of them are."""
    steps = [grid.rule(cell.examples_per_class).total_steps for cell in grid.cells]
    waiting = set(missing)
    reached = [0 if number in waiting else own for number, own in enumerate(steps)]
    label = f"fine-tune {grid.plan.task}"
    with progress(label, sum(steps), unit="step", start=sum(reached)) as advance:

        def tell(number: int, step: int) -> None:
            leap = max(0, step - 1) if number in waiting else 0  # it was resumed at that step
            waiting.discard(number)
            reached[number] = step
            advance(sum(reached), grid.cells[number].name, leap=leap)

        for number, figures in in_workers(make, missing, workers, interrupts, tell):
            log(number, figures)
            on_cell(grid.cells[number], figures)


def is_done(output: Path, params: TaskParams, pretrained: Path, shards: Place) -> bool:
    """Say whether `output` holds these very networks already; raises what `open_shards` does."""
    content_digest = open_shards(shards).content_digest
    cells = [cell.name for cell in _plan_of(params).cells]
    there = _made_before(output, _MadeOf(recipe_of(params), digest_of(pretrained), content_digest))
    same_code = params.resume == "same_code"
    return _usable(there, code_version(__name__), same_code=same_code) == cells


def recipe_of(params: TaskParams) -> Json:
    """Return the params that decide what a cell becomes, as JSON values: lists, not tuples."""
    recipe = params.model_dump(mode="json", include=set(RECIPE))
    if recipe["sampling"] == "natural":
        del recipe["sampling"]  # as before there was a choice: networks from then are the same
    return recipe


def _plan_of(params: TaskParams) -> GridPlan:
    """Return the grid that the params describe."""
    return GridPlan(
        task=params.name,
        inits=params.inits,
        examples_per_class=params.examples_per_class,
        seeds=params.seeds,
        train_on=params.train_on,
        preset=params.preset,
        overrides={name: getattr(params, name) for name in OVERRIDES},
        sampling=params.sampling,
        random_crop=params.random_crop,
        abstain_accuracy=params.abstain_accuracy,
    )


def _machine_of(params: TaskParams) -> Machine:
    """Return how the cells are computed."""
    return Machine(
        params.device,
        params.threads,
        params.precision,
        params.micro_batch_size,
        params.recompute,
        params.compile,
    )


@dataclass(frozen=True)
class _MadeOf:
    """What a cell is made of, as `cells.json` says it; the code aside."""

    recipe: Json
    upstream_digest: str
    content_digest: str


def _made_before(output: Path, made: _MadeOf) -> dict[str, str | None]:
    """Return the cells of an output that were made of the same -> by which code, if known."""
    if not (output / Cells.FILE).is_file():
        return {}
    listed = Cells.read(output)
    if _MadeOf(listed.recipe, listed.upstream_digest, listed.content_digest) != made:
        return {}
    return {cell.folder: listed.code.get(cell.folder) for cell in listed.cells}


def _usable(there: dict[str, str | None], code: str, *, same_code: bool) -> list[str]:
    """Return the cells that may stand for what this code would make of them."""
    return [name for name, own in there.items() if own == code or not same_code]


def _take_over(output: Path, names: list[str], done: Path) -> None:
    """Copy cells of an output that the same recipe wrote, e.g. with fewer seeds."""
    for name in names:
        if not (done / name).exists():
            try:
                verify_folder(output / name, CheckpointError)
            except CheckpointError as error:
                _say(f"{error}: it is trained again")
                continue
            with new_folder(done / name, sealed=False) as partial_folder:
                shutil.copytree(output / name, partial_folder, dirs_exist_ok=True)


def _own_workers(device: str) -> int:
    """Return a worker per GPU; one on a CPU."""
    return max(1, 0 if device == "cpu" else torch.cuda.device_count())


class _Worker:
    """Trains the cells of a grid, one after another, on one device."""

    def __init__(
        self,
        number: int,
        *,
        plan: GridPlan,
        machine: Machine,
        pretrained: Path,
        shards_place: Place,
        trained: str,
        flip: bool,
        checkpoint_seconds: float,
        mirror_place: S3Path | None,
        done: Path,
        code: str,
    ) -> None:
        use_cpu(machine.threads)
        self._flip, self._seconds, self._done, self._code = flip, checkpoint_seconds, done, code
        self._mirror = mirror_place
        # Kept for all cells: a micro-batch that had to be halved is too large for the next, too.
        self._compute = machine.settings(number)
        shards = open_shards(shards_place)
        self._initial = InitialWeights(pretrained, read_meta(pretrained), shards, trained)
        self._grid = Grid(plan, self._initial)
        if not self._compute.device.is_cuda and machine.micro_batch_size is None:
            self._compute.micro_batch_size = self._images_that_fit()

    def __call__(
        self, number: int, interrupts: Interrupts, tell: Callable[[int], None]
    ) -> dict[str, float]:
        """Train a cell, write its checkpoint, and return its scores."""
        grid, task = self._grid, self._grid.plan.task
        cell = grid.cells[number]
        verdict = grid.rule(cell.examples_per_class)
        state = self._done / f"{cell.name}.state"
        mirror = state_target(self._mirror, cell.name, _say)
        with lock(self._done / f"{cell.name}.lock", f"cell {cell.name} of task {task!r}"):
            model, loss = train_cell(
                cell,
                self._initial,
                grid.rows(cell),
                verdict,
                flip=self._flip,
                compute=self._compute,
                policy=CheckpointPolicy(state, self._seconds, interrupts, self._code, mirror),
                advance=tell,
            )
            calibration = grid.calibration(model, verdict, self._compute)
            meta = _meta(grid.plan, cell, self._initial, verdict, calibration, self._code)
            seen = self._initial.shards.origin_digests(np.unique(grid.rows(cell)))
            write_checkpoint(self._done / cell.name, model.cpu(), meta, trained_on=seen)
            shutil.rmtree(state, ignore_errors=True)
        return {"final_loss": loss, **_figures(calibration)}

    def _images_that_fit(self) -> int | None:
        rule = self._grid.rule(self._grid.cells[0].examples_per_class)
        kind = self._initial.upstream
        fit = images_that_fit(
            kind.architecture,
            len(self._initial.shards.classes),
            rule.crop,
            kind.root,
            kind.norm,
            self._compute.recompute,
        )
        return fit if fit < rule.batch_size else None


def _meta(
    plan: GridPlan,
    cell: Cell,
    initial: InitialWeights,
    rule: HyperRule,
    calibration: Calibration | MultiLabelCalibration,
    code: str,
) -> TunedMeta:
    upstream = initial.upstream
    return TunedMeta(
        architecture=upstream.architecture,
        root=upstream.root,
        norm=upstream.norm,
        classes=tuple(initial.shards.classes),
        crop=rule.crop,
        decode=initial.shards.summary.decode,
        task=plan.task,
        **cell.model_dump(),
        trained=initial.trained,
        train_on=plan.train_on,
        hyperrule=json.loads(json.dumps(asdict(rule))),
        calibration=calibration,
        upstream_digest=upstream.digest if cell.init == "upstream" else None,
        shards_digest=initial.shards.digest,
        code=code,
    )


def _figures(calibration: Calibration | MultiLabelCalibration) -> dict[str, float]:
    figures = calibration.model_dump(exclude={"held_out", "thresholds"}, exclude_none=True)
    return {f"val_{name}": value for name, value in figures.items()}


def _say(line: str) -> None:
    print(line, flush=True)
