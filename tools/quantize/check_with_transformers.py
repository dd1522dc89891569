#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loads what `switchyard quantize` wrote with Hugging Face transformers and says how it predicts a text there.

    pip install torch transformers compressed-tensors accelerate
    check_with_transformers.py MODEL [MODEL…] --text FILE [--tokens 2048]

The same windows as the command's own report: up to 512 tokens, each beginning with BOS where the tokenizer has one, and with
each BOS in the text.
"""
import argparse
import math

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512


@torch.no_grad()
def perplexity(path, text, most):
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    with open(text, encoding="utf-8") as f:
        ids = tokenizer(f.read(), add_special_tokens=False).input_ids[:most]
    bos, windows = tokenizer.bos_token_id, [[]]
    for token in ids:
        if token == bos or len(windows[-1]) == WINDOW:
            windows.append([] if bos is None else [bos])
        if token != bos:
            windows[-1].append(token)
    loss = predicted = 0
    for window in windows:
        if len(window) < 2:
            continue
        window = torch.tensor([window])
        logits = model(window).logits[0, :-1].float()
        loss += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        predicted += window.shape[1] - 1
    return math.exp(loss / predicted)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=2048)
    args = parser.parse_args()
    for path in args.models:
        print(f"{path}: perplexity {perplexity(path, args.text, args.tokens):.4f}", flush=True)


if __name__ == "__main__":
    main()
