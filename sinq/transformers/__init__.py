"""Compressed models as models of transformers.

    import sinq                                                    # makes transformers know our folders
    model = AutoModelForCausalLM.from_pretrained("folder")         # written by sinq.save, stream, or itself
    model.save_pretrained("another")                               # the same files again

Importing this package registers the reader of our folders under the name that their `config.json` has
(`quantizer.py`), and lets `save_pretrained` of a model with edits write what `sinq.save` writes
(`pretrained.py`). It is a package of its own because transformers has no place to register at before it is
imported, and `import sinq` imports no transformers: `import sinq` has this package imported as soon as the
models of transformers are (`sinq/common/import_hooks.py`). Without it, transformers warns of an unknown
quantization type, sinq-harness, and makes up the weights that it does not find.

The modules `sinq.sinqlinear_hf` and `sinq.hf_io`, which transformers' own `SinqConfig` asks for, stand
beside.
"""

from sinq.transformers.pretrained import replace_methods
from sinq.transformers.quantizer import FolderConfig, FolderQuantizer, register

__all__ = ["FolderConfig", "FolderQuantizer"]

register()
replace_methods()
