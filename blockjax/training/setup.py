"""What a run consists of, made from a config and a workdir and checked before anything is compiled."""

import os

import jax
import ml_collections

from blockjax import config as config_lib
from blockjax.learner.build import make_learner
from blockjax.learner.learner import run_key
from blockjax.learner.placement import Placement
from blockjax.objectives import find_task
from blockjax.sharding.mesh import make_mesh, mesh_shape
from blockjax.training.claim import claim_workdir
from blockjax.training.data import count_classes, open_sources
from blockjax.weights.start import fitted_params, start_of
from blockjax.xla.targets import multiplies_bfloat16


class Setup:
    """The parts of a run.

    Attributes:
      config: resolved.
      train_source: what is trained on.
      test_source: what is tested with.
      steps: length of the run.
      workdir: claimed for this run.
      mesh: over all devices.
      learner: the run's functions.
      placement: the learner on the mesh.
      abstract_state: shapes, dtypes and places of the state.
      backbone: the encoder's parameters that training starts from; None for random numbers.
      is_first_process: whether this process writes and prints.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike):
        """Checks the config, opens the data and claims the workdir.

        Args:
          config: as a config file returns it, with the command line's changes.
          workdir: folder for all that the run writes; a run that was stopped there goes on.

        Raises:
          ValueError: the config, the data or the workdir cannot be used; says what to change.
        """
        config, backbone = start_of(config)
        self.config = config_lib.resolve(
            config,
            devices=jax.device_count(),
            platform=jax.default_backend(),
            multiplies_bfloat16=multiplies_bfloat16(jax.devices()[0]),
        )
        self.train_source, self.test_source = open_sources(self.config)
        find_task(self.config.objective).check_examples(self.config, len(self.train_source))
        self.config.classifier.classes = count_classes(
            self.config, self.train_source, self.test_source
        )
        self.steps = config_lib.total_steps(self.config, len(self.train_source))
        config_lib.fill_lengths(self.config, self.steps)
        self.workdir = claim_workdir(workdir, self.config)
        self.mesh = make_mesh(mesh_shape(self.config.mesh, jax.device_count()))
        self.learner = make_learner(self.config, self.steps)
        self.placement = Placement(self.learner, self.mesh)
        self.abstract_state = self.placement.abstract_state
        self.backbone = None
        if backbone is not None:
            grown_from = self.learner.first_layers(self.key("init")) if self.config.grow else None
            self.backbone = fitted_params(
                backbone, self.learner.vit, config.backbone, grown_from=grown_from
            )
        self.is_first_process = jax.process_index() == 0

    def key(self, name: str) -> jax.Array:
        """Returns the run's key for one of its parts, see `run_key`."""
        return run_key(self.config.seed, name)

    def print(self, text: str) -> None:
        """Prints what a person should read, once among all processes."""
        if self.is_first_process:
            print(text, flush=True)

    def is_logged(self, step: int) -> bool:
        """Whether metrics.jsonl has a row for this step."""
        return step % self.config.log.every == 0 or step in (1, self.steps)
