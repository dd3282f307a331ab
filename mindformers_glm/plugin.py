"""Registration of the GLM classes with MindSpore Transformers.

Upstream has no plugin discovery, so importing `mindformers_glm` is the hook. Registration needs
`mindformers`, whose import takes seconds; it therefore happens when both packages are there, in
whichever order they are imported.
"""

# The launcher tells older Pythons what is wrong and has to be imported for that.
from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def register_on_import() -> None:
    """Register now if `mindformers` is imported, else right after it will be."""
    if "mindformers" in sys.modules:
        register()
    elif not any(isinstance(finder, _MindformersFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MindformersFinder())


def register() -> None:
    """Make upstream's registry, AutoConfig and AutoModel resolve GLM folders to our classes.

    Each class is registered twice: with legacy=False and `search_names`, which upstream consults
    first and a later registration cannot displace (mindformers 1.7.0, tools/register/register.py);
    and with legacy=True, because look-ups before a context with `use_legacy False` exists take the
    unprefixed names.
    """
    from mindformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from mindformers.models import PreTrainedTokenizerFast
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    from mindformers_glm.config.glm_config import DIALECTS

    for model_type in DIALECTS:
        # The configuration, its name for Hugging Face, and networks; AutoModel builds the first.
        dialect = importlib.import_module(f"mindformers_glm.models.{model_type}")
        config, config_name, networks = dialect.REGISTERED
        classes: list[tuple[str, type, tuple[str, ...]]] = [
            (MindFormerModuleType.CONFIG, config, (config.model_type, config_name))
        ]
        classes += [(MindFormerModuleType.MODELS, cls, (cls.__name__,)) for cls in networks]
        for module_type, cls, names in classes:
            for legacy in (False, True):
                MindFormerRegister.register_cls(
                    cls, module_type=module_type, legacy=legacy, search_names=names
                )
        AutoConfig.register(config.model_type, config, exist_ok=True)
        # Without an entry, pipeline(model=DIR, tokenizer=DIR) takes the name for the tokenizer.
        AutoTokenizer.register(config, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
        for auto_class in (AutoModel, AutoModelForCausalLM):
            auto_class.register(config, networks[0], exist_ok=True)
    for auto_class in (AutoConfig, AutoModel, AutoModelForCausalLM):
        _let_errors_through(auto_class)


def _let_errors_through(auto_class: Any) -> None:
    """Have `from_pretrained` raise this project's errors as they are.

    Upstream raises "Error occurred when executing function ... not available now" from them
    (mindformers 1.7.0, tools/generic.py, experimental_mode_func_checker).
    """
    from mindformers_glm.core.errors import GlmError

    original = auto_class.from_pretrained.__func__
    if getattr(original, "lets_errors_through", False):  # registered before
        return

    @functools.wraps(original)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, *args, **kwargs)
        except RuntimeError as problem:
            cause: BaseException | None = problem
            while cause is not None and not isinstance(cause, GlmError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None

    vars(from_pretrained)["lets_errors_through"] = True
    auto_class.from_pretrained = classmethod(from_pretrained)


class _MindformersFinder(importlib.abc.MetaPathFinder):
    """Finds `mindformers` as usual and registers when its import is done."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "mindformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """The package's own loader, followed by `register`."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        register()
