"""Decode steps of both families, with and without pages, for compute-sanitizer to watch.

No while node is among them: under the sanitizer's instrumentation its handle can't be set.

python3 tests/decode/sanitized_steps.py
"""

import argparse

from graphkit.kernels.decode import FusedDecoder
from graphkit.kernels.llama import BUNDLED_MODEL, Checkpoint

import graphkit as gk

MAX_LEN = 512
STARTS = (0, 300)  # positions; at the second one several blocks share a head of attention
STEPS = 3


def main() -> None:
    """Make a few steps of each; exits with an exception where one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("cuda", "sim"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 16])
    chosen = parser.parse_args()
    gk.use(chosen.runtime)
    checkpoint = Checkpoint.load(BUNDLED_MODEL)
    for batch in chosen.batches:
        for page, build in ((0, "manual"), (16, "programmatic")):
            decoder = FusedDecoder(checkpoint, batch=batch, max_len=MAX_LEN, page=page)
            decode = decoder.build(build)
            decoder.start(*[b"def "] * batch)
            for start in STARTS:
                decoder.position.set([start] * batch)
                decoder.embed()
                for _ in range(STEPS):
                    decode.launch()
                decode.stream.synchronize()
            print(f"batch {batch}, page {page}, {build}: {decoder.position.get().tolist()}")


if __name__ == "__main__":
    main()
