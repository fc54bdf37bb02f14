"""The training of a distillation: the loss, the steps, and the checkpoint from which a lost task goes on.

The loss is Hinton's (2015, "Distilling the Knowledge in a Neural Network"), soft targets alone: T² · KL between the
teacher's and the student's distribution of the next token, both softened by the temperature T, the mean over tokens.
The optimiser is AdamW (Loshchilov & Hutter 2019) without decay of the weights, one for each tensor, which steps in
the backward pass as soon as the tensor's gradient is there: all gradients at once would be another model in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from llama_bench.errors import WorkError
from llama_bench.model import weights
from llama_bench.model.inputs import philox
from llama_bench.passes import checkpoint
from llama_bench.passes.checkpoint import Checkpoint
from llama_bench.passes.distill import Distill, sequence_of
from llama_bench.passes.info import Work
from llama_bench.passes.prune.masks import is_linear

if TYPE_CHECKING:
    from llama_bench.model.llama import Llama
    from llama_bench.passes.checkpoint import Array

STATE = "training.safetensors"
PROGRESS = "progress.json"

HELD_OUT = 8
"""Windows at the start of the text, at most a tenth of it, on which divergence is measured and nothing learnt."""

WARM_UP = 0.1  # of the steps: AdamW's first moments are rough
BETAS = (0.9, 0.95)  # a run is hundreds of steps, not hundreds of thousands
LARGEST_NORM = 1.0  # of a tensor's gradient


@dataclass
class Progress:
    """The loss of every step done, and the divergence from the teacher before the first."""

    kl_before: float
    losses: list[float] = field(default_factory=list)


def train(work: Work, before: Checkpoint) -> tuple[dict[str, Array], dict[str, Any]]:
    """Train the checkpoint `before` as `work` says; return its parameters by name and what to record.

    On a CPU the same options, source and threads give the same numbers, interrupted or not. Raises WorkError when the
    text is too short or when the loss is no longer finite.
    """
    options: Distill = work.options
    length = sequence_of(options, before.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held_out, lessons = divided(work, length)
    work.state.mkdir(parents=True, exist_ok=True)
    with _repeatable():
        teacher = checkpoint.network(Checkpoint(work.model), length, "logits").to(device)
        student = Student(checkpoint.network(before, length, "logits").to(device))
        identity = _identity(work, before)
        progress = student.resume(work.state / STATE, identity)
        if progress is None:
            progress = Progress(divergence(teacher, student.network, held_out))
        for step in range(len(progress.losses), options.steps):
            windows = batch(lessons, options, step)
            loss = student.learn(teacher, windows, options.temperature, rate(options, step))
            if not math.isfinite(loss):
                raise WorkError(f"step {step}: the loss is {loss}; lower learning_rate {options.learning_rate}")
            progress.losses.append(loss)
            _write_progress(work.state / PROGRESS, progress, options.steps)
            if (step + 1) % options.checkpoint_steps == 0 or step + 1 == options.steps:
                student.save(work.state / STATE, progress, identity)
        student.end()
        record = {
            "steps": options.steps,
            "batch": options.batch,
            "sequence": length,
            "windows": len(lessons),
            "device": device.type,
            "zeros_kept": student.zeros,
            "kl_before": progress.kl_before,
            "kl_after": divergence(teacher, student.network, held_out),
            "losses": progress.losses,
        }
    found = dict(student.network.state_dict())
    return {name: found[name].cpu().numpy() for name in weights.shapes(before.model)}, record


class Student:
    """The network that learns, and the optimiser of each of its tensors; a tied one is there once.

    Zeros of the linear layers are what an earlier pass pruned: their gradient is dropped, so they stay.
    """

    def __init__(self, network: Llama) -> None:
        self.network = network
        self.tensors = dict(network.named_parameters())
        self.optimizers: dict[str, torch.optim.AdamW] = {}
        self.hooks: list[RemovableHandle] = []
        self.zeros = 0
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(True)
            pruned = tensor.detach() == 0 if is_linear(name) else None
            if pruned is not None and not pruned.any():
                pruned = None
            self.zeros += 0 if pruned is None else int(pruned.sum())
            # fused: in place, where the plain form makes two more tensors of the largest one's size
            self.optimizers[name] = torch.optim.AdamW([tensor], betas=BETAS, weight_decay=0.0, fused=True)
            stepper = _stepper(self.optimizers[name], pruned)
            self.hooks.append(tensor.register_post_accumulate_grad_hook(stepper))  # type: ignore[no-untyped-call]

    def learn(self, teacher: Llama, windows: Tensor, temperature: float, learning_rate: float) -> float:
        """Take one step on `windows` [B, S] and return the loss before it, in nats; NaN and inf change nothing."""
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = learning_rate
        loss = softened(*_logits(teacher, self.network, windows), temperature)
        value = loss.item()
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
        return value

    def end(self) -> None:
        """Give up the optimisers: a hook and its tensor hold each other, and the moments are twice the model."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.optimizers.clear()

    def save(self, path: Path, progress: Progress, identity: str) -> None:
        """Write weights, moments and progress to `path`, whole or not at all."""
        tensors = {f"weight/{name}": tensor.detach() for name, tensor in self.tensors.items()}
        for name, optimizer in self.optimizers.items():
            state = optimizer.state[self.tensors[name]]
            tensors |= {f"{moment}/{name}": state[moment] for moment in MOMENTS}
        said = {"kl_before": progress.kl_before, "losses": progress.losses}
        part = path.with_suffix(".part")
        save_file(tensors, part, {"identity": identity, "progress": json.dumps(said)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)

    def resume(self, path: Path, identity: str) -> Progress | None:
        """Go on from what `save` left at `path`; None, and nothing changed, when there is none of this `identity`."""
        try:
            with safe_open(path, framework="pt") as stored:
                about = stored.metadata()
                if about["identity"] != identity:
                    return None
                progress = Progress(**json.loads(about["progress"]))
                for name, tensor in self.tensors.items():
                    tensor.data.copy_(stored.get_tensor(f"weight/{name}"))
                    moments = {m: stored.get_tensor(f"{m}/{name}").to(tensor.device) for m in MOMENTS}
                    self.optimizers[name].state[tensor] = {"step": torch.tensor(float(len(progress.losses))), **moments}
        except (FileNotFoundError, SafetensorError):
            return None
        return progress


MOMENTS = ("exp_avg", "exp_avg_sq")


def _stepper(optimizer: torch.optim.AdamW, pruned: Tensor | None) -> Callable[[Tensor], None]:
    def step(tensor: Tensor) -> None:
        if pruned is not None and tensor.grad is not None:
            tensor.grad.masked_fill_(pruned, 0)
        torch.nn.utils.clip_grad_norm_([tensor], LARGEST_NORM)
        optimizer.step()
        tensor.grad = None

    return step


def softened(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened distributions, the mean over tokens of [B, S, vocabulary]."""
    wanted, found = (
        functional.log_softmax(logits.flatten(0, 1) / temperature, dim=-1) for logits in (teacher, student)
    )
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2


def divergence(teacher: Llama, student: Llama, windows: Tensor) -> float:
    """Return the mean KL(teacher ‖ student) of the next token over `windows` [N, S], in nats."""
    with torch.no_grad():
        parts = [softened(*_logits(teacher, student, window[None]), 1.0).item() for window in windows]
    return sum(parts) / len(parts)


def _logits(teacher: Llama, student: Llama, windows: Tensor) -> tuple[Tensor, Tensor]:
    device = next(student.parameters()).device
    tokens, positions = windows.to(device), torch.arange(windows.shape[1], device=device).expand(windows.shape)
    with torch.no_grad():
        wanted = teacher(tokens, positions)[0]
    return wanted, student(tokens, positions)[0]


def divided(work: Work, length: int) -> tuple[Tensor, Tensor]:
    """Return the windows held out and those to learn from, each int64 [N, `length`], from one text."""
    options: Distill = work.options
    tokens = (HELD_OUT + options.steps * options.batch) * length
    windows = torch.from_numpy(checkpoint.windows(work.model, options, length, tokens))
    if len(windows) < 2:
        raise WorkError(f"the text has one window of {length} tokens; one is held out, and at least one to learn from")
    count = min(HELD_OUT, max(1, len(windows) // 10))
    return windows[:count], windows[count:]


def batch(lessons: Tensor, options: Distill, step: int) -> Tensor:
    """Return the windows of `step`, [batch, S]: every epoch has all in an order of its own, drawn from the seed."""
    places = np.arange(step * options.batch, (step + 1) * options.batch)
    orders = {int(epoch): _order(len(lessons), options.seed, int(epoch)) for epoch in set(places // len(lessons))}
    return lessons[[int(orders[int(place) // len(lessons)][place % len(lessons)]) for place in places]]


def _order(count: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    return np.argsort(philox(f"distill/{seed}/{epoch}").random_raw(count), kind="stable")


def rate(options: Distill, step: int) -> float:
    """Return the learning rate of `step`: a linear warm-up, then half a cosine (Loshchilov & Hutter 2017)."""
    warm = min(1.0, (step + 1) / max(1.0, WARM_UP * options.steps))
    return options.learning_rate * warm * (1 + math.cos(math.pi * step / options.steps)) / 2


def _identity(work: Work, before: Checkpoint) -> str:
    """Return a hash of what shapes the training; a checkpoint of another one is not gone on from."""
    said = [part.model_dump_json() for part in (work.options, work.model, before.model)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _write_progress(path: Path, progress: Progress, steps: int) -> None:
    """Write where training is for whoever looks: step, of how many, the loss, and the divergence at the start."""
    said = {"step": len(progress.losses), "steps": steps, "loss": progress.losses[-1], "kl_before": progress.kl_before}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(said), encoding="utf-8")
    os.replace(part, path)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Ask torch for algorithms that give the same numbers each time; on a GPU it may lack some."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # all is written anyway
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
