"""Transfer to a task: every cell (init, examples per class, seed) of a small grid, by HyperRule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import Cell, Cells, ListedCell
from bigtransfer.artifacts.weights import TunedMeta, WeightsMeta
from bigtransfer.config import TaskParams
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import CheckpointError, ConfigError
from bigtransfer.model.checkpoint import read_meta, read_tuned_meta, write_checkpoint
from bigtransfer.model.costs import forward_macs
from bigtransfer.model.processor import device_named, use_cpu
from bigtransfer.model.resnet import create_model
from bigtransfer.progress import counted, duration, progress
from bigtransfer.storage import (
    digest_of,
    lock,
    new_folder,
    verify_folder,
)
from bigtransfer.storage.places import Place
from bigtransfer.train.cell import CheckpointPolicy, InitialWeights, train_cell
from bigtransfer.train.code import code_version
from bigtransfer.train.devices import Device, choose_device
from bigtransfer.train.fitting import images_per_second, images_that_fit
from bigtransfer.train.grid import Grid, cells_of, recipe_of
from bigtransfer.train.hyperrule import HyperRule
from bigtransfer.train.interrupts import Interrupts, watched
from bigtransfer.train.loop import ComputeSettings
from bigtransfer.train.state import fingerprint
from bigtransfer.train.workers import in_workers

Log = Callable[[int, dict[str, float]], None]
"""`log(step, metrics)`: where curves go."""
OnCell = Callable[[Cell, dict[str, float]], None]
"""`on_cell(cell, scores)`: a cell is finished."""
_STOP_SECONDS = 12.0
_LONG_MACS = 3e13
_TRIAL_SECONDS = 2.0
_SCALE = 4
"""The paper fine-tunes networks of 224 px at 128 to 480; beyond this factor it is said."""


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
) -> Cells:
    """Fine-tune every cell and write one folder with a checkpoint per cell and `cells.json`.

    Each cell starts from the upstream weights (or, for `scratch`, from fresh ones of the same
    architecture) with a zero head, and trains by HyperRule's schedule. Finished cells are kept
    under `work`, and the state of those that are being trained: an interrupted run goes on at the
    step where it was. Cells of `output` that this very recipe and this very code made are taken
    over (with `resume: any_code`, of any code); the others stay until the new ones are complete.

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

    Returns:
        What `cells.json` holds.

    Raises:
        DatasetError: If a class has fewer images than the largest subset needs.
        ConfigError: If few-shot subsets are asked of a dataset with several labels per image.
        KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM; the same again goes on.
    """
    shards = open_shards(shards_place)
    upstream = read_meta(pretrained)
    if params.trained == "head" and upstream.norm in ("bn", "bn_ws"):
        raise ConfigError(
            f"trained: head leaves the network as it is, but norm {upstream.norm} changes with "
            "every batch; set 'trained' to all"
        )
    grid = Grid(params, InitialWeights(pretrained, upstream, shards, params.trained))
    made = _ingredients(params, upstream.digest, shards.digest)
    code = code_version(__name__)
    done = work / fingerprint(code if params.resume == "same_code" else None, **vars(made))
    there = _made_before(output, made)
    usable = _of_this_code(there, code, params)
    if outdated := len(there) - len(usable):
        print(
            f"{params.name}: of {str(output)!r}, {counted(outdated, 'network')} made by other code "
            "(another version of this program, or of PyTorch) will be trained again; "
            "resume: any_code keeps what is there",
            flush=True,
        )
    _take_over(output, usable, done)
    for line in grid.explained():
        print(line, flush=True)
    steps = [grid.rule(cell.examples_per_class).total_steps for cell in grid.cells]
    missing = []
    for number, cell in enumerate(grid.cells):
        if (done / cell.name).is_dir():
            on_cell(cell, _figures(read_tuned_meta(done / cell.name).calibration))
        else:
            missing.append(number)
    _warn_of_another_size(params, grid, upstream)
    _warn_if_long(params, grid, missing, upstream, len(shards.classes), longest_seconds)
    waiting = set(missing)
    reached = [0 if number in missing else own for number, own in enumerate(steps)]
    with (
        watched(_STOP_SECONDS) as interrupts,
        progress(
            f"fine-tune {params.name}", sum(steps), unit="step", start=sum(reached)
        ) as advance,
    ):

        def tell(number: int, step: int) -> None:
            leap = max(0, step - 1) if number in waiting else 0  # it was resumed at that step
            waiting.discard(number)
            reached[number] = step
            advance(sum(reached), grid.cells[number].name, leap=leap)

        make = partial(_Worker, params, pretrained, shards_place, done, code)
        for number, figures in in_workers(make, missing, _workers(params), interrupts, tell):
            log(number, figures)
            on_cell(grid.cells[number], figures)
    result = Cells(
        task=params.name,
        dataset=shards.summary.dataset,
        multi_label=shards.summary.multi_label,
        recipe=made.recipe,
        upstream_digest=made.upstream_digest,
        shards_digest=made.shards_digest,
        code={cell.name: read_tuned_meta(done / cell.name).code for cell in grid.cells},
        cells=tuple(map(ListedCell.of, grid.cells)),
    )
    with new_folder(output) as partial_output:
        for cell in grid.cells:
            verify_folder(done / cell.name)
            shutil.copytree(done / cell.name, partial_output / cell.name)
        result.write(partial_output)
    shutil.rmtree(done)
    return result


def _warn_if_long(
    params: TaskParams,
    grid: Grid,
    missing: list[int],
    upstream: WeightsMeta,
    classes: int,
    longest_seconds: float | None,
) -> None:
    """Say beforehand how long the missing cells take on a CPU, if that is more than a coffee."""
    rules = [grid.rule(grid.cells[number].examples_per_class) for number in missing]
    if not rules:
        return
    images, crop = sum(rule.total_steps * rule.batch_size for rule in rules), rules[0].crop
    kind = (upstream.architecture, classes, crop, upstream.root, upstream.norm)
    if device_named(params.device).type != "cpu" or images * forward_macs(*kind) < _LONG_MACS:
        return
    use_cpu(params.threads)
    model = create_model(kind[0], classes, upstream.root, norm=upstream.norm)
    rate = images_per_second(model, crop, Device(), 1, _TRIAL_SECONDS)
    said = (
        f"{params.name}: about {duration(images / rate)} on this CPU ({images:,} images at "
        f"{rate:.1f}/s, tried now); a GPU does it in a small part of that"
    )
    if longest_seconds is not None and images / rate > longest_seconds:
        raise ConfigError(
            f"{said}. Nothing was trained: the same with --yes begins it all the same, and with "
            "--set total_steps=100 --set batch_size=64 --set precrop=96 --set crop=64 it is a trial"
        )
    print(f"{said}. For a trial lower total_steps, batch_size, precrop and crop", flush=True)


def _warn_of_another_size(params: TaskParams, grid: Grid, upstream: WeightsMeta) -> None:
    """Say that a network is given images of a scale that it has never seen."""
    crops = {grid.rule(cell.examples_per_class).crop for cell in grid.cells}
    for crop in sorted(crops):
        if "upstream" in params.inits and not 1 / _SCALE <= crop / upstream.crop <= _SCALE:
            print(
                f"{params.name}: warning: the network was trained at {upstream.crop} px and is "
                f"fine-tuned at {crop} px, where its features are of little use; set crop near "
                f"{upstream.crop}, or start from a network that was trained near {crop} px",
                flush=True,
            )


def is_done(output: Path, params: TaskParams, pretrained: Path, shards_digest: str) -> bool:
    """Say whether `output` holds these very networks already."""
    cells = [cell.name for cell in cells_of(params)]
    there = _made_before(output, _ingredients(params, digest_of(pretrained), shards_digest))
    return _of_this_code(there, code_version(__name__), params) == cells


@dataclass(frozen=True)
class _Ingredients:
    """What a cell is made of, as `cells.json` says it; the code aside."""

    recipe: Json
    upstream_digest: str
    shards_digest: str


def _ingredients(params: TaskParams, upstream_digest: str, shards_digest: str) -> _Ingredients:
    recipe = json.loads(json.dumps(recipe_of(params)))
    return _Ingredients(recipe, upstream_digest, shards_digest)


def _made_before(output: Path, made: _Ingredients) -> dict[str, str | None]:
    """Return the cells of an output that were made of the same -> by which code, if known."""
    if not (output / Cells.FILE).is_file():
        return {}
    listed = Cells.read(output)
    if _Ingredients(listed.recipe, listed.upstream_digest, listed.shards_digest) != made:
        return {}
    return {cell.folder: listed.code.get(cell.folder) for cell in listed.cells}


def _of_this_code(there: dict[str, str | None], code: str, params: TaskParams) -> list[str]:
    """Return the cells that may stand for what this code would make of them."""
    return [name for name, own in there.items() if params.resume == "any_code" or own == code]


def _take_over(output: Path, names: list[str], done: Path) -> None:
    """Copy cells of an output that the same recipe wrote, e.g. with fewer seeds."""
    for name in names:
        if not (done / name).exists():
            try:
                verify_folder(output / name, CheckpointError)
            except CheckpointError as error:
                print(f"{error}: it is trained again", flush=True)
                continue
            with new_folder(done / name, sealed=False) as partial_folder:
                shutil.copytree(output / name, partial_folder, dirs_exist_ok=True)


def _workers(params: TaskParams) -> int:
    return params.workers or max(1, 0 if params.device == "cpu" else torch.cuda.device_count())


class _Worker:
    """Trains the cells of a grid, one after another, on one device."""

    def __init__(
        self,
        params: TaskParams,
        pretrained: Path,
        shards_place: Place,
        done: Path,
        code: str,
        number: int,
    ) -> None:
        use_cpu(params.threads)
        gpus = torch.cuda.device_count()
        self._compute = ComputeSettings(
            choose_device(params.device, number % gpus if gpus else 0),
            precision=params.precision,
            micro_batch_size=params.micro_batch_size,
            recompute=params.recompute,
            compiled=params.compile,
        )
        self._params, self._done, self._code = params, done, code
        shards = open_shards(shards_place)
        self._initial = InitialWeights(pretrained, read_meta(pretrained), shards, params.trained)
        self._grid = Grid(params, self._initial)
        if not self._compute.device.is_cuda and params.micro_batch_size is None:
            self._compute.micro_batch_size = self._images_that_fit()

    def __call__(
        self, number: int, interrupts: Interrupts, tell: Callable[[int], None]
    ) -> dict[str, float]:
        """Train a cell, write its checkpoint, and return its scores."""
        grid, params = self._grid, self._params
        cell = grid.cells[number]
        verdict = grid.rule(cell.examples_per_class)
        state = self._done / f"{cell.name}.state"
        with lock(self._done / f"{cell.name}.lock", f"cell {cell.name} of task {params.name!r}"):
            model, loss = train_cell(
                cell,
                self._initial,
                grid.rows(cell),
                verdict,
                flip=params.flip,
                compute=self._compute,
                policy=CheckpointPolicy(state, params.checkpoint_seconds, interrupts, self._code),
                advance=tell,
            )
            calibration = grid.calibration(model, verdict, self._compute)
            meta = _meta(params, cell, self._initial, verdict, calibration, self._code)
            write_checkpoint(self._done / cell.name, model.cpu(), meta)
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
            self._params.recompute,
        )
        return fit if fit < rule.batch_size else None


def _meta(
    params: TaskParams,
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
        task=params.name,
        **cell.model_dump(),
        trained=params.trained,
        train_on=params.train_on,
        hyperrule=json.loads(json.dumps(asdict(rule))),
        calibration=calibration,
        upstream_digest=upstream.digest if cell.init == "upstream" else None,
        shards_digest=initial.shards.digest,
        code=code,
    )


def _figures(calibration: Calibration | MultiLabelCalibration) -> dict[str, float]:
    figures = calibration.model_dump(exclude={"held_out", "thresholds"}, exclude_none=True)
    return {f"val_{name}": value for name, value in figures.items()}
