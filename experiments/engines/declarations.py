"""The part of llama.cpp's C interface (`llama.h` of release v0.5.0) that is called here, for cffi.

Structures that go by value (`llama_model_params`, `llama_context_params`, `llama_batch`) are complete:
another release may have other fields, which no library reports. So `library.py` takes one release only.
Enumerations are `int`, and pointers that are never followed are `void *`.
"""

RELEASE = "v0.5.0"
"""Release of llama.cpp that these declarations belong to; `llama_version()` says the library's own."""

DECLARATIONS = """
typedef int32_t llama_token;
typedef void (*log_callback)(int level, const char * text, void * user_data);

struct llama_model_params {
    void * devices; void * tensor_buft_overrides;
    int32_t n_gpu_layers; int split_mode; int load_mode; int lazy_mode; int32_t main_gpu;
    const float * tensor_split; void * progress_callback; void * progress_callback_user_data;
    void * kv_overrides;
    bool vocab_only; bool check_tensors; bool use_extra_bufts; bool no_host; bool no_alloc; bool load_mtp;
};

struct llama_context_params {
    uint32_t n_ctx; uint32_t n_batch; uint32_t n_ubatch; uint32_t n_seq_max; uint32_t n_rs_seq;
    uint32_t n_outputs_max; uint32_t n_outputs_max_per_seq;
    int32_t n_threads; int32_t n_threads_batch;
    int ctx_type; int rope_scaling_type; int pooling_type; int attention_type; int flash_attn_type;
    float rope_freq_base; float rope_freq_scale; float yarn_ext_factor; float yarn_attn_factor;
    float yarn_beta_fast; float yarn_beta_slow; uint32_t yarn_orig_ctx; float defrag_thold;
    void * cb_eval; void * cb_eval_user_data;
    int type_k; int type_v; size_t moe_cache_size;
    void * abort_callback; void * abort_callback_data;
    bool embeddings; bool offload_kqv; bool no_perf; bool op_offload; bool swa_full; bool kv_unified;
    void * samplers; size_t n_samplers; void * ctx_other;
};

struct llama_batch {
    int32_t n_tokens; llama_token * token; float * embd; int32_t * pos; int32_t * n_seq_id;
    int32_t ** seq_id; int8_t * logits;
};

const char * llama_version(void);
void llama_log_set(log_callback callback, void * user_data);
void llama_backend_init(void);

struct llama_model_params llama_model_default_params(void);
void * llama_model_load_from_file(const char * path, struct llama_model_params params);
const void * llama_model_get_vocab(const void * model);
const char * llama_model_chat_template(const void * model, const char * name);

struct llama_context_params llama_context_default_params(void);
void * llama_init_from_model(void * model, struct llama_context_params params);
void * llama_get_memory(const void * context);
void llama_memory_clear(void * memory, bool data);

struct llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
int32_t llama_decode(void * context, struct llama_batch batch);
float * llama_get_logits(void * context);
float * llama_get_logits_ith(void * context, int32_t i);

int32_t llama_vocab_n_tokens(const void * vocab);
int32_t llama_tokenize(const void * vocab, const char * text, int32_t text_len, llama_token * tokens,
                       int32_t n_tokens_max, bool add_special, bool parse_special);
"""

BACKENDS = "void ggml_backend_load_all_from_path(const char * folder);"
"""What is called in libggml, which finds the library for this machine's processor in a folder."""
