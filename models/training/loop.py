"""Training, from the first step to the best weights: one loop for every system.

Everything random in a step comes from the seed and the step's number, so a training that was
killed goes on from its checkpoint with the very losses it would have had on a CPU, and with much
the same ones on a GPU, whose kernels add up in any order.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from models.detection_table import Findings
from models.errors import TrainingInvalid
from models.training.cross_mini_batch import begin_batch
from models.training.public_names import with_own_names
from models.training.recipe import Optimisation, Recipe, optimisation_of
from models.training.sources import ImageSets

CHECKPOINT, BEST, METRICS = "checkpoint.safetensors", "best.safetensors", "metrics.csv"
_MAY_CHANGE = (
    *("name", "out", "together_with", "init", "sampled_grid"),
    *("evaluate_every", "checkpoint_every", "workers", "threads"),
)
_PLAIN_LINES = 50  # of a whole training, where nobody watches a terminal


class Task(Protocol):
    """What is trained: a network, batches for it, and how good it is.

    Attributes
    ----------
    network
    best_by
        The measure that the paper chooses its best model by; higher is better.
    """

    network: nn.Module
    best_by: str

    def batch(self, rng: np.random.Generator) -> Any:
        """One mini-batch, made in a process of its own."""
        ...

    def losses(self, batch: Any, device: torch.device) -> dict[str, Tensor]:
        """Terms () whose sum is minimised."""
        ...

    def measure(self, device: torch.device) -> dict[str, float]:
        """Figures on the validation images, `best_by` among them."""
        ...

    def report(self, device: torch.device) -> tuple[dict[str, Any], Findings | None]:
        """Figures on the test images, and what was found in them; thresholds are validation's.

        The network is in evaluation mode, on `device`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training ended.

    Attributes
    ----------
    steps
        Step whose weights are kept; they are in the network.
    best
        What `best_by` was then.
    device
        ``cpu`` or ``cuda``.
    """

    steps: int
    best: float
    device: str


def train(task: Task, recipe: Recipe, images: ImageSets, console: Console) -> Trained:
    """Train, or go on where an earlier run of the same recipe over the same images stopped.

    Writes ``checkpoint.safetensors``, ``best.safetensors``, ``metrics.csv`` and TensorBoard events
    into the recipe's folder.

    Parameters
    ----------
    task
    recipe
    images
        Those of the task: a checkpoint is of these, with these labels.
    console

    Raises
    ------
    TrainingInvalid
        The folder holds another training, an image cannot be read, memory does not suffice, or the
        loss is no longer a number.
    """
    recipe.out.mkdir(parents=True, exist_ok=True)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    network = task.network.to(device)
    taken = begin_with(network, recipe.init)
    if recipe.init != "scratch":
        of = len(network.state_dict())
        console.print(f"{recipe.name}: begins with {taken} of {of} tensors of {recipe.init}")
    settings = optimisation_of(recipe)
    optimiser = _optimiser(network, settings)
    identity = _identity(recipe, images)
    state = _resume(recipe.out / CHECKPOINT, network, optimiser, identity)
    if state.step:
        what = "is trained already" if state.step >= recipe.steps else "goes on"
        console.print(f"{recipe.name}: {what}, from step {state.step}", highlight=False)
    log = _MetricsFile(recipe.out / METRICS, state.step)
    board = SummaryWriter(str(recipe.out / "tensorboard"), purge_step=state.step + 1)
    every = recipe.evaluate_every or max(1, recipe.steps // 10)
    for step, parts in _watched(_batches(task, recipe, state.step), recipe, state.step, console):
        _seed(recipe.seed, step)
        rate = learning_rate(settings, step, recipe.steps)
        with _enough_memory(recipe):
            terms = _step(task, parts, optimiser, rate, settings, device)
        row: dict[str, float] = {"learning_rate": rate, **terms, "loss": sum(terms.values())}
        if not np.isfinite(row["loss"]):
            raise TrainingInvalid(
                f"{recipe.out}: the loss is {row['loss']} at step {step}: lower learning_rate."
            )
        if step % every == 0 or step == recipe.steps:
            network.eval()
            measured = task.measure(device)
            row |= measured
            if recipe.keep == "last" or measured[task.best_by] > state.best:
                state = _State(state.step, measured[task.best_by], step)
                _save_atomically(recipe.out / BEST, _weights(network), {"step": step})
        log.write(step, row)
        for name, value in row.items():
            board.add_scalar(name, value, step)
        if step % recipe.checkpoint_every == 0 or step == recipe.steps:
            state = _State(step, state.best, state.best_step)
            _save(recipe.out / CHECKPOINT, network, optimiser, state, identity)
    board.close()
    begin_with(network, str(recipe.out / BEST))
    network.eval()
    return Trained(state.best_step, state.best, device.type)


@contextmanager
def _enough_memory(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingInvalid(
            f"{recipe.name}: the GPU's memory does not hold {recipe.mini_batch} images of"
            f" {recipe.size_px} px at a time: raise mini_batches, now {recipe.mini_batches}."
        ) from error


def begin_with(network: nn.Module, init: str) -> int:
    """Load weights by name from a safetensors file; ``scratch`` leaves them as they are.

    Weights of a file that fit in name and shape are taken: a backbone's file begins a detector.
    Files with torchvision's names of ResNet, DenseNet and VGG-16 are understood, see
    :mod:`.public_names`.

    Returns
    -------
    int
        Tensors of the network that were taken.

    Raises
    ------
    TrainingInvalid
        The file cannot be read, or nothing in it fits.
    """
    if init == "scratch":
        return 0
    try:
        stored = load_file(init)
    except (OSError, SafetensorError) as error:
        raise TrainingInvalid(f"init {init} is not a safetensors file ({error}).") from error
    own = network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in with_own_names(stored, getattr(network, "blue_first", False)).items()
        if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        raise TrainingInvalid(f"init {init} holds no weight of this network: name another file.")
    network.load_state_dict({**own, **fitting})
    return len(fitting)


def learning_rate(settings: Optimisation, step: int, steps: int) -> float:
    """Learning rate of a step, 1 to `steps`."""
    rate = settings.learning_rate
    if step <= settings.warm_up_steps:
        return rate * step / settings.warm_up_steps
    if settings.schedule == "cosine":
        done = (step - settings.warm_up_steps) / max(1, steps - settings.warm_up_steps)
        return max(rate * 0.5 * (1 + float(np.cos(np.pi * done))), 1e-9)
    passed = sum(step > share * steps for share in settings.milestones)
    return rate * float(settings.factor**passed)


def _step(
    task: Task,
    parts: Sequence[Any],
    optimiser: torch.optim.Optimizer,
    rate: float,
    settings: Optimisation,
    device: torch.device,
) -> dict[str, float]:
    task.network.train()
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    begin_batch(task.network, len(parts))
    means: dict[str, float] = {}
    for part in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = task.losses(part, device)
        (torch.stack(list(terms.values())).sum() / len(parts)).backward()
        for name, term in terms.items():
            means[name] = means.get(name, 0.0) + float(term.detach()) / len(parts)
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(task.network.parameters(), settings.clip_norm)
    optimiser.step()
    return means


def _optimiser(network: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if settings.kind == "adamw":
        return torch.optim.AdamW(
            weights, settings.learning_rate, weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        weights, settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )


def _seed(seed: int, step: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


class _Steps(Dataset[tuple[int, list[Any] | TrainingInvalid]]):
    """The batches of the steps that are left, each in its parts and made from its own number."""

    def __init__(self, task: Task, recipe: Recipe, first: int) -> None:
        self._task, self._seed, self._parts = task, recipe.seed, recipe.mini_batches
        self._first, self._steps = first, recipe.steps

    def __len__(self) -> int:
        return self._steps - self._first + 1

    def __getitem__(self, place: int) -> tuple[int, list[Any] | TrainingInvalid]:
        """Give an image that cannot be read back as its sentence: torch raises it as a page."""
        step = self._first + place
        rng = np.random.default_rng((self._seed, step))
        try:
            return step, [self._task.batch(rng) for _ in range(self._parts)]
        except TrainingInvalid as error:
            return step, error


def _batches(task: Task, recipe: Recipe, done: int) -> Iterator[tuple[int, list[Any]]]:
    if done >= recipe.steps:
        return
    steps = _Steps(task, recipe, done + 1)
    for step, parts in DataLoader(
        steps,
        batch_size=None,
        num_workers=recipe.workers,
        collate_fn=_as_it_is,
        prefetch_factor=4 if recipe.workers else None,
    ):
        if isinstance(parts, TrainingInvalid):
            raise parts
        yield step, parts


def _as_it_is(batch: Any) -> Any:
    return batch


def _watched(
    batches: Iterator[tuple[int, list[Any]]], recipe: Recipe, done: int, console: Console
) -> Iterator[tuple[int, list[Any]]]:
    """A progress bar on a terminal, some plain lines in a log."""
    if not console.is_terminal:
        for step, batch in batches:
            yield step, batch
            if step % max(1, recipe.steps // _PLAIN_LINES) == 0 or step == recipe.steps:
                console.print(f"{recipe.name}: step {step} of {recipe.steps}", highlight=False)
        return
    columns = (TextColumn(recipe.name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task(recipe.name, total=recipe.steps, completed=done)
        for step, batch in batches:
            yield step, batch
            bar.update(shown, completed=step)


@dataclass(frozen=True, slots=True)
class _State:
    """How far a training is: last step kept, best measure, and the step that had it."""

    step: int
    best: float
    best_step: int


def _identity(recipe: Recipe, images: ImageSets) -> str:
    """What must not change between a training and its continuation: all that moves weights.

    Files may lie elsewhere, and be read by more processes. Corrected labels and further images are
    another training: its split may test on what this one has learnt from.
    """
    optimisation = asdict(optimisation_of(recipe))
    values = asdict(recipe) | {"optimisation": optimisation, "images": images.digest}
    for name in _MAY_CHANGE:
        del values[name]
    for source in (*values["data"], *values["validation"], *values["test"]):
        for name in ("folder", "file", "pacs_url"):
            del source[name]
    return json.dumps(values, sort_keys=True)


def _save(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: _State,
    identity: str,
) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in _weights(network).items()}
    for row, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                tensors[f"optimiser.{row}.{name}"] = torch.as_tensor(value).cpu()
    about = {"step": state.step, "best": state.best, "best_step": state.best_step}
    _save_atomically(path, tensors, {**about, "identity": identity})


def _resume(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, identity: str
) -> _State:
    """Take up a checkpoint; the beginning where there is none."""
    if not path.exists():
        return _State(0, -1.0, 0)
    try:
        stored = load_file(str(path))
        with safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingInvalid(
            f"{path} cannot be read ({error}): remove it to begin anew."
        ) from error
    if about["identity"] != identity:
        raise TrainingInvalid(
            f"{path} belongs to another training, of another recipe, other images or other labels:"
            " name another folder 'out' or remove it."
        )
    network.load_state_dict(_under(stored, "network"))
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(stored, "optimiser").items():
        row, _, key = name.partition(".")
        entries.setdefault(int(row), {})[key] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": entries, "param_groups": groups})
    return _State(about["step"], about["best"], about["best_step"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}


def _save_atomically(path: Path, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, str(unfinished), {"state": json.dumps(about)})
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


class _MetricsFile:
    """``metrics.csv``: a line per step; what lies after the checkpoint is written again."""

    def __init__(self, path: Path, done: int) -> None:
        self._path = path
        self._columns: Sequence[str] = ()
        rows = self._rows_until(done)
        if rows:
            self._columns = list(rows[0])
        self._write(rows)

    def _rows_until(self, done: int) -> list[dict[str, str]]:
        if not done or not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        # The last line may have been cut off with the machine: its step is another's then.
        whole = [row for row in rows if None not in row.values()]
        return [row for row in whole if int(row["step"]) <= done]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        values = {"step": str(step), **{name: repr(value) for name, value in row.items()}}
        new = [name for name in values if name not in self._columns]
        if new:  # measures are taken now and then: their columns come late
            rows = self._rows_until(step)
            self._columns = [*self._columns, *new]
            self._write(rows)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(values)

    def _write(self, rows: Sequence[Mapping[str, str]]) -> None:
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
