"""Converts a network for LiteRT, in the converter's own environment (deploy/quick-look/README.md).

    CONVERTER/bin/python server/analyses/boundary_layer/retraining/litert.py network.pt2 model.tflite

One look of one instrument: signature `serving_default`, inputs looks, facts and memory, outputs as of the ONNX file.
The weights become 8-bit integers; what is computed stays float. Imports nothing of Fieldpost, which is not there.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch


def convert(program: Path, target: Path) -> None:
    """Converts a program of torch.export, whose sample inputs are of a batch of one and have their names."""
    litert_torch = importlib.import_module("litert_torch")
    quantizer = importlib.import_module("ai_edge_quantizer.quantizer")
    recipe = importlib.import_module("ai_edge_quantizer.recipe")
    exported = torch.export.load(program)
    _, samples = exported.example_inputs
    whole = target.with_name(f"float-{target.name}")
    litert_torch.convert(exported.module(), sample_kwargs=samples).export(str(whole))
    small = quantizer.Quantizer(str(whole))
    small.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    small.quantize().export_model(str(target), overwrite=True)
    whole.unlink()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="what a retrain has written as network.pt2")
    parser.add_argument("target", type=Path, help="the .tflite file to write")
    options = parser.parse_args()
    convert(options.program, options.target)


if __name__ == "__main__":
    main()
