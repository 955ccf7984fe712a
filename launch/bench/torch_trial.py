"""A whole training in PyTorch as a script that runs once for each trial: `python torch_trial.py FOLDER VARIANT SEED`.

What the project does for a trial of `--config=balanced`, without a database, checkpoints and figures: after every epoch
it prints the losses and the accuracy on the test images. FOLDER, VARIANT: see `contender.read_task`.
"""

import json
import sys

import torch
from contender import read_task
from rival_torch import Training


def main() -> None:
    """The command line."""
    task = read_task(*sys.argv[1:3])
    torch.manual_seed(int(sys.argv[3]))
    sources, test = torch.from_numpy(task.sources).long(), torch.from_numpy(task.test).long()
    epochs = task.config['balanced']['epochs']
    training = Training(task, epochs * -(-len(sources) // task.config['batch_size']))
    for epoch in range(1, epochs + 1):
        train_loss = training.epoch(sources)
        test_loss, accuracy = training.evaluate(test)
        row = {'epoch': epoch, 'train_loss': train_loss, 'test_loss': test_loss, 'test_accuracy': accuracy}
        print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
