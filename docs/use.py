# %% [markdown]
# # From a training to an explanation, on drawn heads
#
# This is a notebook in the percent format: jupytext, VS Code and Spyder open it as one, `python docs/use.py` runs it.
# It takes about a minute on 2 CPU cores, needs no data, and writes into `runs/use`. The heads are synthetic (PHANTOM):
# what it shows is how things are called, not how well real images are read.

# %%
import matplotlib.pyplot as plt
import numpy as np

import bhcnet_jax
from bhcnet_jax.configs import tuned
from bhcnet_jax.datasets.phantom import drawing
from bhcnet_jax.inference.gallery import overlay
from bhcnet_jax.run import train

# %% [markdown]
# ## Train
#
# A config has every setting. A run directory takes what a training leaves: results, weights, environment. Run again,
# this cell finds the training finished.

# %%
config = tuned.get_config()
config.dataset.name = 'phantom'
config.dataset.image_size = 32
train.run(config, train.Options(workdir='runs/use'))

# %% [markdown]
# ## Load and predict
#
# These heads are drawn with another seed, so the network has seen none of them. Every second one bleeds.

# %%
model = bhcnet_jax.load('runs/use')
heads = [drawing.draw_slice(index, seed=1) for index in range(40)]
images = np.stack([model.preprocess(head.image) for head in heads])
bleeds = np.array([head.kind != '' for head in heads])

probabilities = model.predict(images)
for head, probability in zip(heads[:6], probabilities, strict=False):
    print(f'{head.id}  {head.kind or "normal":18s} {probability:.3f}')
print(f'{np.mean((probabilities >= 0.5) == bleeds):.0%} of {len(heads)} drawn heads are told right')

# %% [markdown]
# ## Explain
#
# A map shows what moved the network, right or wrong. `python -m bhcnet_jax.explain runs/use` measures how often that is
# the bleeding.

# %%
maps = model.explain(images)
figure, axes = plt.subplots(3, 4, figsize=(8, 6), subplot_kw={'xticks': [], 'yticks': []}, layout='constrained')
shown = np.flatnonzero(bleeds)[:4]
for column, index in enumerate(shown):
    axes[0, column].imshow(images[index], cmap='gray')
    axes[0, column].set_title(f'{heads[index].kind}\np = {probabilities[index]:.2f}', fontsize='small')
    axes[1, column].imshow(overlay(images[index], maps[index]))
    axes[2, column].imshow(model.preprocess(heads[index].mask), cmap='gray')
for row, name in enumerate(('image', 'heat map', 'blood, as drawn')):
    axes[row, 0].set_ylabel(name)
figure.suptitle('PHANTOM: synthetic images')
figure.savefig('runs/use/explained.png')
