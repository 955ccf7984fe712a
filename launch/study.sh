#!/bin/bash
# Trains what docs/study.md reports. The same command goes on with what is missing, whatever has happened before.
#
#     HEAD_CT_DIR=archive.zip bash launch/study.sh runs/study                all parts, one after another
#     HEAD_CT_DIR=archive.zip bash launch/study.sh runs/study cnn strong     some of them
#
# A part has its own run directory, so several parts can train side by side.
set -euo pipefail

folder=${1:?Say where to: bash launch/study.sh FOLDER [PART...]}
shift
folds='split.fold=0:10'
both="phases=('balanced',),('balanced','imbalanced')"

kfold() { # run directory, config, sweep
    python -m bhcnet_jax.main --workdir="$folder/$1" --config="$2" --config.split.scheme=kfold --sweep="$3"
}

two_phases() { # run directory, config of the first phase
    kfold "$1" "$2" "$folds"
    kfold "$1" "$2" "$both $folds" # goes on from the weights of the line above
}

# One change of `strong` at a time, judged on validation images from inside the training folds. At 64 pixels a side, to
# take less time: the paper's CNN trains 3 times as fast as at 128 (docs/benchmarks.md).
ablations() {
    local axis judged='dataset.image_size=64 split.val_folds=5 split.fold=0:5'
    for axis in seed=0:3 model.norm=none,batch model.convs=1 model.pooling=mean,max model.dropout=0.0 \
        augment.frozen=True augment.policy=none,distort augment.affine.rotation=0.0,30.0 augment.test_flip=True \
        optimizer.peak_lr=3e-4,3e-3 optimizer.weight_decay=0.05 optimizer.label_smoothing=0.1 optimizer.ema=0.99 \
        "phases=('imbalanced',) imbalanced.epochs=24 imbalanced.class_weights=computed" balanced.epochs=12,48; do
        kfold ablations strong "$axis $judged"
    done
}

epochs() { # the paper's tables 1 and 2 on its own holdout, for ten splits
    local train=(python -m bhcnet_jax.main --workdir="$folder/epochs" --config=balanced)
    "${train[@]}" --sweep='balanced.epochs=4,8,12,16,20,24 split.seed=0:10'
    "${train[@]}" --sweep="phases=('balanced','imbalanced') imbalanced.epochs=4,8,12,16,20,24 split.seed=0:10"
}

for part in ${*:-baselines strong cnn lstm gru equalised ablations epochs}; do
    case $part in
        baselines) python -m bhcnet_jax.baselines --workdir="$folder/baselines" --config=balanced \
            --config.split.scheme=kfold --sweep="seed=0:5 $folds" ;;
        cnn) two_phases cnn balanced ;;
        lstm) two_phases lstm lstm_balanced ;;
        gru) two_phases gru gru_balanced ;;
        strong) kfold strong strong "$folds" ;;
        equalised) kfold equalised strong "dataset.equalise=True $folds" ;;
        ablations) ablations ;;
        epochs) epochs ;;
        *) echo "error: no part $part; expected baselines, cnn, lstm, gru, strong, equalised, ablations or epochs." >&2
            exit 2 ;;
    esac
done
