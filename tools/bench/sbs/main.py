# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/bench/side_by_side."""
import argparse
import os
import pathlib
import sys

from . import models, peer

ROOT = pathlib.Path(__file__).resolve().parents[3]


def parser():
    ap = argparse.ArgumentParser(prog="side_by_side", description="Switchyard and llama.cpp side by side on the same weights.")
    ap.add_argument("--dir", type=pathlib.Path, default=ROOT / "build/bench", help="where models/ and peer/ lie (default: build/bench)")
    ap.add_argument("--build-peer", action="store_true", help="download and build llama.cpp into DIR/peer, and end")
    ap.add_argument("--make-models", action="store_true", help="make the models in DIR/models (20 GB), and end; wants the peer")
    ap.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the peer's build")
    return ap


def main():
    args = parser().parse_args()
    try:
        llama = peer.Peer(args.dir / "peer")
        if args.build_peer:
            llama.build(args.jobs)
        if args.make_models:
            models.Models(args.dir / "models").make(llama)
    except peer.PeerError as error:
        print(f"side_by_side: {error}", file=sys.stderr)
        return 1
    return 0
