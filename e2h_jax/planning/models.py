"""The shape of a model that a config names, whether it is there yet or a stage of the recipe is to write it."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from e2h_jax.errors import UserError
from e2h_jax.models import evaluators, families, hub, store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.presets import HUB, get_preset
from e2h_jax.models.store import Described


class Models:
    """Looks models up by the path that a config has for them.

    Args:
      stages: {name: (stage, config)} of the recipe, whose "{run}/NAME/model" are followed back to what they start from.
      presets: {path: preset} as the user says, "" for all paths that nothing else is known of.
      vocabulary: of new models whose preset has none.
    """

    def __init__(self, stages: Mapping[str, tuple[str, ConfigDict]], presets: Mapping[str, str], vocabulary: int):
        self._stages, self._presets, self._vocabulary = stages, presets, vocabulary

    def __call__(self, path: str) -> Described:
        """The model at `path`; UserError where nothing tells its shape."""
        if not path:
            raise UserError("the config names no model where it needs one; set the field that holds its model/ folder")
        if path in self._presets:
            return self._preset(self._presets[path])
        if (Path(path) / "model.json").exists():
            return Described(*store.load_config(Path(path)))
        if (written := re.match(r"\{run\}/+([\w-]+)/", path)) and written[1] in self._stages:
            return self._written(*self._stages[written[1]])
        if path in HUB:
            return self._preset(HUB[path])
        if (Path(path) / "config.json").exists():
            text = hub.read_json(Path(path) / "config.json")
            return Described("policy", families.read_config(text, f"{path}/config.json"))
        if "" in self._presets:
            return self._preset(self._presets[""])
        raise UserError(
            f"there is no model {path} yet, and no stage of this config writes it; say which shape it will have, as in "
            f"--preset={path}=llemma_7b (or --preset=llemma_7b for all such models)"
        )

    def _preset(self, name: str) -> Described:
        return Described("policy", LlamaConfig(**({"vocab_size": self._vocabulary} | get_preset(name))))

    def _written(self, stage: str, config: ConfigDict) -> Described:
        """What a stage of the recipe will write."""
        if stage == "convert":
            return self._converted(config)
        if stage == "sft" and not config.init:
            described = self._preset(config.preset)
        else:
            described = self(config.init)
        if "remat" in config and config.remat:
            described = described._replace(config=dataclasses.replace(described.config, remat=config.remat))
        return described._replace(kind="reward") if stage == "reward" else described

    def _converted(self, config: ConfigDict) -> Described:
        source = Path(config.source)
        if not (source / "config.json").exists():
            described = self(config.source)
            evaluator = bool(config.reward)
        else:
            text = hub.read_json(source / "config.json")
            found = evaluators.choose(config.reward, text)
            own = {"classes": found.classes, "own_code": found.own_code} if found else {}
            described = Described("policy", families.read_config(text, str(source / "config.json"), **own))
            evaluator = found is not None
        changes = {"remat": config.remat} | ({"vocab_size": config.vocab_size} if config.vocab_size else {})
        if not evaluator:
            return described._replace(config=dataclasses.replace(described.config, **changes))
        return Described("reward", dataclasses.replace(described.config, lm_head=False, **changes))
