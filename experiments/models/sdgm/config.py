"""Configuration of the spectral dictionary model, as transformers stores it."""

from transformers import PreTrainedConfig


class SDGMConfig(PreTrainedConfig):
    """Sizes of a model; `architecture.py` says what they mean."""

    model_type = "sdgm"

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 1
    max_position_embeddings: int = 256
    atoms: int = 128
    kernel: int = 5
    coefficients: str = "softmax"
    stacked: bool = False
    intermediate_size: int = 704
    copy_window: int = 64
    head: str = "pointer"
    modulation: int = 0
    shared_frequency: bool = False
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    pad_token_id: int | None = None
