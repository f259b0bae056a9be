#!/bin/sh
# Trains the version that ships: first on the climate as it is, then on from there with a smaller step. Called again
# after an interruption it goes on. TORCHRUN, OUT: see the Makefile.
set -eu
export OMP_NUM_THREADS=1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
TRAIN="$TORCHRUN -m server.analyses.boundary_layer.train --courses $OUT/courses --days 1024 --batch 4"
$TRAIN --out "$OUT/first" --epochs 10 --learning-rate 2e-3
$TRAIN --out "$OUT/second" --epochs 6 --learning-rate 1e-3 --seed 2 --start-from "$OUT/first/weights.safetensors"
echo "the weights: $OUT/second/weights.safetensors"
