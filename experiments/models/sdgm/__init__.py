"""Spectral dictionary language model (arXiv 2505.00033): sums of learned sinusoids in place of attention.

    X = E(ids)                                             embeddings (batch, tokens, width)
    C = softmax(W · [x_{t-kernel+1} … x_t])                coefficients (batch, tokens, atoms)
    x̂_{t,d} = Σ_k C_{t,k} · a_{k,d} sin(2π f_{k,d} t / T_max + φ_{k,d})

`atoms.py` has the dictionary, `mixing.py` a block, `pointer.py` context and copying, `model.py` the models of
transformers, `state.py` what generation keeps, `losses.py` what training minimizes, and `architecture.py` the
options. The paper publishes no code and few details; every choice made here is named where it is made.

The Gaussian mixture on the coefficients is an evaluation (`experiments/evaluation/coefficient_mixture.py`).

Not covered: that mixture as a term of the loss, amplitudes that change in time apart in each channel.
"""
