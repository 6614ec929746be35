"""BatchNorm over groups of images, as many devices of few images each have it.

The paper's argument against BatchNorm is the number of images on each device (section 3.1 and
appendix): a group stands for a device, so that one device can show it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer.errors import ConfigError


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """In training, each group of images has statistics of its own; else it is plain BatchNorm.

    Known as ghost batch normalization (Hoffer et al. 2017, arXiv 1705.08741). The running
    statistics follow the mean over the groups, once a step, as devices that average theirs do.

    Attributes:
        group_images: Images of a group, one after the other in the batch.
    """

    def __init__(self, num_features: int, group_images: int, *, eps: float) -> None:
        super().__init__(num_features, eps=eps)
        self.group_images = group_images

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised images, of images (B, C, H, W).

        Raises:
            ConfigError: If B is no multiple of `group_images`, in training.
        """
        groups, rest = divmod(len(x), self.group_images)
        if not self.training or (groups, rest) == (1, 0):
            return super().forward(x)
        if rest:
            raise ConfigError(
                f"norm_batch {self.group_images} does not divide the {len(x)} images of a forward "
                "pass; give another batch_size or micro_batch_size"
            )
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        running = (self.running_mean, self.running_var)
        # Groups of images become groups of channels, each of which has its own statistics.
        size = (groups, self.group_images, *x.shape[1:])
        apart = x.reshape(size).transpose(0, 1).flatten(1, 2)
        mean, var = (one.repeat(groups) for one in running)
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        y = F.batch_norm(apart, mean, var, weight, bias, True, self.momentum, self.eps)
        with torch.no_grad():
            for own, found in zip(running, (mean, var), strict=True):
                own.copy_(found.view(groups, -1).mean(0))
            self.num_batches_tracked.add_(1)
        split = (self.group_images, groups, *x.shape[1:])
        return y.reshape(split).transpose(0, 1).flatten(0, 1)
