#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The held-out conversations of tiny-r1 as one file: python3 make_heldout.py ../../tests/golden/heldout/tiny-r1.json

They are what train_tiny_r1.py's heldout_set() gives: 60 of each family, which training never saw. A list, one conversation a line:

  family      such as "arithmetic"
  prompt      the rendered chat, up to and with "<think>\\n"
  completion  what the model should write: reasoning, answer, end of sentence

Of train_tiny_r1.py only the data (its parts before the tokenizer) is run, so that nothing but Python is needed.
"""
import json
import pathlib
import re
import sys


def data_part():
    text = (pathlib.Path(__file__).parent / "train_tiny_r1.py").read_text()
    text = text[:text.index("# 3. Tokenizer")]
    text = re.sub(r"^import (numpy|torch).*$", "", text, flags=re.M)
    names = {}
    exec(compile(text, "train_tiny_r1.py", "exec"), names)
    return names


def main(path):
    data = data_part()
    lines = [json.dumps({"family": s["family"], "prompt": data["render"](s["messages"]), "completion": data["completion"](s)}, ensure_ascii=False)
             for s in data["heldout_set"]()]
    pathlib.Path(path).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
