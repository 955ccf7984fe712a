"""What there is: `python -m bhcnet_jax`."""

COMMANDS = """Commands, each with --help:

  python -m bhcnet_jax.main         trains a config or a sweep; also called bhcnet-jax
  python -m bhcnet_jax.baselines    trains shortcut and pixel baselines on the same splits
  python -m bhcnet_jax.results      shows the leaderboard of run directories
  python -m bhcnet_jax.report       writes the report on run directories
  python -m bhcnet_jax.audit        looks for duplicates and shortcuts in a data set
  python -m bhcnet_jax.predict      applies a trained network to images
  python -m bhcnet_jax.evaluate     measures a trained network on labelled images from elsewhere
  python -m bhcnet_jax.explain      measures whether a network's heat maps point at bleedings
  python -m bhcnet_jax.difficulty   measures how hard a bleeding may be to see for a network to find it
  python -m bhcnet_jax.bundle       packs a trained network into one file
  python -m bhcnet_jax.export       writes a trained network for other programs

First steps:
  python -m bhcnet_jax.main --config=smoke
  python -m bhcnet_jax.results runs/smoke-PHANTOM"""

if __name__ == '__main__':
    print(COMMANDS)
