"""A model over several ranks: whole on each (DistributedDataParallel) or a share on each (FSDP2)."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from seq2exp.backbone import BackboneLayer


def shard(model: nn.Module, device: torch.device, world: int) -> None:
    """Leave each rank its share of the parameters (FSDP2), in place: each layer is gathered when it runs."""
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # nothing writes into it
    mesh = init_device_mesh(device.type, (world,))
    for layer in [module for module in model.modules() if isinstance(module, BackboneLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replica(model: nn.Module, world: int) -> nn.Module:
    """The module whose backward leaves the mean gradient of all ranks."""
    return model if world == 1 or isinstance(model, FSDPModule) else DistributedDataParallel(model)


def exchanging(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """A forward and backward after which the ranks exchange their gradients, or only add to them."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    return module.no_sync() if isinstance(module, DistributedDataParallel) and not now else nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its sharding. All ranks take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank holds whole, on the device and with the sharding of another."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
