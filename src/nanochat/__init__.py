"""NanoChat: a small ChatGPT you can train, understand, run and serve yourself.

`import nanochat` is quick: the public names below load what they need on first use, and the model and tokenizer
register with Transformers' Auto classes at once if Transformers is loaded, else the moment it is.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PUBLIC = {
    "NanoChatConfig": "nanochat.model.configuration",
    "NanoChatForCausalLM": "nanochat.model.modeling",
    "NanoChatModel": "nanochat.model.modeling",
    "NanoChatPreTrainedModel": "nanochat.model.modeling",
    "NanoChatTokenizer": "nanochat.tokenizer",
    "Engine": "nanochat.inference.engine",
    "SamplingParams": "nanochat.inference.sampling",
    "Recipe": "nanochat.training.recipe",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nanochat' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]


def _register() -> None:
    """Import the modules that hold the classes; each registers its own at its end.

    So it does not matter which of them, or whether Transformers, happens to be half-way through its import.
    """
    for module in ("nanochat.model.configuration", "nanochat.model.modeling", "nanochat.tokenizer.tokenization"):
        importlib.import_module(module)


class _RegisterAfterTransformers(importlib.abc.MetaPathFinder):
    """Calls `_register` once the top-level package `transformers` has finished its own import."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterTransformers())
