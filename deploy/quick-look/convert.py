"""Converts the trained network for LiteRT. Step 2 of 3, in the converter's own environment; see README.md.

    <converter>/bin/python deploy/quick-look/convert.py build/quick-look

The weights become 8-bit integers; what is computed stays float (dynamic range). Imports nothing of Fieldpost.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import litert_torch
import torch
from ai_edge_quantizer import quantizer, recipe
from network import NetworkConfig, QuickLookNetwork


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where train.py wrote, and model.tflite goes")
    parser.add_argument("--float", action="store_true", help="keep the weights as they are")
    options = parser.parse_args()
    settings = json.loads((options.folder / "config.json").read_text())
    config = NetworkConfig(**{**settings["network"], "widths": tuple(settings["network"]["widths"])})
    network = QuickLookNetwork(config)
    network.load_state_dict(torch.load(options.folder / "weights.pt", weights_only=True))
    # a fixed batch of 1: a dynamic one does not convert
    sample = torch.zeros(1, config.channels, config.gate_count)
    whole, target = options.folder / "float.tflite", options.folder / "model.tflite"
    litert_torch.convert(network.eval(), sample_kwargs={"profile": sample}).export(str(whole))
    if options.float:
        whole.replace(target)
    else:
        small = quantizer.Quantizer(str(whole))
        small.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        small.quantize().export_model(str(target), overwrite=True)
    names = ("torch", "litert-torch", "ai-edge-quantizer", "litert-converter")
    settings["converter"] = {name: version(name) for name in names}
    (options.folder / "config.json").write_text(json.dumps(settings, indent=2))
    sys.stdout.write(f"{target}: {target.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
