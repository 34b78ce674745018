"""Steps of images: the papers' in plain PyTorch around a copy of our network, and those of diffusers and transformers.

Views are drawn for each image as it is loaded, as lightly and torchvision draw them.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers.loop import Given, Peer, Rows, follow, loader, stepping

KEY, LABEL = "image:image", "target:label"


def view(image: Tensor, least: float, most: float = 1.0, size: int = 0, jitter: float = 0.4) -> Tensor:
    """Return a part of an image [C, H, W] uint8 brought to its size, mirrored or not, lighter or darker: float."""
    height, width = image.shape[1:]
    area = torch.empty(1).uniform_(least, most).item()
    ratio = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
    rows = min(height, max(1, round(height * math.sqrt(area / ratio))))
    columns = min(width, max(1, round(width * math.sqrt(area * ratio))))
    top = int(torch.randint(height - rows + 1, (1,)))
    left = int(torch.randint(width - columns + 1, (1,)))
    part = image[None, :, top : top + rows, left : left + columns].float()
    found = F.interpolate(part, size=(size or height, size or width), mode="bilinear", antialias=True)[0]
    if torch.rand(1) < 0.5:
        found = found.flip(2)
    if jitter and torch.rand(1) < 0.8:
        light, contrast = torch.empty(2).uniform_(1 - jitter, 1 + jitter).tolist()
        found = (found * light).clamp(0, 255)
        found = torch.lerp(found.mean(), found, contrast).clamp(0, 255)
    return found


def pooled(network: nn.Module, image: Tensor) -> Tensor:
    return network({KEY: image}).pooled


def contrast(given: Given) -> Peer:
    """SimCLR."""
    network = deepcopy(given.ours.model)
    width = int(network.width)  # type: ignore[arg-type]
    project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))

    def loss(batch: Any) -> Tensor:
        z = F.normalize(project(pooled(network, torch.cat(batch))), dim=1)
        scores = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
        return F.cross_entropy(scores, torch.arange(len(z)).roll(len(z) // 2))

    rows = Rows(given.columns[KEY], change=lambda image: (view(image, 0.2), view(image, 0.2)))
    return Peer("plain PyTorch", loader(given, rows), stepping(given, [network, project], loss))


def self_distill(given: Given) -> Peer:
    """DINO: two large views and four small ones."""
    student = nn.ModuleList([deepcopy(given.ours.model), deepcopy(given.ours.head)])  # type: ignore[list-item]
    teacher = deepcopy(student).requires_grad_(False)
    centre = torch.zeros(given.ours.config.prototypes)  # type: ignore[union-attr, arg-type]
    side = given.columns[KEY].shape[2]

    def drawn(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(view(image, 0.4) for _ in range(2)) + tuple(view(image, 0.1, 0.4, side // 2) for _ in range(4))

    def loss(batch: Any) -> Tensor:
        large, small = torch.cat(batch[:2]), torch.cat(batch[2:])
        with torch.no_grad():
            scores = teacher[1](pooled(teacher[0], large))
            wanted = ((scores - centre) / 0.04).softmax(1).chunk(2)
            centre.mul_(0.9).add_(scores.mean(0), alpha=0.1)
        said = [student[1](pooled(student[0], each)) for each in (large, small)]
        said = [
            part for each, count in zip(said, (2, 4), strict=True) for part in (each / 0.1).log_softmax(1).chunk(count)
        ]
        pairs = [-(p * q).sum(1).mean() for i, p in enumerate(wanted) for j, q in enumerate(said) if i != j]
        return torch.stack(pairs).mean()

    step = stepping(given, [student], loss, lambda: follow(teacher, student, 0.996))
    return Peer("plain PyTorch", loader(given, Rows(given.columns[KEY], change=drawn)), step)


def masked_image(given: Given) -> Peer:
    """transformers' MAE."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    ours: Any = given.ours
    width, decoder = int(ours.model.width), int(ours.narrow.out_features)
    channels, side = given.columns[KEY].shape[1:3]
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=len(ours.model.blocks),
            num_attention_heads=ours.model.blocks[0].attention.num_heads,
            intermediate_size=4 * width,
            image_size=side // ours.patch * ours.patch,
            patch_size=ours.patch,
            num_channels=channels,
            decoder_hidden_size=decoder,
            decoder_num_hidden_layers=len(ours.blocks),
            decoder_num_attention_heads=ours.config.num_heads,
            decoder_intermediate_size=4 * decoder,
            mask_ratio=0.75,
            norm_pix_loss=True,
        )
    )
    size = side // ours.patch * ours.patch
    rows = Rows(given.columns[KEY], change=lambda image: view(image, 0.3, size=size, jitter=0.0) / 127.5 - 1)
    return Peer("transformers", loader(given, rows), stepping(given, [theirs], lambda image: theirs(image).loss))


def consistency(given: Given) -> Peer:
    """FixMatch: rows without a label have the code −1."""
    network, head = deepcopy(given.ours.model), nn.Linear(int(given.ours.model.width), 10)  # type: ignore[arg-type]

    def loss(batch: Any) -> Tensor:
        weak, strong, label = batch
        weak, strong = head(pooled(network, torch.cat([weak, strong]))).chunk(2)
        sure, said = weak.detach().softmax(1).max(1)
        known = label >= 0
        agree = (F.cross_entropy(strong, said, reduction="none") * (sure > 0.95)).mean()
        return (F.cross_entropy(weak[known], label[known]) if known.any() else 0.0) + agree

    def drawn(image: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        strong = view(image, 0.5, jitter=0.5)
        side = round(0.4 * strong.shape[1])
        top, left = torch.randint(strong.shape[1] - side + 1, (2,)).tolist()
        strong[:, top : top + side, left : left + side] = 127.5
        return image.float(), strong, label

    rows = Rows(given.columns[KEY], given.columns[LABEL], change=drawn)
    return Peer("plain PyTorch", loader(given, rows), stepping(given, [network, head], loss))


def autoencode(given: Given) -> Peer:
    """A variational autoencoder of dense layers, pixels as probabilities."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 40))
    decoder = nn.Sequential(nn.Linear(20, 500), nn.ReLU(), nn.Linear(500, 784))

    def loss(image: Tensor) -> Tensor:
        mean, log_variance = encoder(image).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        cost = F.binary_cross_entropy_with_logits(decoder(code), image.flatten(1), reduction="sum")
        return (cost - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())) / len(image)

    rows = Rows(given.columns[KEY], change=lambda image: image.float() / 255)
    return Peer("plain PyTorch", loader(given, rows), stepping(given, [encoder, decoder], loss))


def adversarial(given: Given) -> Peer:
    """A conditional GAN by the hinge loss: the judge's step, then the generator's, whose average trails it."""
    pair: Any = deepcopy(given.ours.model)
    smooth = deepcopy(pair.generator).requires_grad_(False)
    adams = [torch.optim.AdamW(each.parameters(), lr=2e-4, betas=(0.0, 0.9)) for each in (pair.judge, pair.generator)]

    def step(batch: Any) -> None:
        image, label = batch
        noise = torch.randn(2, len(image), pair.noise)
        adams[0].zero_grad()
        with torch.no_grad():
            made = pair.generate(noise[0], label)
        (F.relu(1 - pair.criticise(image, label)) + F.relu(1 + pair.criticise(made, label))).mean().backward()
        adams[0].step()
        adams[1].zero_grad()
        (-pair.criticise(pair.generate(noise[1], label), label)).mean().backward()
        adams[1].step()
        follow(smooth, pair.generator, 0.999)

    rows = Rows(given.columns[KEY], given.columns[LABEL], change=lambda image, label: (image / 127.5 - 1, label))
    return Peer("plain PyTorch", loader(given, rows), step)


def diffuse(given: Given) -> Peer:
    """diffusers' example: its network and its scheduler, asked for the velocity, told classes."""
    from diffusers import DDPMScheduler

    network = unet(given, classes=11)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")

    def loss(batch: Any) -> Tensor:
        image, label = batch
        noise, time = torch.randn_like(image), torch.randint(0, 1000, (len(image),))
        label = torch.where(torch.rand(len(label)) < 0.1, 10, label)
        said = network(scheduler.add_noise(image, noise, time), time, class_labels=label).sample
        return F.mse_loss(said, scheduler.get_velocity(image, noise, time))

    rows = Rows(given.columns[KEY], given.columns[LABEL], change=lambda image, label: (image / 127.5 - 1, label))
    return Peer("diffusers", loader(given, rows), stepping(given, [network], loss))


def translate_image(given: Given) -> Peer:
    """Twice the side, by diffusers' network."""
    network = unet(given)

    def loss(image: Tensor) -> Tensor:
        small = F.interpolate(image, scale_factor=0.5, mode="area")
        seen = F.interpolate(small, size=image.shape[2:], mode="bicubic").clamp(-1, 1)
        return F.l1_loss(seen + network(seen, 0).sample, image)

    rows = Rows(given.columns[KEY], change=lambda image: image / 127.5 - 1)
    return Peer("diffusers", loader(given, rows), stepping(given, [network], loss))


def distill(given: Given) -> Peer:
    """A student of a larger network, as Hinton et al. have it."""
    network, head = deepcopy(given.ours.model), nn.Linear(int(given.ours.model.width), 10)  # type: ignore[arg-type]
    teacher: Any = deepcopy(given.ours._teacher[0]).eval()  # type: ignore[index, operator, union-attr]

    def loss(batch: Any) -> Tensor:
        image, label = batch
        with torch.no_grad():
            theirs = teacher.outputs({KEY: image})[0].squeeze(1) / 4
        ours = head(pooled(network, image))
        soft = F.kl_div((ours / 4).log_softmax(1), theirs.softmax(1), reduction="batchmean") * 16
        return 0.9 * soft + 0.1 * F.cross_entropy(ours, label)

    rows = Rows(given.columns[KEY], given.columns[LABEL])
    return Peer("plain PyTorch", loader(given, rows), stepping(given, [network, head], loss))


def metric(given: Given) -> Peer:
    """ArcFace."""
    network, project = deepcopy(given.ours.model), nn.Linear(int(given.ours.model.width), 64, bias=False)  # type: ignore[arg-type]
    directions = nn.Linear(64, 10, bias=False)

    def loss(batch: Any) -> Tensor:
        image, label = batch
        vectors = F.normalize(project(pooled(network, image)), dim=1)
        cosine = F.linear(vectors, F.normalize(directions.weight, dim=1)).clamp(-1 + 1e-7, 1 - 1e-7)
        own = F.one_hot(label, 10).bool()
        return F.cross_entropy(16 * torch.where(own, (cosine.acos() + 0.5).cos(), cosine), label)

    rows = Rows(given.columns[KEY], given.columns[LABEL])
    return Peer("plain PyTorch", loader(given, rows), stepping(given, [network, project, directions], loss))


def unet(given: Given, classes: int | None = None) -> nn.Module:
    """Return diffusers' network with the sizes of ours."""
    from diffusers import UNet2DModel

    ours: Any = given.ours.model
    widths = [stage.blocks[0].conv_out.out_channels for stage in ours.down]
    channels, side = given.columns[KEY].shape[1:3]
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=len(ours.down[0].blocks),
        norm_num_groups=ours.norm.num_groups,
        attn_norm_num_groups=ours.norm.num_groups,
        attention_head_dim=None,
        down_block_types=["DownBlock2D"] * (len(widths) - 1) + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (len(widths) - 1),
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=classes,
    )
