"""Trains the small model, its tokenizer and its styles: `python -m models.small_model --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from models.small_model.folder import PACKAGE

# Read when a process starts. One thread for each worker; and memory that is freed stays with the process, in
# huge pages where there are such: a step takes and frees hundreds of megabytes, and page faults would cost as
# much as the arithmetic.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def main() -> None:
    """Read the arguments, train, and print what came out as JSON."""
    options = _options()
    if any(os.environ.get(name) != value for name, value in _ENVIRONMENT.items()):
        arguments = [sys.executable, "-m", "models.small_model", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | _ENVIRONMENT)  # noqa: S606
    import torch

    from models.adapter_training import AdapterProgress
    from models.small_model.styles import train_styles
    from models.small_model.training import TINY, Recipe, train_small_model

    # What sharp attention leaves of other tokens is slow to multiply.
    torch.set_flush_denormal(True)
    begun = time.monotonic()

    def tell(line: str) -> None:
        print(f"{(time.monotonic() - begun) / 60:5.1f} min  {line}", file=sys.stderr, flush=True)

    def tell_style(style: str, progress: AdapterProgress) -> None:
        if progress.step == progress.steps or progress.step % 20 == 0:
            tell(f"{style}: step {progress.step} of {progress.steps}, loss {progress.loss:.4f}")

    recipe = TINY if options.tiny else Recipe()
    names = ("tokens", "workers", "seed", "precision", "learning_rate")
    changed = {name: getattr(options, name) for name in names}
    recipe = dataclasses.replace(recipe, **{k: v for k, v in changed.items() if v is not None})
    if options.start:
        recipe = dataclasses.replace(recipe, start=str(options.start), easy_share=0.0)
    found: dict[str, object] = {}
    base = options.out / "weft-small"
    if not options.styles_only:
        found["answers_right_to_the_last_token"] = train_small_model(recipe, base, tell)
    if not options.base_only:
        styles = train_styles(
            base,
            options.out / "styles",
            count=20 if options.tiny else 2_400,
            seed=recipe.seed,
            on_progress=tell_style,
        )
        found["styles"] = {
            name: {"loss_before": one.loss_before, "loss_after": one.loss_after, "seconds": one.seconds}
            for name, one in styles.items()
        }
    json.dump(found, sys.stdout, indent=1)
    print()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.small_model",
        description=(
            "Train Weft's small language model from random weights on its generated corpus, and then one "
            "adapter for each style. Progress goes to stderr, what came out to stdout. The same seed, tokens "
            "and workers see the same batches."
        ),
    )
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder for weft-small/ and styles/")
    parser.add_argument("--tokens", type=int, help="tokens of the training, padding included")
    parser.add_argument("--workers", type=int, help="processes, one thread each (default 2, of a toy 1)")
    parser.add_argument("--start", type=Path, help="a folder to go on from, in place of fresh weights")
    parser.add_argument("--learning-rate", type=float, help="at its highest (default 1.6e-3)")
    parser.add_argument("--seed", type=int, help="of corpus, weights and batches (default 20)")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="of the products")
    parser.add_argument("--tiny", action="store_true", help="a toy, in seconds, to see that it works")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--styles-only", action="store_true", help="train styles for the base in --out")
    only.add_argument("--base-only", action="store_true", help="leave the styles out")
    options = parser.parse_args()
    if options.tiny and options.out == PACKAGE:
        parser.error("--tiny needs --out: a toy does not replace the model of the package")
    return options


if __name__ == "__main__":
    main()
