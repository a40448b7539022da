"""Quantized models in other projects' formats, written from our codes.

    sinq.export(model, "folder", format="compressed_tensors", tokenizer=tokenizer)

    model ─▶ Source (views of matrices, dense tensors, column scales folded) ─▶ Exporter ─▶ folder

`view.py` is a matrix as numbers, apart from how it is stored here. `folding.py` says which column scales
can be moved into the layer before, exactly. `source.py` is a model as a list of views and dense tensors in
the order of its blocks. `base.py` is what a format is: an `Exporter`. `huggingface.py` is the common case, a
folder of safetensors with a configuration. `run.py` puts it together.
"""
