"""Train the embedded models of ``--recipe embedded`` from scratch, on scenes drawn by code.

    python tools/train_embedded.py all --work /tmp/train --out bidsapp/models/embedded

Each model can be trained by itself (``scenes``, ``vdvae``, ``clip``, ``autoencoder``, ``unet``,
``export``), in that order; ``all`` runs them one after the other. Everything is seeded. On two CPU
cores the whole takes about two hours, most of it the UNet. The weights are written as float16
safetensors in the layouts that the published models have, so that the same loaders read both.
"""

from __future__ import annotations

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from embedded_models import (
    VDVAE_CONFIG,
    make_autoencoder,
    make_clip,
    make_scheduler,
    make_unet,
)
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from training_loop import Average, count, half_precision, optimise
from training_parts import elbo_terms, scale_initial_weights, split_paths

from bidsapp.demo.scenes import captions, draw, make_scene
from bidsapp.models.clip import CLIP_MEAN, CLIP_STD, ClipTokens
from bidsapp.models.generators.dual_attention import set_text_share
from bidsapp.models.vdvae import VDVAE, VDVAEConfig

#: The family of scenes the models are trained on; the simulated datasets use others.
FAMILY = 1
N_SCENES = 24_000
N_VALID = 500


# ---------------------------------------------------------------- scenes


def _draw_pair(index: int) -> tuple[np.ndarray, np.ndarray]:
    image = Image.fromarray(draw(make_scene(FAMILY, index), 128))
    large = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
    small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    return large, small


def draw_scenes(work: Path) -> None:
    """Draw all training scenes once, at 64 and 32 pixels."""
    with ProcessPoolExecutor(2) as pool:
        pairs = list(pool.map(_draw_pair, range(N_SCENES), chunksize=200))
    np.save(work / "scenes64.npy", np.stack([p[0] for p in pairs]))
    np.save(work / "scenes32.npy", np.stack([p[1] for p in pairs]))


def load_scenes(work: Path, size: int) -> np.ndarray:
    """All scenes at one size, uint8 (n, size, size, 3); the last N_VALID are for validation."""
    scenes: np.ndarray = np.load(work / f"scenes{size}.npy")
    return scenes


# ---------------------------------------------------------------- VDVAE


def train_vdvae(work: Path, n_steps: int) -> None:
    """Train by the evidence lower bound (Child 2021), the rate's weight warmed up."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    scenes = load_scenes(work, 32)
    model = VDVAE(VDVAEConfig(**VDVAE_CONFIG))
    scale_initial_weights(model)
    print("vdvae", count(model))
    average = Average(model, 0.998)
    for step, _ in optimise(model, n_steps, 1.5e-3, average, clip=5.0):
        rows = rng.integers(0, N_SCENES - N_VALID, 32)
        with half_precision():
            distortion, rate = elbo_terms(model, scenes[rows])
        beta = min(1.0, 0.1 + step / (0.4 * n_steps))
        loss = (distortion + beta * rate).mean()
        loss.backward()
        if step % 50 == 0:
            print(f"distortion {distortion.mean():.3f} rate {rate.mean():.3f}", flush=True)
        if step % 500 == 499:
            torch.save(average.model.state_dict(), work / "vdvae.pt")
            print("psnr by layers", vdvae_quality(average.model, scenes[-64:]), flush=True)
    torch.save(average.model.state_dict(), work / "vdvae.pt")


def vdvae_quality(model: VDVAE, images: np.ndarray) -> dict[int, float]:
    """PSNR of decoding the posterior means of the first k layers."""
    result = {}
    for k in (1, 4, 8, 10, model.n_blocks):
        latents = model.encode_latents(images, k)
        decoded = model.decode_latents(latents, [], temperature=0.0)
        error = np.mean((decoded.astype(float) - images) ** 2)
        result[k] = round(float(10 * np.log10(255**2 / error)), 2)
    return result


# ---------------------------------------------------------------- CLIP


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images blurred by reduction to 12 to 40 pixels, as first-stage images are."""
    out = images.clone()
    for row in range(0, len(images), 2):
        side = int(torch.randint(12, 40, (1,), generator=generator))
        small = F.interpolate(images[row : row + 1], size=(side, side), mode="bilinear", antialias=True)
        out[row : row + 1] = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    return out


def train_clip(work: Path, n_steps: int) -> None:
    """Contrastive training on pairs of scenes and captions (Radford et al. 2021)."""
    torch.manual_seed(2)
    rng = np.random.default_rng(2)
    generator = torch.Generator().manual_seed(2)
    scenes = load_scenes(work, 64)
    clip = make_clip()
    both = nn.ModuleList([clip.vision, clip.text])
    both.register_parameter("temperature", nn.Parameter(torch.tensor(2.5)))
    print("clip", count(both))
    average = Average(both, 0.995)
    texts = [captions(make_scene(FAMILY, i)) for i in range(N_SCENES)]
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (CLIP_MEAN, CLIP_STD))
    for step, _ in optimise(both, n_steps, 8e-4, average, weight_decay=0.05):
        rows = rng.integers(0, N_SCENES - N_VALID, 192)
        x = torch.from_numpy(scenes[rows]).permute(0, 3, 1, 2).float() / 255
        x = (degrade(x, generator) - mean) / std
        ids = clip.token_ids([texts[r][rng.integers(2)] for r in rows])
        with half_precision():
            seen, read = clip.vision(x).image_embeds, clip.text(ids).text_embeds
        seen, read = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
        logits = both.temperature.exp() * seen @ read.T
        truth = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        loss.backward()
        if step % 50 == 0:
            print(f"loss {loss.item():.3f} temperature {both.temperature.exp().item():.1f}", flush=True)
        if step % 250 == 249 or step == n_steps - 1:
            save_clip(work, average.model, clip)
            trained = ClipTokens.load(work / "clip")
            images = F.normalize(torch.from_numpy(trained.image_embeddings(scenes[-N_VALID:])), dim=-1)
            with torch.no_grad():
                ids = trained.token_ids([t[0] for t in texts[-N_VALID:]])
                words = F.normalize(trained.text(ids).text_embeds, dim=-1)
            top = ((images @ words.T).argmax(1) == torch.arange(N_VALID)).float().mean()
            print(f"validation top-1 of {N_VALID}: {top:.3f}", flush=True)


def save_clip(work: Path, both: nn.Module, clip: ClipTokens) -> None:
    """Write both encoders and the tokenizer in the hub's layout."""
    both[0].save_pretrained(work / "clip" / "image_encoder")
    both[1].save_pretrained(work / "clip" / "text_encoder")
    clip.tokenizer.save_pretrained(work / "clip" / "tokenizer")


# ---------------------------------------------------------------- AutoencoderKL


def train_autoencoder(work: Path, n_steps: int) -> None:
    """Reconstruction of pixels and of their differences, with a light rate term."""
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    scenes = load_scenes(work, 64)
    model = make_autoencoder()
    print("autoencoder", count(model))
    average = Average(model, 0.998)
    for step, _ in optimise(model, n_steps, 2e-3, average):
        rows = rng.integers(0, N_SCENES - N_VALID, 16)
        x = torch.from_numpy(scenes[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with half_precision():
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample.float()
        loss = F.l1_loss(y, x) + 0.5 * edge_loss(y, x) + 2e-6 * posterior.kl().mean()
        loss.backward()
        if step % 50 == 0:
            print(f"loss {loss.item():.4f}", flush=True)
        if step % 500 == 499 or step == n_steps - 1:
            torch.save(average.model.state_dict(), work / "autoencoder.pt")
            with torch.no_grad():
                x = torch.from_numpy(scenes[-64:]).permute(0, 3, 1, 2).float() / 127.5 - 1
                y = average.model.decode(average.model.encode(x).latent_dist.mean).sample
            print(
                f"validation PSNR {10 * math.log10(4 / F.mse_loss(y.clamp(-1, 1), x).item()):.2f}", flush=True
            )


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


# ---------------------------------------------------------------- UNet


@torch.no_grad()
def precompute(work: Path) -> None:
    """AutoKL latents and CLIP tokens of all scenes, once."""
    scenes = load_scenes(work, 64)
    clip = ClipTokens.load(work / "clip")
    model = make_autoencoder()
    model.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True))
    latents, seen, read = [], [], []
    for start in range(0, N_SCENES, 250):
        batch = scenes[start : start + 250]
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents.append(model.encode(x).latent_dist.mean.numpy())
        seen.append(clip.vision_tokens(batch).astype(np.float16))
        pairs = [captions(make_scene(FAMILY, i)) for i in range(start, start + len(batch))]
        read.append(np.stack([clip.text_tokens([p[k] for p in pairs]) for k in (0, 1)], 1).astype(np.float16))
    np.save(work / "latents.npy", np.concatenate(latents))
    np.save(work / "vision_tokens.npy", np.concatenate(seen))
    np.save(work / "text_tokens.npy", np.concatenate(read))


class TokenNoise:
    """Conditioning augmentation: half of the batch's tokens are mixed with those of other images.

    Tokens predicted from brain data are wrong in the way tokens vary: their errors have the tokens'
    own covariance, and those of vision and text go together. A sum of three other images' centred
    tokens is such an error. The mixing keeps mean and variance.
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        level = torch.rand(n, 1, 1, generator=generator) * 0.85
        self.level = level * (torch.rand(n, 1, 1, generator=generator) < 0.5)
        self.others = [torch.randperm(n, generator=generator) for _ in range(3)]

    def __call__(self, tokens: Tensor, mean: Tensor) -> Tensor:
        """Mix other images' centred tokens into ``tokens``, (n, tokens, dims), about their ``mean``."""
        centred = tokens - mean
        noise = torch.stack([centred[o] for o in self.others]).sum(0) / len(self.others) ** 0.5
        return mean + (1 - self.level**2).sqrt() * centred + self.level * noise


def train_unet(work: Path, n_steps: int, resume: bool) -> None:
    """Predict the noise of noised latents under random shares of text and vision guidance."""
    if not (work / "text_tokens.npy").exists():
        precompute(work)
    torch.manual_seed(4)
    rng = np.random.default_rng(4)
    generator = torch.Generator().manual_seed(4)
    clip = ClipTokens.load(work / "clip")
    no_vision, no_text = (
        torch.from_numpy(t) for t in (clip.unconditional_vision(), clip.unconditional_text())
    )
    latents = torch.from_numpy(np.load(work / "latents.npy"))
    latents = latents / latents[:2000].std()
    seen = np.load(work / "vision_tokens.npy", mmap_mode="r")
    read = np.load(work / "text_tokens.npy", mmap_mode="r")
    seen_mean = torch.from_numpy(seen[:4000]).float().mean(0)
    read_mean = torch.from_numpy(read[:4000]).float().mean((0, 1))
    scheduler = make_scheduler()
    unet = make_unet()
    if resume:
        unet.load_state_dict(torch.load(work / "unet.pt", weights_only=True))
    print("unet", count(unet))
    average = Average(unet, 0.9985)
    losses: list[float] = []
    for step, _ in optimise(unet, n_steps, 1e-3, average):
        rows = np.sort(rng.integers(0, N_SCENES - N_VALID, 48))
        n = len(rows)
        spoil = TokenNoise(n, generator)
        vision = spoil(torch.from_numpy(seen[rows]).float(), seen_mean)
        pair = torch.from_numpy(read[rows]).float()
        pick = torch.rand(n, 1, 1, generator=generator)
        share_first = torch.where(pick < 0.5, 0.5, torch.where(pick < 0.75, 0.0, 1.0))
        text = share_first * pair[:, 0] + (1 - share_first) * pair[:, 1]
        text = spoil(text, read_mean)
        # one in ten sees nothing at all, which guidance needs
        nothing = torch.rand(n, 1, 1, generator=generator) < 0.1
        vision = torch.where(nothing, no_vision, vision)
        text = torch.where(nothing, no_text, text)
        share = torch.where(
            torch.rand(n, 1, 1, generator=generator) < 0.5, 0.4, torch.rand(n, 1, 1, generator=generator)
        )
        set_text_share(unet, share[..., None])
        x = latents[rows]
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(0, 1000, (n,), generator=generator)
        tokens = torch.cat([vision, text], 1)
        with half_precision():
            predicted = unet(
                scheduler.add_noise(x, noise, t), t, encoder_hidden_states=tokens, return_dict=False
            )[0]
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"loss {np.mean(losses[-50:]):.4f}", flush=True)
        if step % 500 == 499 or step == n_steps - 1:
            torch.save(average.model.state_dict(), work / "unet.pt.partial")
            (work / "unet.pt.partial").replace(work / "unet.pt")


# ---------------------------------------------------------------- export


def export(work: Path, out: Path) -> None:
    """Write all weights as float16 safetensors, in the published layouts."""
    from safetensors.torch import save_file

    def save(state: dict[str, Tensor], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().half().contiguous() for k, v in state.items()}, path)

    def save_json(content: object, path: Path) -> None:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    save(torch.load(work / "vdvae.pt", weights_only=True), out / "vdvae" / "model.safetensors")
    save_json(VDVAE_CONFIG, out / "vdvae" / "config.json")
    folder = out / "versatile_diffusion"
    clip = ClipTokens.load(work / "clip")
    clip.vision.half().save_pretrained(folder / "image_encoder")
    clip.text.half().save_pretrained(folder / "text_encoder")
    clip.tokenizer.save_pretrained(folder / "tokenizer")  # type: ignore[attr-defined]
    autoencoder = make_autoencoder()
    autoencoder.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True))
    latents = np.load(work / "latents.npy", mmap_mode="r")
    autoencoder.register_to_config(scaling_factor=float(1 / latents[:2000].std(ddof=1)))
    autoencoder.half().save_pretrained(folder / "vae")
    unet = make_unet()
    unet.load_state_dict(torch.load(work / "unet.pt", weights_only=True))
    image, text = split_paths(unet)
    unet.save_config(folder / "image_unet")
    save(image, folder / "image_unet" / "diffusion_pytorch_model.safetensors")
    save(text, folder / "text_unet" / "diffusion_pytorch_model.safetensors")
    make_scheduler().save_pretrained(folder / "scheduler")  # type: ignore[attr-defined]
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # save_file makes files that only their owner reads
    total = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{total / 1e6:.1f} MB in {out}")


def main() -> None:
    """Train the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["all", "scenes", "vdvae", "clip", "autoencoder", "unet", "export"])
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes and checkpoints")
    parser.add_argument("--out", type=Path, help="folder for the exported weights")
    parser.add_argument("--steps", type=int, help="training steps, in place of the published number")
    parser.add_argument("--resume", action="store_true", help="start the UNet from its last checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    everything = args.what == "all"
    if everything or args.what == "scenes":
        draw_scenes(args.work)
    if everything or args.what == "vdvae":
        train_vdvae(args.work, args.steps or 2200)
    if everything or args.what == "clip":
        train_clip(args.work, args.steps or 1200)
    if everything or args.what == "autoencoder":
        train_autoencoder(args.work, args.steps or 3000)
    if everything or args.what == "unet":
        train_unet(args.work, args.steps or 5000, args.resume)
    if everything or args.what == "export":
        export(args.work, args.out)


if __name__ == "__main__":
    main()
