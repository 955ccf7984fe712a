#!/bin/bash
# Trains what docs/study.md reports. The same command goes on with what is missing, whatever has happened before.
#
#     HEAD_CT_DIR=archive.zip bash launch/study.sh runs/study                all parts, one after another
#     HEAD_CT_DIR=archive.zip bash launch/study.sh runs/study cnn strong     some of them
#     HEAD_CT_DIR=archive.zip bash launch/study.sh runs/study zoo            named alone, since it takes days on a CPU
#     HEAD_CT_DIR=archive.zip bash launch/study.sh runs/study worth          named alone: fewer drawn heads and real images
#     bash launch/study.sh runs/study volumes                                named alone: networks of drawn volumes
#
# A part has its own run directory, so several parts can train side by side. On a GPU, with five seeds of each network:
#
#     SEEDS=5 FLAGS='--config.engine.lanes=10' bash launch/study.sh runs/study
set -euo pipefail

folder=${1:?Say where to: bash launch/study.sh FOLDER [PART...]}
shift
read -ra flags <<< "${FLAGS:-}" # more of bhcnet_jax.main, for all parts but the baselines
seeds="seed=0:${SEEDS:-1}"
folds='split.fold=0:10'
both="phases=('balanced',),('balanced','imbalanced')"

train() { # run directory, config, flags
    python -m bhcnet_jax.main --workdir="$folder/$1" --config="$2" ${flags[@]+"${flags[@]}"} "${@:3}"
}

kfold() { # run directory, config, sweep
    train "$1" "$2" --config.split.scheme=kfold --sweep="$3 $seeds $folds"
}

two_phases() { # run directory, config of the first phase
    kfold "$1" "$2" ''
    kfold "$1" "$2" "$both" # goes on from the weights of the line above
}

epochs() { # the paper's tables 1 and 2 on its own holdout, for ten splits
    train epochs balanced --sweep='balanced.epochs=4,8,12,16,20,24 split.seed=0:10'
    train epochs balanced --sweep="phases=('balanced','imbalanced') imbalanced.epochs=4,8,12,16,20,24 split.seed=0:10"
}

for part in ${*:-baselines strong tuned pretrained cnn lstm gru equalised bfloat16 ablations epochs}; do
    case $part in
        baselines) python -m bhcnet_jax.baselines --workdir="$folder/baselines" --config=balanced \
            --config.split.scheme=kfold --sweep="seed=0:5 $folds" ;;
        cnn) two_phases cnn balanced ;;
        lstm) two_phases lstm lstm_balanced ;;
        gru) two_phases gru gru_balanced ;;
        strong) kfold strong strong '' ;;
        tuned) kfold tuned tuned '' ;;
        equalised) kfold equalised strong dataset.equalise=True ;;
        pretrained) kfold pretrained pretrained '' ;;
        worth) train worth worth --sweep="$folds" ;;
        zoo) train zoo zoo --sweep="$folds" ;;
        volumes) train volumes volumes ;;
        readings) train readings readings --sweep="$folds" ;;
        bfloat16) kfold bfloat16 balanced model.dtype=bfloat16 ;;
        ablations) train ablations ablations --sweep='split.fold=0:5' ;;
        epochs) epochs ;;
        *) echo "error: no part $part; expected baselines, strong, tuned, pretrained, cnn, lstm, gru, equalised, bfloat16, ablations," \
            "epochs, worth, zoo, volumes or readings." >&2
            exit 2 ;;
    esac
done
