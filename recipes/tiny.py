"""Small networks that underfit: what NetAug is for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["TinyMobileNet", "tiny_mobilenet"]


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; add the input where shapes allow.

    Source: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    figure 4.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand_ratio: int):
        super().__init__()
        inner = in_channels * expand_ratio
        self.layers = nn.Sequential(
            *_conv_norm(in_channels, inner, 1),
            nn.ReLU6(),
            *_conv_norm(inner, inner, 3, stride, groups=inner),
            nn.ReLU6(),
            *_conv_norm(inner, out_channels, 1),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return x + self.layers(x) if self.residual else self.layers(x)


class TinyMobileNet(nn.Module):
    """A MobileNetV2 of a few blocks.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the input.
        channels: output channels of the stem and of each inverted residual block.
        strides: stride of the stem and of each block.
        expand_ratio: inner channels of a block over its input channels.
        head: channels of the last 1x1 convolution, before pooling.
        drop_rate: of the features before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        channels: Sequence[int] = (16, 16, 24, 24),
        strides: Sequence[int] = (2, 1, 2, 1),
        expand_ratio: int = 3,
        head: int = 96,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if len(channels) != len(strides):
            raise ValueError(
                f"channels and strides differ in length: {tuple(channels)} and {tuple(strides)}."
            )
        self.stem = nn.Sequential(*_conv_norm(in_chans, channels[0], 3, strides[0]), nn.ReLU6())
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(before, after, stride, expand_ratio)
                for before, after, stride in zip(channels, channels[1:], strides[1:], strict=False)
            )
        )
        self.head = nn.Sequential(*_conv_norm(channels[-1], head, 1), nn.ReLU6())
        self.default_cfg = {
            "input_size": (in_chans, 32, 32)
        }  # timm's word for the image size it is for
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes)."""
        x = self.pool(self.head(self.blocks(self.stem(x)))).flatten(1)
        return self.classifier(self.drop(x))


def tiny_mobilenet(num_classes: int = 10, in_chans: int = 3, **options: object) -> TinyMobileNet:
    """A TinyMobileNet; by default 13,154 parameters, for 10 classes of 32x32 colour images."""
    return TinyMobileNet(num_classes, in_chans, **options)
