"""Training by several processes, started by `torchrun`: everything that is not there when one process trains alone.

The engine is PyTorch's FSDP2: every process holds a part of each weight, of its gradient and of the optimizer's state,
and trains on its part of each batch. The first process (rank 0) alone prints and writes. All functions work in one
process too, where they do nothing.

Shapes: N matrices of one shape; W processes ("world").
"""

import contextlib
import functools
import logging
import os
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from nanochat.common import Interrupted, UserError
from nanochat.data.batches import Batch
from nanochat.model.modeling import NanoChatForCausalLM

LAST_WORDS_SECONDS = 10.0  # how long a process that fails waits for the first one to say why

T = TypeVar("T")
_stores: list[dist.Store] = []  # what the processes of this group tell one another; one while joined, else none


# ------------------------------------------------------------------------------------------- who is there


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Train together with the other processes that `torchrun` has started; alone if there are none.

    If the first process ends by an error, the others end too, without a word: it has said what there is to say.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    found, rank, world = next(dist.rendezvous("env://"))
    store = store_of_this_start(found, rank, world)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "gloo":  # it has no all-to-all, and PyTorch says so once per run: nothing that anybody could mend
        logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    _stores.append(store)
    try:
        yield
    except BaseException as error:
        if is_first():
            announce("ended")
        elif _first_has_ended() and not isinstance(error, Interrupted):
            sys.exit(2)
        raise
    finally:
        _stores.clear()
        dist.destroy_process_group()


def store_of_this_start(store: dist.Store, rank: int, world: int) -> dist.Store:
    """The part of a store that the processes started together share, and no others before them.

    `torchrun` keeps one store over its restarts, and counts them differently on each node. Who read there what
    processes that are gone have left would call them at their old addresses. So the first process names this start to
    everyone who is here: each of the others asks under a name that is new.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", mine)
        start = store.get(f"answer/{mine}").decode()
        store.set(f"{start}/here/{rank}", "yes")
        return dist.PrefixStore(start, store)
    missing = set(range(1, world))
    while missing:
        for other in missing:
            if store.check([f"asks/{other}"]):  # perhaps one that is gone: then the new one's name is still to come
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", mine)
        missing = {other for other in missing if not store.check([f"{mine}/here/{other}"])}
        time.sleep(0.01)
    return dist.PrefixStore(mine, store)


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def was_restarted() -> bool:
    """Whether `torchrun --max-restarts` has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_batch(rows: int, seq_len: int) -> None:
    """Refuse a batch of rows of `seq_len` tokens that can't be shared evenly.

    Raises:
        UserError: naming the next size that can.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if rows % world:
        more = -(-rows // world) * world
        raise UserError(
            f"A batch of {rows} rows can't be shared evenly by {world} processes; choose --batch-tokens "
            f"{more * seq_len} ({more} rows), or another number of processes."
        )


# ------------------------------------------------------------------------------------------- what they tell one another


def announce(event: str) -> None:
    """Tell all processes that something has happened."""
    for store in _stores:
        store.set(event, "yes")


def wait_for(event: str) -> None:
    """Wait until the first process announces the event, however long that takes; leave if it fails before."""
    [store] = _stores
    while not store.check([event]):
        if store.check(["ended"]):
            sys.exit(2)
        time.sleep(0.1)


def wait_for_all() -> None:
    """Return once every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def from_first(value: T) -> T:
    """The first process's value, on all of them."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def summed(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors, in place. The device is not waited for."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def _first_has_ended() -> bool:
    [store] = _stores
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    with contextlib.suppress(RuntimeError):  # the store has gone with the first process
        while not store.check(["ended"]):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
    time.sleep(1)  # torchrun ends everybody as soon as one has ended: not in the middle of the first one's message
    return True


# ------------------------------------------------------------------------------------------- the model in parts


def shard(
    model: NanoChatForCausalLM, loss_of: Callable[[NanoChatForCausalLM, Batch], Tensor], whole_weights: bool
) -> Callable[[Batch], Tensor]:
    """Share the model out among the processes, in place; returns its loss as a function of a batch.

    Every process must hold the same weights before. They are gathered for the forward pass and, with
    `whole_weights`, kept until the backward pass is through; else each block's are gathered when it is its turn, twice
    in a micro-batch: slower, but a process never holds more than one block. Gradients are summed, not averaged.
    """
    if not dist.is_initialized():
        return functools.partial(loss_of, model)
    for module in (*model.model.layers, model):
        fully_shard(module, reshard_after_forward=not whole_weights)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo can't scale
    # The loss reads the head's weights without calling the head: it counts as a forward pass of the whole model.
    owner = cast(Any, model)
    owner.training_loss = types.MethodType(loss_of, model)
    register_fsdp_forward_method(owner, "training_loss")
    return owner.training_loss


def whole_weights_fit(model: NanoChatForCausalLM) -> bool:
    """Whether all fp32 weights and gradients take less than half of a GPU's memory, so that each can hold them."""
    if not torch.cuda.is_available():
        return True
    return 2 * 4 * model.num_parameters() < torch.cuda.mem_get_info()[1] / 2


def exchange_gradients(model: NanoChatForCausalLM, now: bool) -> None:
    """Whether the next backward pass sums gradients over the processes, or only adds to this one's.

    Only for models whose whole weights fit: the gradients waiting to be summed are whole, too.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
        model.set_reshard_after_backward(now)


def put_back_together(model: NanoChatForCausalLM) -> NanoChatForCausalLM | None:
    """A copy of the model with all its weights, on the first process's CPU; None on the others. Alone: the model."""
    if not isinstance(model, FSDPModule):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not is_first():
        return None
    with torch.device("meta"):
        whole = NanoChatForCausalLM(model.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    return whole


def release(model: NanoChatForCausalLM) -> None:
    """Free the weights that a forward pass without a backward pass has gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, for changes in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_whole_matrices(function: Callable[[Tensor], Tensor], stack: Tensor, like: Tensor) -> Tensor:
    """`function` of a stack (N, rows, cols), where each process holds some rows of every matrix.

    The work is shared out: the processes swap rows so that each has N / W whole matrices, and swap back afterwards.
    `like` is the parameter that the first of the matrices belongs to.
    """
    if not isinstance(like, DTensor):
        return function(stack)
    mesh, shape = like.device_mesh, torch.Size((len(stack), *like.shape))
    stride = (like.shape[0] * like.shape[1], like.shape[1], 1)

    def exchanged(part: Tensor, before: Shard, after: Shard) -> Tensor:
        tensor = DTensor.from_local(part.contiguous(), mesh, [before], shape=shape, stride=stride)
        return tensor.redistribute(placements=[after]).to_local()

    matrices = exchanged(stack, Shard(1), Shard(0))  # (about N / W, rows, cols)
    if len(matrices):
        matrices = function(matrices)
    return exchanged(matrices, Shard(0), Shard(1))
