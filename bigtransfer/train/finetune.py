"""Transfer to a task: every cell (init, examples per class, seed) of a small grid, by HyperRule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.cells import Cell, Cells, ListedCell, Origin
from bigtransfer.artifacts.decoding import as_stored_line
from bigtransfer.artifacts.weights import UpstreamMeta, WeightsMeta
from bigtransfer.config import TaskParams
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import CheckpointError, ConfigError
from bigtransfer.model.checkpoint import read_meta, read_tuned_meta
from bigtransfer.progress import counted, progress
from bigtransfer.storage import (
    digest_of,
    new_folder,
    verify_folder,
)
from bigtransfer.storage.places import Place
from bigtransfer.train.cell import InitialWeights
from bigtransfer.train.cell_trainer import Effort, Job, Method, Trainings, figures_of
from bigtransfer.train.code import code_version
from bigtransfer.train.compute import Machine
from bigtransfer.train.grid import OVERRIDES, QUICK, RECIPE, Grid, GridPlan
from bigtransfer.train.interrupts import Interrupts, watched
from bigtransfer.train.linear_probe import PROBE_RECIPE, LinearProbes, require_possible
from bigtransfer.train.mirror import GridMirror, place_of
from bigtransfer.train.state import fingerprint
from bigtransfer.train.workers import in_workers

_AGREED = "agreed"
"""File of a run that was begun: whoever goes on with it is not asked again."""
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
    notes_effort: bool = False,
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
        log: Receives each cell's curve and scores when it is finished, as `<cell>/<metric>`.
        on_cell: Receives each cell with its scores, those that were there already first.
        longest_seconds: What takes longer on a CPU is refused, because nobody has agreed to it;
            None: it is only said, and the same again is not asked either.
        notes_effort: Whether `cells.json` says what each network has cost: then the same again
            does not give the same file.
        keep_mirror: Whether the mirror keeps what it has: the output itself may still be lost.

    Returns:
        What `cells.json` holds.

    Raises:
        DatasetError: If a class has fewer images than the largest subset needs.
        TooLongError: If it takes longer than `longest_seconds`; nothing is begun.
        ConfigError: If few-shot subsets are asked of a dataset with several labels per image.
        KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM; the same again goes on.
    """
    shards = open_shards(shards_place)
    upstream = read_meta(pretrained)
    quick = params.preset == QUICK
    _require_possible(params, upstream)
    plan, machine = _plan_of(params), _machine_of(params)
    trained = "head" if quick else params.trained
    initial = InitialWeights(pretrained, upstream, shards, trained)
    grid = Grid(plan, initial)
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
    missing = []
    for number, cell in enumerate(grid.cells):
        if (done / cell.name).is_dir():
            on_cell(cell, figures_of(read_tuned_meta(done / cell.name).calibration))
        else:
            missing.append(number)
    job = Job(
        plan=plan,
        machine=machine,
        pretrained=pretrained,
        shards_place=shards_place,
        trained=trained,
        flip=params.flip,
        checkpoint_seconds=params.checkpoint_seconds,
        mirror_place=mirror_place,
        done=done,
        code=code,
    )
    method = LinearProbes(job, grid, initial, params) if quick else Trainings(job, grid, params)
    agreed = done / _AGREED
    method.explain(missing, None if agreed.exists() else longest_seconds)
    done.mkdir(parents=True, exist_ok=True)
    agreed.touch()

    def finished(cell: Cell, figures: dict[str, float]) -> None:
        mirror.send_soon(done / cell.name)
        on_cell(cell, figures)

    with (
        watched(params.stop_seconds) as interrupts,
        mirror.sending(all_of_them=keep_mirror),
    ):
        method.prepare(missing, interrupts)
        efforts = _train(grid, missing, method, interrupts, log, finished)
    noted = efforts if notes_effort else {}
    result = Cells(
        task=params.name,
        dataset=shards.summary.dataset,
        multi_label=shards.summary.multi_label,
        recipe=made.recipe,
        upstream_digest=made.upstream_digest,
        upstream=_origin_of(upstream),
        shards_digest=shards.digest,
        content_digest=made.content_digest,
        code={cell.name: read_tuned_meta(done / cell.name).code for cell in grid.cells},
        cells=tuple(
            ListedCell.of(cell, **vars(noted[cell.name]) if cell.name in noted else {})
            for cell in grid.cells
        ),
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


def _origin_of(upstream: WeightsMeta) -> Origin:
    """Return where weights come from, as `cells.json` says it."""
    if not isinstance(upstream, UpstreamMeta):
        return Origin()
    source = upstream.source
    return Origin(
        dataset=upstream.dataset,
        file=source.file if source else "",
        sha256=source.sha256 if source else "",
    )


def _require_possible(params: TaskParams, upstream: WeightsMeta) -> None:
    if params.preset == QUICK:
        require_possible(params)
    elif params.trained == "head" and upstream.norm in ("bn", "bn_ws"):
        raise ConfigError(
            f"trained: head leaves the network as it is, but norm {upstream.norm} changes with "
            "every batch; set 'trained' to all"
        )


def _train(
    grid: Grid,
    missing: list[int],
    method: Method,
    interrupts: Interrupts,
    log: Log,
    on_cell: OnCell,
) -> dict[str, Effort]:
    """Train the missing cells, several at a time, and show how far all of them are.

    Returns:
        What each has cost.
    """
    efforts: dict[str, Effort] = {}
    steps = [method.steps(cell) for cell in grid.cells]
    waiting = set(missing)
    reached = [0 if number in waiting else own for number, own in enumerate(steps)]
    label = f"fine-tune {grid.plan.task}"
    with progress(label, sum(steps), unit="step", start=sum(reached)) as advance:

        def tell(number: int, step: int) -> None:
            leap = max(0, step - 1) if number in waiting else 0  # it was resumed at that step
            waiting.discard(number)
            reached[number] = step
            advance(sum(reached), grid.cells[number].name, leap=leap)

        for number, found in in_workers(method.make, missing, method.workers, interrupts, tell):
            cell = grid.cells[number]
            for row in found.curve:
                points = {name: value for name, value in row.items() if name != "step"}
                log(row["step"], {f"{cell.name}/{name}": own for name, own in points.items()})
            log(steps[number], {f"{cell.name}/{name}": own for name, own in found.figures.items()})
            efforts[cell.name] = found.effort
            on_cell(cell, found.figures)
    return efforts


def is_done(output: Path, params: TaskParams, pretrained: Path, shards: Place) -> bool:
    """Say whether `output` holds these very networks already; raises what `open_shards` does."""
    content_digest = open_shards(shards).content_digest
    cells = [cell.name for cell in _plan_of(params).cells]
    there = _made_before(output, _MadeOf(recipe_of(params), digest_of(pretrained), content_digest))
    same_code = params.resume == "same_code"
    return _usable(there, code_version(__name__), same_code=same_code) == cells


def recipe_of(params: TaskParams) -> Json:
    """Return the params that decide what a cell becomes, as JSON values: lists, not tuples."""
    names = set(PROBE_RECIPE if params.preset == QUICK else RECIPE)
    recipe = params.model_dump(mode="json", include=names)
    if recipe["sampling"] == "natural":
        del recipe["sampling"]  # as before there was a choice: networks from then are the same
    if recipe.get("weight_decay") is None:
        recipe.pop("weight_decay", None)  # the same
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
        weight_decay=params.weight_decay or 0.0,
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
        params.cuda_graph,
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


def _say(line: str) -> None:
    print(line, flush=True)
