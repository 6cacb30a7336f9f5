"""Training in several processes: each takes every n-th datapoint of a minibatch, and gradients are summed.

Built on `torch.distributed`; in a single process, or before a process group exists, these functions do nothing.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyrolatent.errors import TrainingError


def rank() -> int:
    """Rank of this process; process 0 writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start() -> None:
    """Joins the process group of torchrun, by nccl on CUDA and by gloo elsewhere; without torchrun does nothing."""
    if not dist.is_torchelastic_launched():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Waits until every process has reached this call."""
    if size() > 1:
        _reached(dist.barrier)


def broadcast_text(text: str) -> str:
    """Returns the text of the first process in all processes."""
    found = [text]
    if size() > 1:
        _reached(dist.broadcast_object_list, found, 0)
    return found[0]


def shard(index: Tensor) -> Tensor:
    """This process's shard of a minibatch, every n-th datapoint."""
    return index[rank() :: size()] if size() > 1 else index


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copies the tensors of the first process to all processes, in place."""
    if size() > 1:
        for tensor in tensors:
            _reached(dist.broadcast, tensor, 0)


def total(tensors: list[Tensor]) -> list[Tensor]:
    """The sums of tensors over all processes, by a single all-reduce."""
    if size() == 1:
        return tensors
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    _reached(dist.all_reduce, joined)
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def average_buffers(module: nn.Module) -> None:
    """Averages the running statistics of batch normalisation over all processes, in place."""
    if size() > 1:
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(total([buffer])[0] / size())


def gather(part: Tensor, count: int) -> Tensor:
    """Gathers the rows of all shards as (count, ...), in the original order."""
    if size() == 1:
        return part
    rows = -(-count // size())
    padded = part.new_zeros(rows, *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(size())]
    _reached(dist.all_gather, parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:count]


def _reached(exchange: object, *arguments: object) -> None:
    try:
        exchange(*arguments)  # type: ignore[operator]
    except (RuntimeError, dist.DistError) as error:
        raise TrainingError(
            f"process {rank()} of {size()} lost another one ({str(error).partition(chr(10))[0][:120]}); "
            "what was written after the last epoch is kept"
        ) from error
