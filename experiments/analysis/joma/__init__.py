"""JoMA, joint dynamics of MLP and attention (arXiv 2310.00535): the theory, checked by numbers.

The claim is about training, not about compression: attention logits are a function of the MLP's lower
weights, so attention can be integrated out of the dynamics.

| module | |
|---|---|
| `block` | one block of attention and MLP: forward pass and gradient flow, in float64 |
| `data` | text of the paper's figure: frequencies of tokens for each class |
| `invariants` | the first integrals (theorem 1), and how far they drift |
| `flows` | integrators: an adaptive solver (scipy's), and gradient descent |
| `laws` | dynamics with attention integrated out: the erf law, theorem 4, the curve of the entropy |
| `study` | all of it as one table |

`python -m experiments.analysis.joma` prints that table. Nothing here is measured on a trained language model;
`evaluation=layers` measures attention entropy and stable rank of one.
"""
