"""The training step as one compiled JAX program, for TPUs, through torchax.

The network stays the PyTorch module that it is everywhere else: torchax runs its operations as JAX
operations, `jax.jit` compiles forward, backward and update into one program, and the batch is
sharded over all devices of the host. Weights and momentum live on the devices; `write_back` copies
them into the module and its optimiser, from where checkpoints and evaluation take them as always.

Tested on XLA's CPU backend, with several virtual devices. Not run on a TPU by us.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD

from bigtransfer.errors import ConfigError
from bigtransfer.model.inference import normalized
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.train.loop import BeforeUpdate, StepValues
from bigtransfer.train.loss import Loss
from bigtransfer.train.state import MOMENTUM_BUFFER
from bigtransfer.train.stream import DeviceBatch, Reading


class TpuStep:
    """Forward, backward and SGD on the devices that JAX sees."""

    def __init__(self, model: ResNetV2, optimizer: SGD, loss: Loss, batch_size: int) -> None:
        """Move weights and momentum to the devices; the network is in training mode then.

        Args:
            model: With plain kernels; only its parameters change, so no BatchNorm.
            optimizer: Over its parameters; gives momentum and weight decay.
            loss: Of logits and labels.
            batch_size: Images per step; a multiple of the number of devices.

        Raises:
            ConfigError: If torchax or JAX is missing, or the batch cannot be divided.
        """
        try:
            import jax
            import torchax
        except ImportError as error:
            raise ConfigError(
                f"device: tpu needs torchax and JAX ({error}); install the extra `tpu`, with "
                "`jax[tpu]` on a TPU machine"
            ) from error
        if any(True for _ in model.buffers()):
            raise ConfigError("device: tpu trains networks with norm gn_ws or gn")
        self._jax, self._environment = jax, torchax.default_env()
        devices = jax.devices()
        if batch_size % len(devices):
            raise ConfigError(f"batch_size {batch_size} does not divide by {len(devices)} devices")
        mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
        spec = jax.sharding.PartitionSpec
        self._split = jax.sharding.NamedSharding(mesh, spec("batch"))
        everywhere = jax.sharding.NamedSharding(mesh, spec())
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._decay = {
            id(p): group["weight_decay"]
            for group in optimizer.param_groups
            for p in group["params"]
        }
        named = dict(model.named_parameters())
        self._parameters = jax.device_put({n: _array(p) for n, p in named.items()}, everywhere)
        self._momentum = jax.device_put(
            {
                n: _array(optimizer.state[p].get(MOMENTUM_BUFFER, torch.zeros_like(p)))
                for n, p in named.items()
            },
            everywhere,
        )
        # Donated: the old weights' memory becomes the new ones', so nobody may keep the old ones.
        self._step = jax.jit(self._program, donate_argnums=(0, 1))
        model.train()

    def __call__(
        self, batch: DeviceBatch, values: StepValues, before_update: BeforeUpdate
    ) -> Reading:
        """Do a step; see `TrainStep`."""
        assert values.lam == 1.0, "held by choose_step"
        before_update(None)  # the program computes loss and update in one go
        put = self._jax.device_put
        self._parameters, self._momentum, loss = self._step(
            self._parameters,
            self._momentum,
            put(batch.images.numpy(), self._split),
            put(batch.labels.numpy().astype(np.int32), self._split),
            values.rate,
        )
        return lambda: float(loss)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy weights and momentum from the devices into the module and its optimiser."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(_tensor(self._parameters[name]))
            state = self._optimizer.state[parameter]
            own = state.setdefault(MOMENTUM_BUFFER, torch.empty_like(parameter))
            own.copy_(_tensor(self._momentum[name]))

    def close(self) -> None:
        """Do nothing: `write_back` still needs what is on the devices."""

    def _program(self, parameters: Any, momentum: Any, images: Any, labels: Any, rate: Any) -> Any:
        """Be traced: pure, over JAX arrays."""
        from torchax.interop import jax_view, torch_view

        def loss_of(given: Any) -> Any:
            with self._environment:
                x = normalized(torch_view(images))
                logits = torch.func.functional_call(self._model, torch_view(given), (x,))
                return jax_view(self._loss(logits, torch_view(labels).long()))

        loss, gradients = self._jax.value_and_grad(loss_of)(parameters)
        factor = self._optimizer.param_groups[0]["momentum"]
        decay = {n: self._decay[id(p)] for n, p in self._model.named_parameters()}
        momentum = {
            n: factor * momentum[n] + gradients[n] + decay[n] * parameters[n] for n in parameters
        }
        return {n: p - rate * momentum[n] for n, p in parameters.items()}, momentum, loss


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().contiguous().numpy()
    return array


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))
