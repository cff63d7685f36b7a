"""PyTorch's side of `blockjax.benchmark.rivals`, a process of its own: it works when it is asked to, and says how long.

One line of JSON on the command line says what to build; then each line that comes in is answered by the seconds of one
step. So neither library's threads, nor its memory allocator, are in the other's way.
"""

import json
import os
import sys
import time

import numpy as np


def main() -> None:
    """Builds what the job says, says "ready", and answers line by line."""
    import torch
    import transformers

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    job = json.loads(sys.argv[1])
    work = {"train": _train, "features": _features}[job.pop("kind")](torch, transformers, **job)
    work()  # allocates
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start, flush=True)


def cores() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _train(torch, transformers, *, fields, batch, rate, weight_decay, betas):
    """A train step of MAE: ViTMAEForPreTraining and AdamW."""
    config = transformers.ViTMAEConfig(
        **fields, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = transformers.ViTMAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=weight_decay, betas=betas, fused=True
    )
    pixels = torch.randn(batch, 3, config.image_size, config.image_size)

    def work():
        optimizer.zero_grad()
        model(pixel_values=pixels).loss.backward()
        optimizer.step()

    return work


def _features(torch, transformers, *, fields, images, folder):
    """Features of images (a file of standardised pixels, [B, 3, H, W]); weights and features are left in a folder."""
    config = transformers.ViTConfig(
        **fields, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    pixels = torch.from_numpy(np.load(images))

    def work():
        with torch.inference_mode():
            return model(pixel_values=pixels).last_hidden_state[:, 1:].mean(dim=1)

    np.save(os.path.join(folder, "features.npy"), work().numpy())
    return work


if __name__ == "__main__":
    main()
